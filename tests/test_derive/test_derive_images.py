"""With images: moments, norms, reconstruction."""

import pytest
import torch
from mmseg.models.backbones.resnet import ResNet
from torch import nn

from mmkerneldna.derive import DeriveError, Reconstruction, derive
from mmkerneldna.derive.recalibrate import absorb, batch_norms, reestimate
from mmkerneldna.derive.report import level_rows
from mmkerneldna.sharing import share_kernels
from tests.helpers import randomise

SAME = {'layer3.0.conv2': 'layer3.1.conv2', 'layer3.1.conv1': 'layer3.1.conv2'}


def dense():
    torch.manual_seed(3)
    net = ResNet(
        18,
        base_channels=8,
        stem_channels=8,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(0, 1, 2),
        norm_eval=True,
    )
    net.eval()
    reestimate(batch_norms(net, ['']), net, images(4, seed=99))
    for norm in batch_norms(net, ['']):
        nn.init.normal_(norm.weight, 1, 0.2)
        nn.init.normal_(norm.bias, 0, 0.2)
    return net


def images(count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 3, 32, 32, generator=generator) for _ in range(count)]


def shared():
    return share_kernels(dense(), SAME)


def errors(report):
    return [row.error for row in report.levels]


def test_a_plain_average_of_the_statistics():
    torch.manual_seed(0)
    norm, batches = nn.BatchNorm2d(3).eval(), [torch.randn(4, 3, 5, 5) * 2 + 1 for _ in range(3)]
    randomise(norm)
    reestimate([norm], norm, batches)
    assert torch.allclose(norm.running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0), atol=1e-6)
    variances = [b.transpose(0, 1).flatten(1).var(1) for b in batches]
    assert torch.allclose(norm.running_var, torch.stack(variances).mean(0), atol=1e-5)
    assert norm.momentum == 0.1 and not norm.training


def test_statistics_can_change_without_the_function():
    torch.manual_seed(0)
    norm, x = randomise(nn.BatchNorm2d(3)).eval(), torch.randn(4, 3, 5, 5)
    before, mean = norm(x), norm.running_mean.clone()
    absorb([norm], norm, [x])
    assert torch.allclose(norm(x), before, atol=1e-5) and not torch.allclose(norm.running_mean, mean)
    assert torch.allclose(norm.running_var, x.transpose(0, 1).flatten(1).var(1), atol=1e-5)


def test_a_norm_that_is_not_reached_keeps_its_statistics():
    norm = randomise(nn.BatchNorm2d(3)).eval()
    mean = norm.running_mean.clone()
    reestimate([norm], lambda batch: None, [torch.zeros(1)])
    assert torch.equal(norm.running_mean, mean)


def test_images_bring_the_features_closer_than_weights_alone():
    source, target = dense(), shared()
    derive(target, source)
    batches = images()
    with torch.no_grad():
        weights_only = level_rows([target(b) for b in batches], [source(b) for b in batches])[2].error
    recalibrated = errors(derive(shared(), source, batches))
    assert recalibrated[:2] == pytest.approx([0, 0], abs=1e-5) and recalibrated[2] < 0.9 * weights_only


def test_reconstruction_lowers_the_error_on_images_it_has_not_seen():
    source = dense()
    targets = [shared() for _ in range(2)]
    derive(targets[0], source, images(6))
    report = derive(targets[1], source, images(6), steps=40, reconstruction=Reconstruction(lr=5e-3))
    assert report.steps == len(report.loss) == 40
    held, error = images(3, seed=5), []
    with torch.no_grad():
        for target in targets:
            error.append(level_rows([target(b) for b in held], [source(b) for b in held])[2].error)
    assert error[1] < 0.8 * error[0]
    child = targets[1].get_submodule('layer3.0.conv2')
    assert child.tied and child.gate.fc2.weight.abs().max() > 0


def test_reconstruction_touches_the_changed_stage_only_and_leaves_flags_and_modes():
    source, target = dense(), shared()
    target.layer1.requires_grad_(False)
    target.layer3.train()
    flags = {name: p.requires_grad for name, p in target.named_parameters()}
    derive(target, source, images(2), steps=3)
    theirs = source.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in target.state_dict().items() if not k.startswith('layer3'))
    assert {name: p.requires_grad for name, p in target.named_parameters()} == flags
    assert target.layer3.training and not target.layer1[0].training and all(p.grad is None for p in target.parameters())


def test_reconstruction_goes_on_where_it_was_stopped(tmp_path):
    source, whole, parted = dense(), shared(), shared()
    state = str(tmp_path / 'state.pth')
    torch.manual_seed(1)
    parted.load_state_dict(whole.state_dict())
    plain = derive(whole, source, images(3), steps=8, calibration_batches=3)

    class Stops:
        left = 1 + 3 + 5

        def __iter__(self):
            for batch in images(3) * 10:
                self.left -= 1
                if self.left < 0:
                    raise KeyboardInterrupt
                yield batch

    settings = Reconstruction(state_file=state, save_every=2)
    with pytest.raises(KeyboardInterrupt):
        derive(parted, source, Stops(), steps=8, calibration_batches=3, reconstruction=settings)
    report = derive(parted, source, images(3), steps=8, reconstruction=settings)
    assert report.loss == pytest.approx(plain.loss, rel=1e-4)
    with pytest.raises(DeriveError, match='another reconstruction'):
        derive(parted, source, images(3), steps=9, reconstruction=settings)


def test_it_stops_when_nothing_improves():
    source, target = dense(), shared()
    report = derive(target, source, images(1), steps=60, reconstruction=Reconstruction(lr=1e-12, patience=3))
    assert report.steps == 3 * (1 + 3)


def test_family_means_make_members_of_parents():
    source, target = dense(), shared()
    report = derive(target, source, parents='mean')
    parent = target.layer3[1].conv2.weight
    own = [source.layer3[0].conv2.weight, source.layer3[1].conv1.weight, source.layer3[1].conv2.weight]
    keep = derive(shared(), source)
    assert not torch.equal(parent, own[2])
    assert torch.allclose(parent.flatten(1).norm(dim=1), own[2].flatten(1).norm(dim=1), rtol=1e-4)
    for mean, kept in zip(report.children, keep.children):  # a mean of three is closer to each of them than the others are
        assert mean.kernel_error < kept.kernel_error


def test_the_report_is_a_table_and_data():
    import json

    report = derive(shared(), dense(), images(2))
    text = str(report)
    assert 'layer3.0.conv2  layer3.1.conv2  fitted' in text and 'correlation' in text
    held = json.loads(json.dumps(report.to_dict()))
    assert held['children'][0]['output_error'] == pytest.approx(report.blocks['layer3.0']) and len(held['levels']) == 3
    assert report.parameters_before - report.parameters_after == pytest.approx(2 * 32 * 32 * 9, abs=2 * 1400)
