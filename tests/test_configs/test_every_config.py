"""Every config builds its model, which predicts at a small size; each distinct model once."""
from copy import deepcopy
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch.nn.modules.batchnorm import _BatchNorm

from mmkerneldna.launch.config import unsync_batch_norm
from mmkerneldna.layers import ChildConv2d

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / 'configs').glob('[!_]*/*.py'))
RIVALS = [name for name in CONFIGS if "type='DynamicConvs'" in (ROOT / name).read_text()]
TRAINED = [name for name in CONFIGS if '_kdna-r18' in name]
SIDE = 64


@lru_cache(maxsize=None)
def parse(name):
    return Config.fromfile(ROOT / name)


def load(name):
    cfg = deepcopy(parse(name))
    cfg.launcher = 'none'
    unsync_batch_norm(cfg)
    if cfg.model.get('data_preprocessor', {}).get('size'):
        cfg.model.data_preprocessor.size = (SIDE, SIDE)
    return cfg


@lru_cache(maxsize=1)
def build(model_text, scope):
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(Config.fromstring(model_text, '.py').model)


def batch(cfg):
    """Two images, as the model's data_preprocessor takes them."""
    if cfg.default_scope == 'mmdet':
        return demo_mm_inputs(2, [[3, SIDE, SIDE]] * 2, num_classes=2, with_mask=True)
    meta = {key: (SIDE, SIDE) for key in ('img_shape', 'ori_shape', 'pad_shape')}
    labels = torch.randint(0, 2, (1, SIDE, SIDE))
    samples = [SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=labels)) for _ in range(2)]
    images = [torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8) for _ in range(2)]
    return dict(inputs=images, data_samples=samples)


def run(cfg, mode):
    model = build(Config(dict(model=cfg.model)).pretty_text, cfg.default_scope).train(mode == 'loss')
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.set_grad_enabled(mode == 'loss'):
        return model, model(**model.data_preprocessor(batch(cfg), training=mode == 'loss'), mode=mode)


predicted = set()


@pytest.mark.parametrize('name', [name for name in CONFIGS if name not in RIVALS])
def test_predicts(name):
    cfg = load(name)
    text = Config(dict(model=cfg.model)).pretty_text
    if text in predicted:
        return
    predicted.add(text)
    model, results = run(cfg, 'predict')
    assert any(isinstance(m, ChildConv2d) for m in model.modules()) == ('_kdna-' in name)
    assert len(results) == 2
    for result in results:
        if cfg.default_scope == 'mmseg':
            assert result.seg_logits.data.shape[1:] == (SIDE, SIDE) and result.seg_logits.data.isfinite().all()
        else:
            assert result.pred_instances.scores.isfinite().all()
            assert ('masks' in result.pred_instances) == ('mask_head' in cfg.model.get('roi_head', {}))


@torch.no_grad()
def features(backbone, images):
    """In training mode, norms that the config holds in evaluation mode included (upstream's train returns None)."""
    backbone.train()
    for norm in filter(lambda m: isinstance(m, _BatchNorm), backbone.modules()):
        norm.train()
    return backbone(images)


@pytest.mark.parametrize('name', RIVALS)
def test_rival_backbones_fit_the_rest(name):
    """The static net's feature shapes, so neck and heads fit. In training mode: an untrained norm that does not
    normalise lets layers whose kernel grows with their input overflow."""
    cfg = load(name)
    backbone = cfg.model.backbone
    for key in ('init_cfg', 'norm_cfg', 'norm_eval', 'frozen_stages', 'style'):  # nothing that changes a shape
        backbone.module.pop(key, None)
    text = Config(dict(model=backbone)).pretty_text
    if text in predicted:
        return
    predicted.add(text)
    images = torch.rand(2, 3, SIDE, SIDE)
    static = build(Config(dict(model=backbone.module)).pretty_text, cfg.default_scope)
    shapes = [tuple(o.shape) for o in features(static, images)]
    dynamic = build(text, cfg.default_scope)
    outputs = features(dynamic, images)
    assert [tuple(o.shape) for o in outputs] == shapes and all(o.isfinite().all() for o in outputs)
    assert sum(type(m).__name__ == backbone.conv.type for m in dynamic.modules()) > 0


def test_rivals_differ_in_one_line():
    """Two rivals' leaves over the same base: the conv, and a schedule where the paper has one."""
    for name in RIVALS:
        rival = Path(name).stem.split('_')[1].split('-')[0]
        twin = ROOT / name.replace(f'_{rival}-', '_condconv8x-')
        ours, theirs = parse(name).to_dict(), parse(str(twin.relative_to(ROOT))).to_dict()
        for cfg in (ours, theirs):
            for key in ('conv', 'include'):
                cfg['model']['backbone'].pop(key, None)
            cfg.pop('conv'), cfg.pop('custom_hooks', None)
        assert ours == theirs, name


@pytest.mark.parametrize('name', TRAINED)
def test_trains(name):
    """The loss reaches the kernels, the gates and the modulations."""
    model, losses = run(load(name), 'loss')
    loss, _ = model.parse_losses(losses)
    loss.backward()
    assert loss.isfinite()
    child = next(m for m in model.modules() if isinstance(m, ChildConv2d))
    for parameter in child.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()
    assert child.filter_scale.grad.abs().sum() > 0


def test_swap_is_small():
    """The leaves over a static config change the backbone and nothing else."""
    for name in CONFIGS:
        static = name.replace('_kdna-', '_')
        if '_kdna-' not in name or not (ROOT / static).exists():
            continue
        ours, theirs = parse(name).to_dict(), parse(static).to_dict()
        ours['model'].pop('backbone'), theirs['model'].pop('backbone')
        for cfg in (ours, theirs):
            cfg['model'].pop('pretrained', None), cfg.pop('custom_imports', None)
        assert ours == theirs, name


def test_ade20k_batches_have_one_size():
    """SegDataPreProcessor refuses to stack crops without a size."""
    for name in CONFIGS:
        if 'ade20k' in name:
            assert parse(name).model.data_preprocessor.size == (512, 512), name


def test_every_config_says_how_to_run_it():
    for name in CONFIGS:
        text = (ROOT / name).read_text()
        assert text.startswith('"""') and name in text.split('"""')[1], name


def test_installed_configs_resolve():
    cfg = get_config('mmkerneldna::mask_rcnn/mask-rcnn_kdna-r50_fpn_1x_coco.py')
    assert cfg.model.backbone.type == 'KDNAResNet'
    assert get_config('mmkerneldna::_base_/datasets/shapes_detection.py').data_root == 'data/shapes/'
