"""Parts of deployed models in other runtimes: torch's features, its fallback, and what the choice is made by."""

import sys

import pytest
import torch
from helpers import assert_same, randomise
from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope
from narrow import DETECTOR, NARROW, SEGMENTER
from torch import nn
from torch.utils._pytree import tree_leaves

from mmkerneldna.backbones import KDNAResNet
from mmkerneldna.deploy import backends, deploy
from mmkerneldna.deploy.backends import BackendError
from mmkerneldna.deploy.probe import run_parts
from mmkerneldna.deploy.runtimes import RuntimeMissingError
from mmkerneldna.errors import KernelDNAError
from mmkerneldna.torch_internals import onednn_computes

RUNTIMES = ('onnxruntime', 'openvino')
BACKENDS = ('onednn', *RUNTIMES)
TINY = dict(base_channels=8)


def needs(name):
    if name == 'onednn':
        if not torch.backends.mkldnn.is_available():
            pytest.skip('torch comes without oneDNN')
        return
    pytest.importorskip('onnx')
    pytest.importorskip(name)


def tiny_net(**options):
    torch.manual_seed(0)
    return randomise(KDNAResNet(18, **TINY, **options)).eval()


def whole(config, **changes):
    cfg = get_config(config)
    cfg.model.backbone = dict(type='KDNAResNet', depth=18, norm_eval=False, **TINY)
    cfg.merge_from_dict(changes)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return randomise(MODELS.build(cfg.model)).eval()


@torch.no_grad()
@pytest.mark.parametrize('name', BACKENDS)
def test_a_backbone_in_a_runtime_has_torchs_features_at_every_size(name):
    needs(name)
    net = tiny_net()
    fast = deploy(net, backend=name)
    assert not fast.deploy_report.backends
    for shape in ((1, 3, 64, 64), (2, 3, 64, 96), (1, 3, 64, 64)):
        x = torch.randn(*shape)
        first = fast(x)
        assert_same(first, net(x))
        kept = [feature.clone() for feature in first]
        fast(torch.randn(*shape))  # features of one image outlive the next one's
        assert all(torch.equal(a, b) for a, b in zip(first, kept))
    assert fast.deploy_report.backends == {'KDNAResNet at 1x3x64x64': name, 'KDNAResNet at 2x3x64x96': name}


@torch.no_grad()
@pytest.mark.parametrize('name', BACKENDS)
@pytest.mark.parametrize(
    ('config', 'changes', 'parts'),
    [
        (
            'mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py',
            NARROW[SEGMENTER],
            {'EncoderDecoder.extract_feat', 'UPerHead'},
        ),
        ('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', NARROW[DETECTOR], {'FasterRCNN.extract_feat', 'RPNHead'}),
    ],
    ids=['UPerNet', 'Faster R-CNN'],
)
def test_whole_models(name, config, changes, parts):
    needs(name)
    model = whole(config, **changes)
    fast, images = deploy(model, backend=name), torch.randn(1, 3, 96, 128)
    assert_same(tree_leaves(run_parts(fast, images)), tree_leaves(run_parts(model, images)))
    assert {title.split(' at ')[0] for title in fast.deploy_report.backends} == parts
    assert set(fast.deploy_report.backends.values()) == {name}


@torch.no_grad()
def test_auto_measures_and_takes_the_fastest(monkeypatch):
    for name in RUNTIMES:
        needs(name)
    said = []
    monkeypatch.setattr(backends, 'print_log', lambda text, **_: said.append(text))
    monkeypatch.setattr(backends, 'ROUNDS', 1)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    fast, x = deploy(net, backend='auto'), torch.randn(1, 3, 64, 64)
    real = backends._Part._fastest
    monkeypatch.setattr(backends._Part, '_fastest', lambda *args: (real(*args), 'openvino')[1])
    said.clear()
    assert_same(fast(x), net(x))
    assert fast.deploy_report.backends == {'Sequential at 1x3x64x64': 'openvino'}
    assert len(said) == 1 and all(f'{name} ' in said[0] for name in ('torch', *BACKENDS)) and said[0].endswith('is taken')


