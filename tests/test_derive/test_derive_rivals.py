"""Nets with dynamic layers from dense weights: what starts exactly, what cannot, and what the report says of it."""

import pytest
import torch
from mmengine.registry import MODELS
from mmseg.models.backbones.resnet import ResNet

from mmkerneldna.backbones import KDNAResNet
from mmkerneldna.derive import DeriveError, Reconstruction, derive
from mmkerneldna.derive.report import RivalRow
from mmkerneldna.derive.rivals import rivals_of, unsettled
from mmkerneldna.layers import swap_convs
from mmkerneldna.modules import count_parameters
from mmkerneldna.sharing import share_kernels
from mmkerneldna.variants import RIVALS, VARIANTS
from tests.helpers import randomise

NET = dict(type='mmseg.ResNet', depth=18, base_channels=16, stem_channels=16, norm_cfg=dict(type='BN'))
HALF = dict(type='KWConv2d', budget=0.5, cell_in_ratio=0.5, cell_out_ratio=0.5)
ROUNDED = ('kw1x', 'kw4x')  # the norm of the attention has an epsilon


def dense(seed=1, **kwargs):
    torch.manual_seed(seed)
    net = randomise(ResNet(18, base_channels=16, stem_channels=16, **kwargs))
    net.eval()
    return net


def features(net):
    torch.manual_seed(7)
    net.eval()
    with torch.no_grad():
        return net(torch.randn(2, 3, 64, 64))


def distance(net, source):
    return max(float((a - b).norm() / b.norm()) for a, b in zip(features(net), features(source), strict=True))


def batches(count=2):
    torch.manual_seed(3)
    return [torch.randn(2, 3, 64, 64) for _ in range(count)]


@pytest.mark.parametrize('rival', RIVALS)
def test_every_rival_starts_at_the_static_features(rival):
    source, target = dense(), swap_convs(dense(seed=2), rival)
    report = derive(target, source)
    assert distance(target, source) < (1e-3 if rival in ROUNDED else 1e-5)
    kind = VARIANTS[rival].conv['type']
    assert {row.layer for row in report.rivals} == {kind} and len(report.rivals) == sum(
        type(m).__name__ == kind for m in target.modules()
    ) > 0
    assert all(row.kind == 'exact' and row.start_error < 1e-3 and row.reason is None for row in report.rivals)
    assert report.parameters_before == count_parameters(source) and report.parameters_after == count_parameters(target)
    assert f'{len(report.rivals)} of {len(report.rivals)} {kind} start exactly' in report.headline()


def test_the_levels_of_an_exact_start_are_the_dense_ones():
    source, target = dense(), swap_convs(dense(seed=2), 'odconv4x')
    target.train()
    report = derive(target, source, batches(), steps=3)
    assert [row.level for row in report.levels] == [0, 1, 2, 3] and not report.blocks and not report.loss
    assert all(row.correlation > 0.99999 and row.error < 1e-5 for row in report.levels)
    assert all(row.output_error == 0 for row in report.rivals)
    assert all(module.training for name, module in target.named_modules() if name.endswith('.attention'))


def test_what_cannot_start_is_said_and_reconstructed():
    source, images = dense(), batches(4)
    torch.manual_seed(2)
    target = swap_convs(dense(seed=2), HALF, include=['layer4.*.conv*'])
    report = derive(target, source)
    new = [row.rival for row in report.rivals if row.kind == 'new']
    assert new == [f'layer4.{block}.conv{conv}' for block in (0, 1) for conv in (1, 2)]
    assert all('budget below 1' in row.reason and row.start_error > 0.1 for row in report.rivals)
    assert 'to be trained or reconstructed: without a static start layer4.0.conv1' in report.headline()
    assert 'KWConv2d' in str(report) and len(report.headline().splitlines()) <= 5
    start = derive(target, source, images)
    assert list(start.blocks) == ['layer4.0', 'layer4.1']
    assert start.levels[3].error > 0.1 > 1e-4 > max(row.error for row in start.levels[:3])
    after = derive(target, source, images, steps=12, reconstruction=Reconstruction(lr=3e-3, shares=(1, 0, 0)))
    assert len(after.loss) == 12 and sum(after.blocks.values()) < sum(start.blocks.values())
    assert all(row.output_error == after.blocks[row.rival.rpartition('.')[0]] for row in after.rivals)


def test_layers_of_a_warehouse_that_has_to_be_trained_change_with_it():
    """One mixture of such a warehouse fills a cell: the layer could start, but its cells will move with the others'."""
    target = swap_convs(dense(), HALF, include=['layer3.*.conv2', 'layer4.*.conv2'])
    rows = [RivalRow('layer4.0.conv2', 'KWConv2d', 'new', 1.0, 'why'), RivalRow('layer4.1.conv2', 'KWConv2d', 'exact', 0.0)]
    assert unsettled(rows, rivals_of(target)) == {'layer4.0.conv2', 'layer4.1.conv2'}


def test_children_and_rivals_in_one_net():
    source = dense()
    target = share_kernels(
        swap_convs(dense(seed=2), 'odconv4x', include=['layer[12].*.conv*']), {'layer4.1.conv1': 'layer4.1.conv2'}
    )
    report = derive(target, source, batches())
    assert [row.child for row in report.of_kind('fitted')] == ['layer4.1.conv1'] and list(report.blocks) == ['layer4.1']
    assert len(report.rivals) == 8 and all(row.kind == 'exact' for row in report.rivals)
    assert max(row.error for row in report.levels[:3]) < 1e-5 < report.levels[3].error
    text = str(report)
    assert '1 children' in text and '8 of 8 ODConv2d start exactly' in text and 'dynamic layer' in text


