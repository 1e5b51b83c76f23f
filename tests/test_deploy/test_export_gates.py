"""Nets with gates, experts, trees and routing attention in files and other runtimes: torch's outputs, everything computed."""

import pytest
import torch
from helpers import assert_same, randomise
from mmdet.models.backbones import ResNet
from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope
from test_deploy_models import CHANNELS, narrowed
from test_end2end_detector import CONFIGS, SPREAD, assert_agrees
from torch import nn

from mmkerneldna.deploy import deploy, gates, lean_copy
from mmkerneldna.deploy.backends import BackendError
from mmkerneldna.deploy.end2end import EndToEnd, export_whole
from mmkerneldna.deploy.end2end.export import generated_images
from mmkerneldna.deploy.export import Exportable, check_file, check_shapes, export
from mmkerneldna.deploy.runners import FileRunner
from mmkerneldna.layers import MoEConv2d
from mmkerneldna.routing import (
    PositionFFN2d,
    PositionMoE2d,
    RoutingAttention2d,
    decisions,
    set_keep,
    skip_blocks,
    sparse_blocks,
)

IMAGES = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
TREE = dict(num_experts=4, gate=dict(type='TreeRouter'))
STEM = nn.Conv2d(3, 8, 3, 2, 1)


def gated(make, **options):
    """A narrow net of two stages at a keep rate of about a half, with gates that tell images and places apart."""
    torch.manual_seed(0)
    net = ResNet(depth=18, base_channels=8, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1))
    make(randomise(net), 0.5, **options)
    for gate in net.routing_gates.values():
        nn.init.normal_((gate.fc2 if hasattr(gate, 'fc2') else gate.fc).weight)
    net.eval()
    set_keep(net, 0.5, IMAGES)
    return net


def decided(*layers):
    """Layers behind a stem whose linear gates decide differently from place to place."""
    torch.manual_seed(0)
    net = nn.Sequential(STEM, *layers)
    for linear in (m for m in net.modules() if isinstance(m, nn.Linear)):
        nn.init.normal_(linear.weight)
    return net.eval()


NETS = {
    'SkipBlocks': lambda: gated(skip_blocks),
    'SparseBlocks, tiles': lambda: gated(sparse_blocks, tile=8),
    'SparseBlocks, positions': lambda: gated(sparse_blocks, tile=1),
    'experts': lambda: decided(PositionMoE2d(8, 8), PositionFFN2d(8, 16, top_k=2), MoEConv2d(8, 8, 3, padding=1)),
    'trees': lambda: decided(PositionMoE2d(8, 8, **TREE), PositionFFN2d(8, 16, **TREE), MoEConv2d(8, 8, 3, **TREE)),
    'attention': lambda: decided(RoutingAttention2d(8, region=8, top_k=2, local_kernel=3)),
}


