"""Sources and settings that can't be used: one clear error, the target as it was. And the forms that can."""

import pytest
import torch
from mmseg.models.backbones.resnet import ResNet

from mmkerneldna.backbones import KDNAMobileNetV2, KDNAResNet
from mmkerneldna.checkpoints.loading import CheckpointError
from mmkerneldna.derive import DeriveError, derive
from mmkerneldna.derive.source import rename
from mmkerneldna.sharing import share_kernels
from tests.helpers import randomise


def net(depth=18, width=8):
    torch.manual_seed(depth)
    return randomise(ResNet(depth, base_channels=width, stem_channels=width))


def target(**kwargs):
    return KDNAResNet(18, base_channels=8, **kwargs)


def nan_state():
    state = net().state_dict()
    state['layer2.0.conv1.weight'][0] = float('nan')
    return state


def without(prefix):
    return {k: v for k, v in net().state_dict().items() if not k.startswith(prefix)}


BAD = {
    'another width': (lambda: net(width=16), 'of another shape .*conv1.weight .16, 3, 7, 7. instead of'),
    'another kind of block': (lambda: net(50), 'layer1 has 3 blocks in the source and 2 in the target'),
    'deeper': (lambda: net(34), 'layer1 has 3 blocks in the source and 2 in the target'),
    'a part missing': (lambda: without('layer4'), 'missing .layer4.0.conv1.weight'),
    'another family': (lambda: KDNAMobileNetV2(0.5, sharing=None), 'of another family: .*kinds of entries of KDNAResNet'),
    'NaN': (nan_state, 'NaN or infinite numbers .layer2.0.conv1.weight'),
    'KernelDNA already': (lambda: target(), 'a KernelDNA net already'),
    'no weights': (lambda: {'meta': 1}, 'holds no weights'),
    'no such file': (lambda: '/nowhere/net.pth', 'does not exist'),
}


@pytest.mark.parametrize('case', BAD)
def test_a_source_that_does_not_fit_leaves_the_target_as_it_was(case):
    make, message = BAD[case]
    module = randomise(target())
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises((DeriveError, CheckpointError), match=message):
        derive(module, make())
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


def broken_images():
    yield torch.randn(2, 3, 32, 32)
    yield torch.full((2, 3, 32, 32), float('inf'))


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(images=[]), 'no batch at all'),
        (dict(images=[torch.zeros(2, 1, 32, 32)]), r'tensor \(2, 1, 32, 32\)'),
        (dict(images=[torch.zeros(2, 3, 32, 32, dtype=torch.uint8)]), 'uint8'),
        (dict(images=broken_images()), 'NaN or infinite pixels'),
        (dict(steps=3), 'need images'),
        (dict(steps=-1), 'steps=-1'),
        (dict(parents='best'), "parents='best' must be one of"),
    ],
)
def test_settings_and_images_that_can_not_be_used(settings, message):
    module = target()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(DeriveError, match=message):
        derive(module, net(), **settings)
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


def test_an_error_late_in_the_reconstruction_puts_everything_back():
    module = target()
    module.train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    flags = [p.requires_grad for p in module.parameters()]
    batches = [torch.randn(2, 3, 32, 32) for _ in range(3)] + [torch.full((2, 3, 32, 32), float('nan'))]
    with pytest.raises(DeriveError, match='pixels'):
        derive(module, net(), iter(batches), steps=5, calibration_batches=2)
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert flags == [p.requires_grad for p in module.parameters()] and module.training


FORMS = {
    'module': lambda source: source,
    'of a detector': lambda source: {f'backbone.{k}': v for k, v in source.state_dict().items()} | {'n.weight': torch.ones(3)},
    'data parallel': lambda source: {f'module.{k}': v for k, v in source.state_dict().items()},
    'nested': lambda source: dict(state_dict=source.state_dict(), meta=dict(epoch=3)),
    'ema': lambda source: {f'ema_{k}': v for k, v in source.state_dict().items()},
    'with a classifier': lambda source: source.state_dict() | {'fc.weight': torch.ones(10, 64), 'fc.bias': torch.ones(10)},
    'half': lambda source: {k: v.half() if v.is_floating_point() else v for k, v in source.state_dict().items()},
}


@pytest.mark.parametrize('form', FORMS)
def test_forms_of_the_same_weights_give_the_same_net(form):
    source, module = net(), target(sharing=None)
    if form == 'half':
        source = source.half().float()
    derive(module, FORMS[form](source))
    theirs = source.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in module.state_dict().items() if key.startswith('layer2'))


def test_a_file(tmp_path):
    source, module = net(), target(sharing=None)
    torch.save(dict(state_dict=source.state_dict()), tmp_path / 'net.pth')
    derive(module, str(tmp_path / 'net.pth'))
    assert torch.equal(module.conv1.weight, source.conv1.weight)


def test_a_whole_model_takes_a_backbone_only_if_partial_is_allowed():
    model = torch.nn.Module()
    model.backbone = target()
    model.head = torch.nn.Conv2d(64, 3, 1)
    source = net()
    with pytest.raises(DeriveError, match='missing .head.weight, head.bias'):
        derive(model, source)
    head = model.head.weight.clone()
    report = derive(model, source, partial=True)
    assert report.kept == ['head.weight', 'head.bias'] and torch.equal(model.head.weight, head)
    assert torch.equal(model.backbone.conv1.weight, source.conv1.weight)


def test_a_parent_outside_the_target_is_refused():
    module = share_kernels(net(), {'layer3.1.conv1': 'layer3.1.conv2'})
    with pytest.raises(DeriveError, match='give the module that holds child and parent'):
        derive(module.layer3[1].conv1, net())


def test_names_of_mmseg_and_torchvision():
    wanted = ['layer2.0.expand_conv.conv.weight', 'layer1.0.linear_conv.bn.bias', 'layer1.0.depthwise_conv.conv.weight']
    value = torch.zeros(1)
    mmseg = {'layer2.0.conv.0.conv.weight': value, 'layer1.0.conv.1.bn.bias': value, 'layer1.0.conv.0.conv.weight': value}
    torchvision = {'features.2.conv.0.0.weight': value, 'features.1.conv.2.bias': value, 'features.1.conv.0.0.weight': value}
    assert set(rename(mmseg, wanted)) == set(rename(torchvision, wanted)) == set(wanted)