def test_a_deeper_net_of_rivals_is_grown():
    source = dense()
    target = swap_convs(KDNAResNet(18, sharing=None, base_channels=16), 'se', include=['layer*.conv*'])
    report = derive(target, source)
    assert len(report.identities) == 2
    assert all(row.kind == 'exact' for row in report.rivals) and distance(target, source) < 1e-5


def test_a_plan_around_dynamic_layers_by_config():
    inner = dict(type='DynamicConvs', conv='se', include=['layer2.*.conv*'], module=NET)
    target = MODELS.build(dict(type='KernelDNA', module=inner, plan={'layer4.0.conv2': 'layer4.1.conv2'}))
    report = derive(target, dense())
    assert len(report.children) == 1 and {row.layer for row in report.rivals} == {'SEConv2d'}


def test_any_backbone_of_timm():
    pytest.importorskip('timm', reason='timm is optional: pip install timm')

    def build():
        net = MODELS.build(dict(type='mmseg.TIMMBackbone', model_name='resnet18', pretrained=False))
        net.eval()
        return randomise(net)

    source, shared, swapped = build(), share_kernels(build(), 'auto'), swap_convs(build(), 'odconv4x')
    report = derive(shared, source, batches())
    assert report.children and len(report.levels) == 5 and all(torch.isfinite(v).all() for v in shared.state_dict().values())
    assert all(row.kind == 'exact' for row in derive(swapped, source).rivals) and distance(swapped, source) < 1e-5


def test_a_source_of_dynamic_layers_is_refused():
    target, source = swap_convs(dense(), 'odconv4x'), swap_convs(dense(), 'odconv4x')
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(DeriveError, match='holds dynamic layers already .*layer1.0.conv1.*load it as it is'):
        derive(target, source)
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())


def test_a_net_with_neither_is_refused():
    target, source = dense(seed=2), dense()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(DeriveError, match='ResNet has neither children nor dynamic layers.*--plan or by --variant'):
        derive(target, source)
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())


def test_an_error_after_the_start_puts_the_layers_back():
    target = dense(seed=2)
    for stage, rival in enumerate(['odconv4x', 'kw1x', 'fdconv', 'dcd'], start=1):
        swap_convs(target, rival, include=[f'layer{stage}.*.conv1'])
    swap_convs(target, HALF, include=['layer4.*.conv2'])
    before = {key: value.clone() for key, value in target.state_dict().items()}
    images = [*batches(2), torch.full((2, 3, 64, 64), float('nan'))]
    with pytest.raises(DeriveError, match='pixels'):  # in the reconstruction
        derive(target, dense(), images, steps=4, calibration_batches=2)
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())


def test_layers_that_the_source_lacks_stay_as_they_were():
    target = swap_convs(dense(seed=2), 'odconv4x')
    state = {key: value for key, value in dense().state_dict().items() if not key.startswith('layer4.1.conv2')}
    with pytest.raises(DeriveError, match='1 missing .layer4.1.conv2.weight'):
        derive(target, state)
    before = {key: value.clone() for key, value in target.layer4[1].conv2.state_dict().items()}
    report = derive(target, state, batches(), partial=True)
    assert report.kept == ['layer4.1.conv2.weight'] and 'layer4.1.conv2' not in {row.rival for row in report.rivals}
    assert all(torch.equal(before[key], value) for key, value in target.layer4[1].conv2.state_dict().items())
    assert torch.allclose(features(target)[2], features(dense())[2], rtol=1e-4, atol=1e-5)
    assert all(row.error < 1e-5 for row in report.levels)  # the reference has the layer as it was


@pytest.mark.parametrize('rival', ['odconv4x', 'se'])
def test_init_cfg_of_dynamic_convs_starts_at_the_static_features(rival, tmp_path):
    source = dense()
    torch.save(dict(state_dict=source.state_dict()), tmp_path / 'static.pth')
    pretrained = dict(type='Pretrained', checkpoint=str(tmp_path / 'static.pth'))
    net = MODELS.build(dict(type='DynamicConvs', conv=rival, module=dict(NET, init_cfg=pretrained)))
    assert distance(net, source) > 0.1
    net.init_weights()
    assert sum(type(m).__name__ == VARIANTS[rival].conv['type'] for m in net.modules()) >= 10
    assert distance(net, source) < 1e-5


def test_init_cfg_of_a_deeper_net_of_rivals(tmp_path):
    """Static weights are grown; the net's own ones are loaded as they are."""
    source = dense()
    torch.save(source.state_dict(), tmp_path / 'static.pth')

    def build(name):
        pretrained = dict(type='Pretrained', checkpoint=str(tmp_path / name))
        net = MODELS.build(
            dict(
                type='DynamicConvs',
                conv='odconv1x',
                module=dict(type='KDNAResNet', depth=18, sharing=None, base_channels=16, init_cfg=pretrained),
            )
        )
        net.init_weights()
        return net

    grown = build('static.pth')
    assert distance(grown, source) < 1e-5
    torch.save(randomise(grown).state_dict(), tmp_path / 'own.pth')
    own = build('own.pth').state_dict()
    assert all(torch.equal(value, own[key]) for key, value in grown.state_dict().items())
