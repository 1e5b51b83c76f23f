"""Let ``_base_ = 'mmseg::...'`` and ``_base_ = 'mmkerneldna::...'`` resolve.

mmengine maps a scope to the *distribution* it looks up. Its entry for mmseg names ``mmsegmentation``, while the
maintained build is called ``onedl-mmsegmentation``; the import name works for both.

From then on mmengine builds everything of such a base in the registries of that scope. This package has none of its own (what
it adds is in the root's), and its configs are of mmdet or mmseg, as their ``default_scope`` says: a base of ours is read like
a file beside the config.
"""

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

MODULE2PACKAGE['mmseg'] = 'mmseg'
MODULE2PACKAGE['mmkerneldna'] = 'mmkerneldna'

_path_and_scope = Config._get_cfg_path


def _without_our_scope(cfg_path: str, filename: str) -> tuple[str, str | None]:
    path, scope = _path_and_scope(cfg_path, filename)
    return path, None if scope == 'mmkerneldna' else scope


Config._get_cfg_path = staticmethod(_without_our_scope)
