"""Released detectors: the backbone under ``backbone.`` in the authors' names, neck and heads in mmdet's."""

import argparse

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.hub import get_config
from test_kernel_warehouse_checkpoint import released_mobilenet, released_resnet18
from test_odconv_checkpoint import Released

from mmkerneldna.checkpoints import convert_kernelwarehouse, convert_odconv, kernelwarehouse_setting
from mmkerneldna.checkpoints.loading import CheckpointError, read_checkpoint


def odconv_resnet18():
    net = Released(kernel_num=4)
    net.resnet(torch.randn(1, 3, 64, 64), net.basic, (2, 2, 2, 2), 1)
    return net.state


def detector(backbone, channels):
    """Faster R-CNN of upstream's config with another backbone."""
    register_all_modules(init_default_scope=True)
    model = get_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py').model
    model.backbone = backbone
    model.neck.in_channels = channels
    return MODELS.build(model)


RESNET18, MOBILENET = dict(type='mmdet.ResNet', depth=18), dict(type='mmdet.MobileNetV2', out_indices=(2, 3, 5, 7))
CASES = {
    'odconv-r18': (odconv_resnet18, convert_odconv, RESNET18, dict(type='ODConv2d', num_experts=4), [64, 128, 256, 512]),
    'kw1x-r18': (
        lambda: released_resnet18(1).state,
        convert_kernelwarehouse,
        RESNET18,
        dict(type='KWConv2d'),
        [64, 128, 256, 512],
    ),
    'kw1x-mobilenet': (
        lambda: released_mobilenet(1, False).state,
        convert_kernelwarehouse,
        MOBILENET,
        dict(type='KWConv2d'),
        [24, 32, 96, 1280],
    ),
}


@pytest.mark.parametrize('name', CASES)
@torch.no_grad()
def test_a_detector_loads_whole(name):
    release, convert, module, conv, channels = CASES[name]
    backbone = release()
    model = detector(dict(type='DynamicConvs', module=module, conv=conv), channels)
    others = {key: torch.rand(value.shape) for key, value in model.state_dict().items() if not key.startswith('backbone.')}
    whole = {**{f'backbone.{key}': value for key, value in backbone.items()}, **others}
    converted = convert(dict(state_dict={f'module.{key}': value for key, value in whole.items()}, meta=dict(epoch=12)))
    model.load_state_dict(converted, strict=True)
    assert all(torch.equal(converted[key], value) for key, value in others.items())
    alone = convert(backbone)
    assert {key for key in converted if key.startswith('backbone.')} == {f'backbone.{key}' for key in alone}
    assert all(torch.equal(converted[f'backbone.{key}'], value) for key, value in alone.items())


def test_a_classifier_beside_the_backbone_is_left_out():
    whole = {**{f'backbone.{key}': value for key, value in odconv_resnet18().items()}, 'head.fc.weight': torch.rand(2, 2)}
    assert set(convert_odconv(whole)) == set(convert_odconv(odconv_resnet18()))


def test_the_setting_of_a_detector():
    state = {f'backbone.{key}': value for key, value in released_resnet18(4).state.items()}
    setting = kernelwarehouse_setting(dict(state_dict=state))
    assert (setting.arch, setting.scale) == ('resnet18', '4x')


def test_weights_beside_a_namespace_of_settings(tmp_path):
    """KernelWarehouse's trainer stores its arguments."""
    args = argparse.Namespace(model='kw1x_resnet18', lr=0.1, sharing=('layer', 'conv'), output_dir=None)
    torch.save(dict(model=released_resnet18(1).state, args=args, epoch=300), tmp_path / 'released.pth')
    held = read_checkpoint(tmp_path / 'released.pth')
    assert held['args'] == args and convert_kernelwarehouse(held)


class LikeNamespace(argparse.Namespace):
    """Another type, whatever it inherits."""


def test_no_other_type_is_let_through(tmp_path):
    torch.save(dict(model={}, args=LikeNamespace(lr=0.1)), tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='LikeNamespace besides weights.*--unsafe-checkpoint'):
        read_checkpoint(tmp_path / 'a.pth')
