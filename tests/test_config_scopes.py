"""Configs of this package as the base of a user's own, through mmengine alone."""

from pathlib import Path

import mmdet
import pytest
from mmengine.config import Config
from mmengine.config.utils import _get_cfg_metainfo
from mmengine.hub import get_config
from mmengine.registry import TRANSFORMS, DefaultScope

import mmkerneldna  # noqa: F401

ROOT = Path(__file__).resolve().parents[1] / 'configs'
NAMES = (
    'shapes/upernet_kdna-r18_shapes.py',
    'shapes/faster-rcnn_kdna-r18_fpn_shapes.py',
    'mask_rcnn/mask-rcnn_kdna-r50_fpn_1x_coco.py',
    'upernet/upernet_kdna-r18_4xb4-160k_ade20k-512x512.py',
)


@pytest.mark.parametrize('name', NAMES)
def test_a_base_of_ours_is_the_config_itself(name, tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(f"_base_ = 'mmkerneldna::{name}'\n")
    assert Config.fromfile(path).to_dict() == Config.fromfile(ROOT / name).to_dict()


@pytest.mark.parametrize('name', NAMES[:2])
def test_its_transforms_are_found(name, tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(f"_base_ = 'mmkerneldna::{name}'\n")
    cfg = Config.fromfile(path)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        built = [TRANSFORMS.build(transform) for transform in cfg.train_dataloader.dataset.pipeline]
    assert {type(transform).__module__.split('.')[0] for transform in built} & {'mmdet', 'mmseg'}


def test_a_base_of_mmdet_keeps_its_scope(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text("_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'\n")
    assert Config.fromfile(path).model._scope_ == 'mmdet'


def test_no_metafile_is_read_for_a_base(monkeypatch):
    """There are a hundred, and each base would read them all."""
    monkeypatch.setattr('mmengine.config.utils.load', lambda path: pytest.fail(f'{path} was read'))
    assert Config.fromfile(ROOT / NAMES[2]).model.backbone.type == 'KDNAResNet'


def test_a_base_that_is_nowhere_is_named(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text("_base_ = 'mmdet::retinanet/no_such_config.py'\n")
    with pytest.raises(FileNotFoundError, match='no_such_config.py'):
        Config.fromfile(path)


def test_a_config_by_its_metafile_is_what_mmengine_finds():
    name = 'retinanet/retinanet_r18_fpn_1x_coco.py'
    package = Path(mmdet.__file__).parent
    expected = Config.fromfile(package / '.mim/configs' / name)
    assert get_config(f'mmdet::{name}').to_dict() == expected.to_dict()
    found = _get_cfg_metainfo(str(package), name)
    assert found['Config'] == f'configs/{name}' and found == _get_cfg_metainfo(str(package), name)
