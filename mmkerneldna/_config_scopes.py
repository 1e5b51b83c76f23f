"""Let ``_base_ = 'mmseg::...'`` and ``_base_ = 'mmkerneldna::...'`` resolve, and any such base at once.

mmengine maps a scope to the *distribution* it looks up. Its entry for mmseg names ``mmsegmentation``, while the
maintained build is called ``onedl-mmsegmentation``; the import name works for both.

From then on mmengine builds everything of such a base in the registries of that scope. This package has none of its own (what
it adds is in the root's), and its configs are of mmdet or mmseg, as their ``default_scope`` says: a base of ours is read like
a file beside the config.

For each base mmengine first reads all metafiles of its package (about a hundred, nearly a second), to find the config by a name
that they don't have: they end in ``.py``, and it takes that away. Then it takes the file of that name, which is taken here at
once. ``get_config``, which does look for the name as it is, reads each metafile once.
"""

from functools import cache
from pathlib import Path

import mmengine.config.config as config_module
import mmengine.config.utils as config_utils
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

MODULE2PACKAGE['mmseg'] = 'mmseg'
MODULE2PACKAGE['mmkerneldna'] = 'mmkerneldna'

_path_and_scope = Config._get_cfg_path
_path_by_metafiles = config_utils._get_external_cfg_path


def _without_our_scope(cfg_path: str, filename: str) -> tuple[str, str | None]:
    path, scope = _path_and_scope(cfg_path, filename)
    return path, None if scope == 'mmkerneldna' else scope


def _path_of_base(package_path: str, cfg_file: str) -> str:
    path = Path(package_path, '.mim', 'configs', cfg_file)
    return str(path) if path.is_file() else _path_by_metafiles(package_path, cfg_file)


Config._get_cfg_path = staticmethod(_without_our_scope)
config_module._get_external_cfg_path = _path_of_base
config_utils.load = cache(config_utils.load)
