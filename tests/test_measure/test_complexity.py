"""Multiply-accumulates and parameters against closed formulas and the figures of the papers."""

from pathlib import Path

import pytest
import torch
from mmdet.models.backbones import ResNet
from mmengine.config import Config
from torch import nn

from mmkerneldna.measure.benchmark import build_from_config
from mmkerneldna.measure.complexity import count_macs, deployed_params, measure_complexity
from mmkerneldna.modules import count_parameters
from mmkerneldna.sharing import share_kernels

ROOT = Path(__file__).resolve().parents[2]
C, H, W, R = 8, 12, 10, 4
KERNEL, GATE_CONVS = C * C * 9, 2 * C * (C // R)
GATE = GATE_CONVS + 2 * (C // R) + C  # two 1x1 convs, BN weight and bias, bias of the second conv
SCALES = C + 9


def pair(shared=True):
    net = nn.Sequential(nn.Conv2d(C, C, 3, padding=1, bias=False), nn.Conv2d(C, C, 3, padding=1, bias=False))
    return share_kernels(net, {'0': '1'}) if shared else net


def test_params_of_a_tied_pair():
    net = pair()
    assert count_parameters(net) == KERNEL + GATE + SCALES
    assert deployed_params(net) == 2 * KERNEL + GATE


def test_params_without_sharing_are_the_same():
    assert count_parameters(pair(False)) == deployed_params(pair(False)) == 2 * KERNEL


def test_a_child_that_owns_its_kernel_already_adds_nothing():
    net = pair()
    net[0].weight = nn.Parameter(net[0].weight.detach().clone())
    assert count_parameters(net) == 2 * KERNEL + GATE + SCALES
    assert deployed_params(net) == 2 * KERNEL + GATE


def test_macs_of_a_tied_pair():
    net = pair().eval()
    assert count_macs(lambda: net(torch.zeros(1, C, H, W))) == 2 * KERNEL * H * W + GATE_CONVS


def test_macs_of_groups_stride_and_linear():
    net = nn.Sequential(nn.Conv2d(C, 2 * C, 3, stride=2, padding=1, groups=4), nn.Flatten(), nn.Linear(2 * C * 30, 7))
    expected = 2 * C * (C // 4) * 9 * 30 + 2 * C * 30 * 7
    assert count_macs(lambda: net(torch.zeros(1, C, 12, 10))) == expected


@pytest.mark.parametrize('depth, width, published', [(18, 512, 1.814), (50, 2048, 4.089)])
def test_resnets_have_their_published_gmacs(depth, width, published):
    trunk = measure_complexity(ResNet(depth=depth), (224, 224))
    assert round(trunk.gmacs + width * 1000 / 1e9, 3) == published


def test_params_in_millions():
    known = measure_complexity(ResNet(depth=18), (32, 32))
    assert round(known.unique_params_m + (512 * 1000 + 1000) / 1e6, 2) == 11.69


@pytest.mark.parametrize(
    'name', ['configs/shapes/faster-rcnn_kdna-r18_fpn_shapes.py', 'configs/shapes/upernet_kdna-r18_shapes.py']
)
def test_whole_model_counts_every_conv_and_linear(name):
    model = build_from_config(Config.fromfile(ROOT / name))
    counted = []

    def count(module, inputs, output):
        pixels = output.numel() // output.shape[1]
        counted.append(pixels * module.weight.numel())

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    gmacs = measure_complexity(model, (64, 96)).gmacs
    assert sum(counted) == round(gmacs * 1e9) > 1e8


def test_training_mode_is_put_back():
    net = nn.Sequential(nn.Conv2d(3, C, 1), pair()).train()
    net[1][0].gate.norm.eval()
    modes = [m.training for m in net.modules()]
    measure_complexity(net, (8, 8))
    assert [m.training for m in net.modules()] == modes and len(set(modes)) == 2