@torch.no_grad()
@pytest.mark.parametrize('name', NETS)
def test_files_are_torchs_net(name, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(gates, 'print_log', lambda text, **_: said.append(text))
    net = NETS[name]()
    lean = lean_copy(net)
    formats = [('onnx', '.onnx'), ('openvino', '.xml')][: 1 + (name == 'SparseBlocks, tiles')]  # it is made of the former
    for file_format, suffix in formats:
        facts = export(lean, tmp_path / f'net{suffix}', file_format, size=(64, 64))  # any batch, any size
        assert len(facts['checked']) == 4 and max(facts['checked'].values()) < 1e-4
    run = FileRunner(tmp_path / 'net.onnx', threads=1)
    with decisions(net) as seen:
        assert_same([torch.from_numpy(y) for y in run(IMAGES.numpy()).values()], net(IMAGES))
        assert 'Blocks' not in name or 0.2 < seen.rate() < 0.8
    assert len(said) == (0 if name == 'attention' else len(formats))
    wanted = {'SkipBlocks': 'layer1 (all blocks), layer2 (all blocks)', 'trees': '1 (all 4 experts), 2 (all 4', 'attention': ''}
    assert not said or wanted.get(name, '') in said[0]


@torch.no_grad()
@pytest.mark.parametrize('name', NETS)
def test_what_torch_exports_is_torchs_net(name):
    """What a pt2 file is compiled of."""
    part = Exportable(lean_copy(NETS[name]()), 'backbone').eval()
    dims = {0: torch.export.Dim('batch', min=1, max=64)}
    program = torch.export.export(part, (IMAGES[:2],), dynamic_shapes=(dims,), strict=False).module()
    check_file(part, program, check_shapes((64, 64), 'batch'))


@torch.no_grad()
@pytest.mark.parametrize('name', ['SkipBlocks', 'trees'])
def test_a_backbone_in_a_runtime(name):
    net = NETS[name]()
    if 'Blocks' in name:
        with pytest.raises(BackendError, match='the gates of this ResNet save time in torch alone'):
            deploy(net, backend='onnxruntime')
        set_keep(net, 1)
    fast = deploy(net, backend='onnxruntime')
    assert_same(fast(IMAGES), net(IMAGES))
    assert list(fast.deploy_report.backends.values()) == ['onnxruntime']


NORM = dict(type='GN', num_groups=4)  # features of the size that heads expect
STRIDES = [4, 8, 16, 32]
HEADS = dict(
    retina=(
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        dict(type='SparseQueryRetinaHead', anchor_generator=dict(type='AnchorGenerator', octave_base_scale=4,
             scales_per_octave=2, ratios=[0.5, 1.0], strides=STRIDES)),
    ),
    fcos=(
        CONFIGS['fcos'],
        dict(type='SparseQueryFCOSHead', strides=STRIDES, norm_cfg=dict(type='BN'),
             regress_ranges=((-1, 32), (32, 64), (64, 128), (128, 1e8))),
    ),
)  # fmt: skip


def query_detector(name):
    """A narrow detector that computes a third of its finest level."""
    config, changes = HEADS[name]
    model = get_config(config).model
    model.backbone = dict(type='ResNet', depth=18, base_channels=8, norm_eval=False)
    model.neck = dict(type='FPN', in_channels=CHANNELS, out_channels=16, start_level=0, num_outs=4, norm_cfg=NORM)
    model.bbox_head = {**narrowed(model.bbox_head.to_dict()), **changes, 'query': dict(tile=8)}
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        net = MODELS.build(model)
    for path, module in net.named_modules():
        if path.rpartition('.')[2] in SPREAD:
            nn.init.normal_(module.weight, 0, SPREAD[path.rpartition('.')[2]])
    nn.init.normal_(net.bbox_head.query_gate.score.weight)
    net.bbox_head.test_cfg.update(nms_pre=100, max_per_img=30)
    net.eval()
    set_keep(net, 0.3, [torch.from_numpy(image)[None].float() for image in generated_images((96, 128))])
    return net


@torch.no_grad()
@pytest.mark.parametrize(('name', 'dynamic'), [('retina', 'both'), ('fcos', 'none')])
def test_whole_detectors_with_queries(name, dynamic, tmp_path):
    net, first = query_detector(name), (72, 100)
    head, x = net.bbox_head, net.extract_feat(torch.from_numpy(generated_images(first)[0])[None].float())
    assert 0 < head.queried(x).float().mean() < 1
    export_whole(net, EndToEnd(tmp_path / 'net.onnx', 'onnx', first, dynamic, 'x', list('abcd')))
    assert_agrees(net, FileRunner(tmp_path / 'net.onnx', threads=1), [(first, 1), ((101, 67), 2)][: 1 + (dynamic == 'both')])


@torch.no_grad()
def test_a_detector_keeps_its_queries_beside_a_runtime():
    net = query_detector('retina')
    fast, x = deploy(net, backend='onnxruntime'), torch.randn(1, 3, 96, 128)
    ours, theirs = (model.extract_feat(x) for model in (fast, net))
    assert_same(ours, theirs, 1e-4)
    assert {title.split(' at ')[0] for title in fast.deploy_report.backends} == {'RetinaNet.extract_feat'}
    skip_blocks(net.backbone, 0.5)
    fast = deploy(net.eval(), backend='onnxruntime')
    assert_same(fast.extract_feat(x), net.extract_feat(x), 1e-4)
    assert {title.split(' at ')[0] for title in fast.deploy_report.backends} == {'FPN'}
