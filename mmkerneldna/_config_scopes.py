"""Let ``_base_ = 'mmseg::...'`` and ``_base_ = 'mmkerneldna::...'`` resolve.

mmengine maps a scope to the *distribution* it looks up. Its entry for mmseg names ``mmsegmentation``, while the
maintained build is called ``onedl-mmsegmentation``; the import name works for both.
"""

from mmengine.config.utils import MODULE2PACKAGE

MODULE2PACKAGE['mmseg'] = 'mmseg'
MODULE2PACKAGE['mmkerneldna'] = 'mmkerneldna'
