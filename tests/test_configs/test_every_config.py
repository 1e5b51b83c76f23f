"""Every config builds its model, which predicts at a small size; every variant fits every net that the configs have."""

from copy import deepcopy
from functools import cache, lru_cache
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
from mmkerneldna.launch.variant import find_change, use_variant
from mmkerneldna.layers import ChildConv2d, CondConv2d, DCDConv2d, DyConv2d, FDConv2d, KWConv2d, MoEConv2d, ODConv2d, SEConv2d
from mmkerneldna.variants import RIVALS

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / 'configs').glob('[!_]*/*.py'))
LEAVES = [name for name in CONFIGS if any(f'_{part}-' in name for part in RIVALS)]  # rivals with a result in docs/
TRAINED = [name for name in CONFIGS if '_kdna-r18' in name]
SIDE = 64


@cache
def parse(name):
    return Config.fromfile(ROOT / name)


def load(name):
    cfg = deepcopy(parse(name))
    cfg.launcher = 'none'
    unsync_batch_norm(cfg)
    if cfg.model.get('data_preprocessor', {}).get('size'):
        cfg.model.data_preprocessor.size = (SIDE, SIDE)
    inner = cfg.model.backbone.get('module', {})
    if inner.get('type') == 'TIMMBackbone':
        inner.update(pretrained=False, depths=(1, 1, 1, 1))  # of three and nine blocks
    return cfg


@lru_cache(maxsize=1)
def build(model_text, scope):
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(Config.fromstring(model_text, '.py').model)


def batch(cfg):
    """Two images, as the model's data_preprocessor takes them."""
    if cfg.default_scope == 'mmdet':
        return demo_mm_inputs(2, [[3, SIDE, SIDE]] * 2, num_classes=2, with_mask=True)
    meta = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), (SIDE, SIDE))
    labels = torch.randint(0, 2, (1, SIDE, SIDE))
    samples = [SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=labels)) for _ in range(2)]
    images = [torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8) for _ in range(2)]
    return dict(inputs=images, data_samples=samples)


def run(cfg, mode):
    model = build(Config(dict(model=cfg.model)).pretty_text, cfg.default_scope).train(mode == 'loss')
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.set_grad_enabled(mode == 'loss'):
        return model, model(**model.data_preprocessor(batch(cfg), training=mode == 'loss'), mode=mode)


@pytest.mark.parametrize('name', [name for name in CONFIGS if name not in LEAVES])
def test_predicts(name):
    cfg = load(name)
    if 'TIMMBackbone' in str(cfg.model.backbone):
        pytest.importorskip('timm', reason='timm is optional: pip install timm')
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


NETS = {
    'r18': 'configs/faster_rcnn/faster-rcnn_r18_fpn_1x_coco.py',
    'r50': 'configs/faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'mobilenet-v2': 'configs/faster_rcnn/faster-rcnn_mobilenet-v2_fpn_1x_coco.py',
    'r18-d8': 'configs/fcn/fcn_r18-d8_4xb4-160k_ade20k-512x512.py',
    'mobilenet-v2-d8': 'configs/fcn/fcn_mobilenet-v2-d8_4xb4-160k_ade20k-512x512.py',
}
# What a name promises, written down apart from the table: the layer, one of its attributes, its value
PROMISES = {
    'se': (SEConv2d, None, None),
    'condconv8x': (CondConv2d, 'num_experts', 8),
    'dyconv4x': (DyConv2d, 'num_experts', 4),
    'dcd': (DCDConv2d, None, None),
    'odconv1x': (ODConv2d, 'num_experts', 1),
    'odconv4x': (ODConv2d, 'num_experts', 4),
    'kw1x': (KWConv2d, None, None),
    'kw4x': (KWConv2d, None, None),
    'fdconv': (FDConv2d, None, None),
    'moe': (MoEConv2d, 'num_experts', 4),
}


@cache
def static_shapes(net):
    cfg = load(NETS[net])
    static = build(Config(dict(model=dict(cfg.model.backbone, init_cfg=None))).pretty_text, cfg.default_scope)
    return [tuple(o.shape) for o in features(static, torch.rand(2, 3, SIDE, SIDE))]


@pytest.mark.parametrize('net, name', [(net, name) for net in NETS for name in RIVALS])
def test_a_rival_fits_the_rest_and_is_what_its_name_says(net, name):
    """The static net's feature shapes, so neck and heads fit. In training mode: an untrained norm that does not
    normalise lets layers whose kernel grows with their input overflow."""
    cfg = load(NETS[net])
    dynamic = find_change(cfg, name).module
    outputs = features(dynamic, torch.rand(2, 3, SIDE, SIDE))
    assert [tuple(o.shape) for o in outputs] == static_shapes(net) and all(o.isfinite().all() for o in outputs)
    kind, attribute, value = PROMISES[name]
    layers = [m for m in dynamic.modules() if isinstance(m, kind)]
    assert layers and not any(
        isinstance(m, other) for m in dynamic.modules() for other, _, _ in PROMISES.values() if other is not kind
    )
    if value is not None:
        assert {getattr(m, attribute) for m in layers} == {value}


@pytest.mark.parametrize('net, most', [('r18', 5), ('mobilenet-v2', 6)])
def test_the_budgets_of_kernel_warehouse_are_those_of_their_names(net, most):
    sizes = {name: sum(p.numel() for p in find_change(load(NETS[net]), name).module.parameters()) for name in ('kw1x', 'kw4x')}
    static = sum(
        p.numel()
        for p in build(
            Config(dict(model=dict(load(NETS[net]).model.backbone, init_cfg=None))).pretty_text, 'mmdet'
        ).parameters()
    )
    assert static <= sizes['kw1x'] < 2 * static and 3 * static < sizes['kw4x'] < most * static


@pytest.mark.parametrize('name', LEAVES)
def test_a_leaf_of_a_rival_is_the_variant_of_its_static_twin(name):
    rival = next(part for part in RIVALS if f'_{part}-' in name)
    cfg, static = parse(name).to_dict(), deepcopy(parse(name.replace(f'_{rival}-', '_')))
    use_variant(static, rival)
    static = static.to_dict()
    static.pop('variant')
    assert cfg == static


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
