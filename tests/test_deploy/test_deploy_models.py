"""Whole detectors and segmenters, deployed, fused, and through upstream's inferencers."""

import copy

import numpy as np
import pytest
import torch
from helpers import assert_same
from mmcv.cnn import fuse_conv_bn
from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import mmkerneldna  # noqa: F401
from mmkerneldna.deploy import deploy
from mmkerneldna.deploy.probe import make_probe
from mmkerneldna.layers import ChildConv2d

CHANNELS = [8, 16, 32, 64]
BACKBONE = dict(type='KDNAResNet', depth=18, base_channels=8, out_indices=(0, 1, 2, 3))
PLAN = dict(type='auto', min_kernel_params=1, across_stages=True)
NECK = dict(
    type='KernelDNA',
    plan=PLAN,
    module=dict(type='FPN', in_channels=CHANNELS, out_channels=16, num_outs=5, norm_cfg=dict(type='BN')),
)
CONFIGS = dict(
    faster='mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    mask='mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    cascade='mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
    retina='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    upernet='mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py',
    fcn='mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py',
)
WIDTHS = dict(in_channels=16, feat_channels=16, fc_out_channels=32, conv_out_channels=16, out_channels=16, num_classes=4)


def narrowed(cfg):
    """A detection head's config with all widths at 16 channels, so that a test takes a second."""
    if isinstance(cfg, (list, tuple)):
        return [narrowed(value) for value in cfg]
    if not isinstance(cfg, dict):
        return cfg
    return {key: WIDTHS[key] if key in WIDTHS and type(value) is int else narrowed(value) for key, value in cfg.items()}


def small_config(name):
    cfg = get_config(CONFIGS[name])
    model = cfg.model
    model.backbone = BACKBONE
    if name in ('upernet', 'fcn'):
        model.decode_head.update(in_channels=CHANNELS if name == 'upernet' else 64, channels=16, num_classes=4)
        model.auxiliary_head.update(in_channels=32, channels=16, num_classes=4)
        if name == 'upernet':
            model.decode_head = dict(type='KernelDNA', plan=PLAN, module=model.decode_head.to_dict())
    else:
        model.neck = NECK
        for key in ('rpn_head', 'roi_head', 'bbox_head'):
            if key in model:
                model[key] = narrowed(model[key].to_dict())
    return cfg


def small_model(name):
    cfg = small_config(name)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
        if isinstance(module, ChildConv2d):
            nn.init.normal_(module.filter_scale, 0, 0.2)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize('name', CONFIGS)
def test_raw_outputs_of_whole_models(name):
    model = small_model(name)
    probe = make_probe(model, torch.randn(1, 3, 96, 64))  # another size than that of the default probe
    expected = probe(model)
    deployed = deploy(model)
    assert_same(probe(deployed), expected)
    assert_same(probe(fuse_conv_bn(copy.deepcopy(model))), expected)
    assert not any(isinstance(m, ChildConv2d) for m in deployed.modules())
    left = [path for path, m in deployed.named_modules() if isinstance(m, _BatchNorm)]
    assert list(deployed.deploy_report.norms_left) == left
    assert all(path.startswith('auxiliary_head') for path in left)  # not there at inference, hence not reached


def inferencer_of(name, tmp_path):
    """Upstream's inferencer on a config and a checkpoint with randomised BN."""
    from mmdet.apis import DetInferencer
    from mmseg.apis import MMSegInferencer

    cfg, model = small_config(name), small_model(name)
    cfg.custom_imports = dict(imports=['mmkerneldna'], allow_failed_imports=False)
    cfg.dump(tmp_path / 'config.py')
    classes = ['a', 'b', 'c', 'd']
    meta = dict(dataset_meta=dict(CLASSES=classes, PALETTE=[[i, i, i] for i in range(4)]))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), tmp_path / 'weights.pth')
    make = DetInferencer if cfg.default_scope == 'mmdet' else MMSegInferencer
    return model, make(str(tmp_path / 'config.py'), str(tmp_path / 'weights.pth'), device='cpu', show_progress=False)


def predict(inferencer):
    image = np.random.default_rng(0).integers(0, 255, (80, 120, 3), dtype=np.uint8)
    result = inferencer(image, return_datasamples=True)
    sample = result['predictions'][0] if isinstance(result, dict) else result
    if 'pred_instances' in sample:
        return torch.cat([sample.pred_instances.bboxes, sample.pred_instances.scores[:, None] * 100], 1)
    return sample.seg_logits.data


@pytest.mark.parametrize('name', ['retina', 'upernet'])
def test_upstream_inferencers(name, tmp_path):
    model, inferencer = inferencer_of(name, tmp_path)
    loaded = predict(inferencer)
    assert len(loaded) > 0
    for variant in (model, fuse_conv_bn(copy.deepcopy(model)), deploy(model)):
        variant.cfg, variant.dataset_meta = inferencer.model.cfg, inferencer.model.dataset_meta
        inferencer.model = variant
        torch.testing.assert_close(predict(inferencer), loaded, rtol=1e-3, atol=1e-3)