@torch.no_grad()
def test_the_fastest_of_three_calls_is_taken():
    part = backends._Part.__new__(backends._Part)
    spin = torch.randn(400, 400)
    calls = dict(torch=lambda x: [spin @ spin for _ in range(9)], a=lambda x: x, b=lambda x: [spin @ spin for _ in range(30)])
    assert part._fastest('t', calls, (torch.zeros(1),)) == 'a'


@torch.no_grad()
def test_what_a_runtime_gets_wrong_stays_in_torch(monkeypatch):
    needs('onnxruntime')
    net, real = tiny_net(), backends.SESSIONS['onnxruntime']
    fast = deploy(net, backend='onnxruntime')

    def wrong(traced, dtype):
        session = real(traced, dtype)
        return lambda arrays: [output * 1.01 for output in session(arrays)]

    monkeypatch.setitem(backends.SESSIONS, 'onnxruntime', wrong)
    x = torch.randn(1, 3, 64, 64)
    assert_same(fast(x), net(x))
    assert not fast.deploy_report.backends
    with pytest.raises(BackendError, match='no part of this KDNAResNet runs in onnxruntime: .*deviates from torch by 1'):
        deploy(net, backend='onnxruntime')


class Unwritable(nn.Module):
    """ONNX has no linalg.eigvals."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        y = self.conv(x)
        return y + torch.linalg.svdvals(y[0, 0])[0]


def test_an_operator_that_the_runtime_lacks_is_named():
    needs('onnxruntime')
    with pytest.raises(BackendError, match='Unwritable runs in onnxruntime: .*svd'):
        deploy(Unwritable(), backend='onnxruntime')


@torch.no_grad()
@pytest.mark.skipif(not onednn_computes(torch.bfloat16), reason='this CPU has no bf16 convolutions')
@pytest.mark.parametrize('name', ['onednn', 'openvino'])
def test_bf16(name):
    needs(name)
    net = tiny_net()
    fast, x = deploy(net, dtype=torch.bfloat16, backend=name), torch.randn(1, 3, 64, 64)
    for feature, expected in zip(fast(x.bfloat16()), net(x)):
        assert feature.dtype == torch.bfloat16
        assert (feature.float() - expected).norm() < 0.05 * expected.norm()
    assert set(fast.deploy_report.backends.values()) == {name}


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(backend='tensorrt'), "backend='tensorrt' must be one of"),
        (dict(backend='onnxruntime', dtype=torch.bfloat16), 'no convolutions in bf16'),
        (dict(backend='openvino', dtype=torch.float64), 'not in torch.float64'),
        (dict(backend='openvino', compile=True), 'leave compile out'),
    ],
)
def test_what_does_not_go_together(options, message):
    with pytest.raises((BackendError, KernelDNAError), match=message):
        deploy(tiny_net(), **options)


@pytest.mark.parametrize('name', RUNTIMES)
def test_a_runtime_that_is_not_installed(monkeypatch, name):
    pytest.importorskip('onnx')
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RuntimeMissingError, match=f'pip install {name}') as caught:
        deploy(tiny_net(), backend=name)
    assert '\n' not in str(caught.value)


@torch.no_grad()
def test_auto_without_a_runtime_is_torch(monkeypatch):
    for name in (*RUNTIMES, 'onnx'):
        monkeypatch.setitem(sys.modules, name, None)
    said = []
    monkeypatch.setattr(backends, 'print_log', lambda text, **_: said.append(text))
    net, x = tiny_net(), torch.randn(1, 3, 64, 64)
    assert_same(deploy(net, backend='auto')(x), net(x))
    assert not any(f'{name} ' in line for name in RUNTIMES for line in said if 'is taken' in line)


@torch.no_grad()
def test_layers_are_fused_in_a_onednn_graph():
    needs('onednn')
    net = tiny_net()
    traced = backends.Traced(net, 'forward', (torch.randn(1, 3, 64, 64),))
    session = backends.SESSIONS['onednn'](traced, torch.float32)
    before = torch.jit.onednn_fusion_enabled()
    with torch.autograd.profiler.profile() as profile:
        session(traced.inputs)
    assert any('LlgaPartition' in event.key or 'LLGA' in event.key for event in profile.key_averages()), [
        event.key for event in profile.key_averages()
    ]
    assert torch.jit.onednn_fusion_enabled() == before
