"""init_cfg and load_from of a dense checkpoint on models with shared kernels."""

import pytest
import torch
from mmengine.registry import MODELS
from mmseg.models.backbones.resnet import ResNet
from torch import nn

from mmkerneldna.backbones import KDNAMobileNetV2, KDNAResNet
from mmkerneldna.checkpoints.loading import CheckpointError
from mmkerneldna.derive import DeriveError
from mmkerneldna.hooks.checkpoint_fit_hook import CheckpointFitHook
from tests.helpers import randomise


def dense(depth=18, width=8, **kwargs):
    torch.manual_seed(1)
    net = randomise(ResNet(depth, base_channels=width, stem_channels=width, **kwargs))
    net.eval()
    return net


@pytest.fixture
def dense_file(tmp_path):
    path = str(tmp_path / 'dense.pth')
    torch.save(dense().state_dict() | {'fc.weight': torch.zeros(10, 64)}, path)
    return path


def features(net):
    torch.manual_seed(7)
    net.eval()
    with torch.no_grad():
        return net(torch.randn(2, 3, 64, 64))


def test_init_cfg_derives_a_backbone(dense_file):
    net = KDNAResNet(18, base_channels=8, init_cfg=dict(type='Pretrained', checkpoint=dense_file))
    net.init_weights()
    source = dense()
    assert torch.equal(net.layer3[1].conv2.weight, source.layer3[0].conv2.weight)
    for ours, theirs in zip(features(net)[:2], features(source)[:2]):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_init_cfg_grows_the_static_net_of_the_same_depth(dense_file):
    net = KDNAResNet(18, sharing=None, base_channels=8, init_cfg=dict(type='Pretrained', checkpoint=dense_file))
    net.init_weights()
    for ours, theirs in zip(features(net), features(dense())):
        assert (ours - theirs).norm() < 1e-5 * theirs.norm()


def test_init_cfg_of_a_module_wrapped_in_kernel_dna(dense_file):
    inner = dict(
        type='mmseg.ResNet', depth=18, base_channels=8, stem_channels=8, init_cfg=dict(type='Pretrained', checkpoint=dense_file)
    )
    net = MODELS.build(dict(type='KernelDNA', module=inner, plan={'layer4.1.conv1': 'layer4.1.conv2'}))
    net.init_weights()
    source = dense()
    assert torch.equal(net.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    assert net.layer4[1].conv1.gate.fc2.weight.abs().max() == 0  # derived, not only loaded
    assert torch.allclose(features(net)[2], features(source)[2], rtol=1e-5, atol=1e-5)


def test_init_cfg_loads_a_kernel_dna_checkpoint_as_ever(tmp_path):
    source = randomise(KDNAResNet(18, base_channels=8))
    torch.save(source.state_dict(), tmp_path / 'own.pth')
    net = KDNAResNet(18, base_channels=8, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'own.pth')))
    net.init_weights()
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in net.state_dict().items())


def test_a_prefix_takes_the_part(tmp_path):
    torch.save({f'backbone.{k}': v for k, v in dense().state_dict().items()}, tmp_path / 'whole.pth')
    net = KDNAResNet(
        18, base_channels=8, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'whole.pth'), prefix='backbone.')
    )
    net.init_weights()
    assert torch.equal(net.conv1.weight, dense().conv1.weight)


def test_other_modules_are_loaded_as_ever(tmp_path):
    conv = ResNet(18, base_channels=8, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'net.pth')))
    wide = ResNet(18, base_channels=8)
    torch.save(wide.state_dict(), tmp_path / 'net.pth')
    conv.init_weights()
    assert torch.equal(conv.conv1.weight, wide.conv1.weight)


def test_a_checkpoint_of_another_width_is_refused(dense_file):
    net = KDNAResNet(18, base_channels=16, init_cfg=dict(type='Pretrained', checkpoint=dense_file))
    with pytest.raises(DeriveError, match='of another shape'):
        net.init_weights()


def test_mobilenet_of_torchvision_names(tmp_path):
    from mmkerneldna.checkpoints.mobilenet_names import mobilenet_prefixes

    source = randomise(KDNAMobileNetV2(0.5, sharing=None, out_indices=(7,)))
    theirs = {ours: name for name, ours in mobilenet_prefixes().items()}
    named = {f'{theirs[k.rpartition(".")[0]]}.{k.rpartition(".")[2]}': v for k, v in source.state_dict().items()}
    torch.save(named, tmp_path / 'tv.pth')
    net = KDNAMobileNetV2(0.5, out_indices=(7,), init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'tv.pth')))
    net.init_weights()
    assert torch.equal(net.layer7[0].expand_conv.conv.weight, source.layer7[0].expand_conv.conv.weight)
    assert torch.equal(net.conv2.bn.running_var, source.conv2.bn.running_var)


class Run:
    """What the hook reads of a Runner."""

    def __init__(self, model, resume=False):
        self.model, self._resume, self._load_from = model, resume, 'static.pth'


def model(**kwargs):
    net = nn.Module()
    net.backbone = KDNAResNet(18, base_channels=8, **kwargs)
    net.head = nn.Conv2d(64, 3, 1)
    return net


def checkpoint(head=3):
    state = {f'backbone.{k}': v for k, v in dense().state_dict().items()}
    return dict(meta={}, state_dict={**state, 'head.weight': torch.ones(head, 64, 1, 1), 'head.bias': torch.ones(head)})


def test_load_from_of_a_static_model_is_derived_before_it_is_loaded():
    net, held = model(), checkpoint()
    CheckpointFitHook().after_load_checkpoint(Run(net), held)
    net.load_state_dict(held['state_dict'])  # strict
    assert torch.equal(net.backbone.layer4[1].conv2.weight, dense().layer4[0].conv2.weight)
    assert (net.head.weight == 1).all()


def test_load_from_of_another_head_is_refused_or_partial():
    with pytest.raises(DeriveError, match='head.weight'):
        CheckpointFitHook().after_load_checkpoint(Run(model()), checkpoint(head=4))
    net, held = model(), checkpoint(head=4)
    CheckpointFitHook(allow_partial=True).after_load_checkpoint(Run(net), held)
    assert held['state_dict']['head.weight'].shape == (3, 64, 1, 1)
    assert torch.equal(held['state_dict']['backbone.conv1.weight'], dense().conv1.weight)


def test_a_resumed_run_is_never_derived():
    with pytest.raises(CheckpointError, match='does not fit'):
        CheckpointFitHook().after_load_checkpoint(Run(model(), resume=True), checkpoint())


def test_an_own_checkpoint_passes_untouched():
    net = model()
    held = dict(state_dict={key: value.clone() for key, value in net.state_dict().items()})
    state = held['state_dict']
    CheckpointFitHook().after_load_checkpoint(Run(net), held)
    assert held['state_dict'] is state


def test_the_log_says_it_in_five_lines(dense_file, monkeypatch):
    logged = []
    monkeypatch.setattr('mmkerneldna.derive.engine.print_log', lambda text, **kwargs: logged.append(text))
    KDNAResNet(18, base_channels=8, init_cfg=dict(type='Pretrained', checkpoint=dense_file)).init_weights()
    (text,) = logged
    assert '6 children, 2 exact, 2 in identity blocks, 2 fitted' in text and 'layer3.1, layer4.1' in text
    assert 'not used of the source: fc' in text and len(text.splitlines()) <= 5
