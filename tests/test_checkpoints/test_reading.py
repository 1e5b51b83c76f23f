"""What real files wrap around their weights."""

import pytest
import torch
from mmdet.models import MobileNetV2, ResNet
from mmengine.model import ExponentialMovingAverage
from torch import nn

from mmkerneldna.checkpoints import reading
from mmkerneldna.checkpoints.loading import CheckpointError
from mmkerneldna.checkpoints.reading import backbone_state_dict, plain_state_dict

STATE = {'conv.weight': torch.rand(2, 3, 1, 1), 'norm.running_mean': torch.rand(2), 'norm.num_batches_tracked': torch.tensor(3)}
OTHER = {key: value + 1 for key, value in STATE.items()}


def prefixed(prefix, state=STATE):
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    'checkpoint',
    [
        STATE,
        dict(state_dict=STATE, meta=dict(epoch=3)),
        dict(model=STATE, args=dict(lr=1), epoch=4),
        dict(model=dict(state_dict=STATE)),
        dict(state_dict=prefixed('module.')),
        dict(model=prefixed('module._orig_mod.')),
        dict(ema_state_dict={'steps': torch.tensor(5), **prefixed('module.')}),
        dict(model_ema=STATE),
        prefixed('ema_'),
        dict(state_dict=prefixed('module.ema_')),
        dict(state_dict=STATE, ema_state_dict=prefixed('module.', OTHER)),
        dict(state_dict={**STATE, **{f'ema_{key.replace(".", "_")}': value for key, value in OTHER.items()}}),
        dict(state_dict={**STATE, **prefixed('ema_', OTHER)}),
        {**STATE, 'rng': [1, 2], '_extra_state': None},
    ],
    ids=lambda checkpoint: ' '.join(list(checkpoint)[:2]),
)
def test_whatever_is_wrapped_around(checkpoint):
    read = plain_state_dict(checkpoint)
    assert list(read) == list(STATE)
    assert all(torch.equal(read[key], STATE[key]) for key in STATE)


def test_the_averaged_model_of_mmengine():
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    average = ExponentialMovingAverage(net, momentum=0.5, update_buffers=True)
    assert list(plain_state_dict(average.state_dict())) == list(net.state_dict())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_becomes_fp32(dtype, monkeypatch):
    weight, logged = torch.randn(4, 3).to(dtype), []
    monkeypatch.setattr(reading, 'print_log', lambda message, logger: logged.append(message))
    read = plain_state_dict({'a.weight': weight, 'a.count': torch.tensor(3)}, 'half.pth')
    assert logged == ['half.pth: 1 of 2 entries are in half precision, read as fp32']
    assert read['a.weight'].dtype == torch.float32 and torch.equal(read['a.weight'], weight.float())
    assert read['a.count'].dtype == torch.int64


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_a_diverged_training_is_named(value):
    broken = {f'layer{i}.weight': torch.tensor([1.0, value]) for i in range(7)}
    with pytest.raises(
        CheckpointError,
        match=r'diverged.pth is .*: 7 of 10 entries hold NaN or infinite numbers '
        r'\(layer0.weight, layer1.weight, layer2.weight, layer3.weight, layer4.weight, ...\)',
    ):
        plain_state_dict(dict(state_dict={**STATE, **broken}), 'diverged.pth')


@pytest.mark.parametrize('checkpoint', [{}, dict(state_dict={}), dict(epoch=3, lr=0.1), dict(state_dict=dict(a=3))])
def test_no_weights_at_all(checkpoint):
    with pytest.raises(CheckpointError, match="some.pth holds no weights.*or a dict with one under 'state_dict'"):
        plain_state_dict(checkpoint, 'some.pth')


def torchvision_mobilenet_v2():
    """torchvision's module tree, described by its public names: features.P.conv.L of convs, norms and activations."""

    def block(*widths, groups=1):
        return nn.Sequential(nn.Conv2d(*widths, bias=False, groups=groups), nn.BatchNorm2d(widths[1]), nn.ReLU6())

    features, width = [block(3, 32, 3)], 32
    for expand, out, count in ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)):
        for _ in range(count):
            hidden = width * expand
            layers = [block(width, hidden, 1)] if expand > 1 else []
            layers += [block(hidden, hidden, 3, groups=hidden), *block(hidden, out, 1)[:2]]
            features.append(nn.ModuleDict(dict(conv=nn.Sequential(*layers))))
            width = out
    features.append(block(width, 1280, 1))
    return nn.ModuleDict(dict(features=nn.Sequential(*features), classifier=nn.Sequential(nn.Dropout(), nn.Linear(1280, 9))))


def torchvision_resnet(depth):
    """mmdet's names, as the fact is, and a classifier."""
    net = ResNet(depth)
    net.fc = nn.Linear(8, 9)
    return net


@pytest.mark.parametrize(
    'theirs, ours',
    [
        (lambda: torchvision_resnet(18), lambda: ResNet(18)),
        (lambda: torchvision_resnet(50), lambda: ResNet(50)),
        (torchvision_mobilenet_v2, MobileNetV2),
    ],
    ids=['r18', 'r50', 'mobilenet-v2'],
)
def test_names_of_torchvision(theirs, ours):
    with torch.device('meta'):
        expected, released = ours().state_dict(), theirs().state_dict()
    read = backbone_state_dict({key: torch.ones(value.shape) for key, value in released.items()})
    assert {key: value.shape for key, value in read.items()} == {key: value.shape for key, value in expected.items()}


def test_the_backbone_of_a_detector():
    detector = {**prefixed('backbone.'), 'neck.conv.weight': torch.ones(1), 'fc.weight': torch.ones(1)}
    assert list(backbone_state_dict(dict(state_dict=prefixed('module.', detector)))) == list(STATE)
    assert list(backbone_state_dict({**STATE, 'fc.weight': torch.ones(1), 'classifier.1.bias': torch.ones(1)})) == list(STATE)
