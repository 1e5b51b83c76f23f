import copy

import pytest
import torch
from helpers import assert_same, randomise
from mmdet.models.backbones import MobileNetV2, ResNet
from mmengine.registry import MODELS, DefaultScope
from mmseg.models.backbones import ResNetV1c
from torch import nn

from mmkerneldna.backbones import KDNAResNet
from mmkerneldna.deploy import deploy
from mmkerneldna.deploy.deployment import lean_copy
from mmkerneldna.deploy.export import export
from mmkerneldna.errors import UsageError
from mmkerneldna.hooks import RoutingLossHook
from mmkerneldna.layers import collect_losses, routed_layers, swap_convs
from mmkerneldna.routing import decisions, set_keep, skip_blocks
from mmkerneldna.routing.stages import find_stages, mixed

IMAGES = torch.randn(3, 3, 70, 65, generator=torch.Generator().manual_seed(0))


def resnet(depth=18, cls=ResNet, **kwargs):
    torch.manual_seed(0)
    net = randomise(cls(depth=depth, base_channels=8, **kwargs))
    net.eval()
    return net


def gated(net, **kwargs):
    """With gates that tell images apart."""
    skip_blocks(net, **dict(dict(keep=0.5), **kwargs))
    for gate in net.routing_gates.values():
        nn.init.normal_(gate.fc2.weight)
    net.eval()
    return net


def reference(net, images):
    """Image by image, block by block, by the gates' logits."""
    outputs = []
    for image in images:
        x, features = net.maxpool(net.relu(net.norm1(net.conv1(image[None])))), []
        for index in range(1, 5):
            for number, block in getattr(net, f'layer{index}').named_children():
                gate = dict(net.routing_gates.items()).get(f'layer{index}_{number}')
                if gate is None or gate.logits(x).item() > gate.threshold:
                    x = block(x)
            features.append(x)
        outputs.append(features)
    return [torch.cat(level) for level in zip(*outputs)]


def calls_of(net):
    """Images that each block saw."""
    seen = {}
    for path, stage in find_stages(net).items():
        for name, block in stage.named_children():
            block.register_forward_pre_hook(lambda m, args, key=f'{path}.{name}': seen.__setitem__(key, len(args[0])))
    return seen


@torch.no_grad()
@pytest.mark.parametrize('last', [False, True])
def test_a_block_is_called_for_the_images_that_need_it(last):
    net = gated(resnet(34))
    images = IMAGES.contiguous(memory_format=torch.channels_last) if last else IMAGES
    set_keep(net, 0.5, images)
    with decisions(net) as record:
        outputs = net(images)
        masks = {name: mask[0].flatten() for name, mask in record.masks().items()}
    assert_same(outputs, reference(net, images))
    assert len({tuple(mask.tolist()) for mask in masks.values()}) > 1  # images and blocks differ
    seen = calls_of(net)
    net(images)
    for path, mask in masks.items():
        block = path.removeprefix('routing_gates.').replace('_', '.')
        assert seen.get(block, 0) == mask.sum()
    assert all(seen[f'layer{i}.0'] == 3 for i in range(1, 5))
    for image, kept in zip(images, torch.stack(list(masks.values()), 1)):
        seen.clear()
        assert_same(net(image[None]), reference(net, image[None]))
        assert len(seen) == 4 + kept.sum()  # at batch 1 a block that is not needed is not called


@torch.no_grad()
def test_all_kept_none_kept_and_an_empty_batch():
    net, plain = gated(resnet()), resnet()
    set_keep(net, 1)
    assert all(torch.equal(a, b) for a, b in zip(net(IMAGES), plain(IMAGES)))
    for gate in net.routing_gates.values():
        gate.set_threshold(1e9)
    for i in range(1, 5):
        plain.get_submodule(f'layer{i}')[1].forward = lambda x: x
    assert all(torch.equal(a, b) for a, b in zip(net(IMAGES), plain(IMAGES)))
    assert [len(y) for y in net(IMAGES[:0])] == [0] * 4


BACKBONES = {
    'mmdet': (lambda: resnet(), ['layer1_1', 'layer2_1', 'layer3_1', 'layer4_1']),
    'mmseg, dilated': (
        lambda: resnet(18, ResNetV1c, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), stem_channels=8),
        ['layer1_1', 'layer2_1', 'layer3_1', 'layer4_1'],
    ),
    'KernelDNA': (lambda: resnet(18, KDNAResNet), [*(f'layer{i}_1' for i in (1, 2, 3)), 'layer3_2', 'layer4_1', 'layer4_2']),
    'variant': (lambda: swap_convs(resnet(), 'odconv1x'), ['layer1_1', 'layer2_1', 'layer3_1', 'layer4_1']),
    'mobilenet': (
        lambda: MobileNetV2(0.25, out_indices=(1, 2, 4, 6)),
        [
            'layer2_1',
            'layer3_1',
            'layer3_2',
            'layer4_1',
            'layer4_2',
            'layer4_3',
            'layer5_1',
            'layer5_2',
            'layer6_1',
            'layer6_2',
        ],
    ),
}


@pytest.mark.parametrize('case', BACKBONES)
def test_any_backbone_keeps_its_parameter_names_and_starts_near_itself(case):
    make, names = BACKBONES[case]
    plain = make()
    plain.eval()
    net = skip_blocks(make(), 0.5)
    net.eval()
    assert list(net.routing_gates) == names
    missing, unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(key.startswith('routing_gates.') for key in missing)
    with torch.no_grad():
        assert_same(net(IMAGES), plain(IMAGES))  # open gates
    net.train()
    net(IMAGES)
    with torch.no_grad():
        draws = [gate.draw(torch.randn(40, gate.fc1.in_features, 4, 4)) for gate in net.routing_gates.values()]
    assert torch.cat(draws).mean() > 0.85


def test_by_config_and_whole_models():
    DefaultScope.get_instance(f'skip-{torch.rand(1).item()}', scope_name='mmdet')
    inner = dict(type='ResNet', depth=18, base_channels=8)
    net = MODELS.build(dict(type='SkipBlocks', keep=0.25, stages=(1, 2), module=inner))
    assert list(net.routing_gates) == ['layer2_1', 'layer3_1'] and net.routing_gates['layer2_1'].keep == 0.25
    net.init_weights()
    assert all(gate.fc2.bias == 3 for gate in net.routing_gates.values())
    nested = MODELS.build(dict(type='KernelDNA', plan='auto', module=dict(type='SkipBlocks', module=inner)))
    assert len(nested.routing_gates) == 4
    sparse = MODELS.build(dict(type='SparseBlocks', keep=0.25, tile=8, module=inner))
    assert sparse.routing_gates['layer1_1'].tile == 8


def test_a_frozen_stage_keeps_a_gate_that_learns():
    net = gated(resnet(frozen_stages=2, norm_eval=True), full=0.0)
    net.train()
    sum(y.mean() for y in net(IMAGES)).backward()
    assert not any(p.requires_grad for p in net.layer1.parameters()) and not net.layer1.training
    assert all(p.grad is not None and p.grad.any() for p in net.routing_gates.parameters())


def test_training_mixes_blocks_and_inputs_and_full_images_are_whole():
    net = gated(resnet(), full=0.0)
    x, y = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    mask = torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)
    assert torch.equal(mixed(x, y, mask), torch.stack([y[0], x[1]]))
    for gate in net.routing_gates.values():
        nn.init.constant_(gate.fc2.bias, -1e3)
    net.train()
    closed = net(IMAGES)
    net.routing_full = 1.0
    whole, plain = net(IMAGES), resnet()
    plain.train()
    assert_same(whole, plain(IMAGES))
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(closed, whole))


def test_the_loss_of_a_training_is_annealed_and_logged():
    net = gated(resnet())
    net.loss = lambda images: dict(loss_task=sum(y.mean() for y in net(images)))
    scalars = {}
    hub = type('Hub', (), dict(update_scalar=lambda self, key, value: scalars.__setitem__(key, value)))()
    visualizer = type('V', (), dict(add_scalars=lambda self, values, step: scalars.update(values)))()
    runner = type('Run', (), dict(model=net, iter=25, max_iters=100, message_hub=hub, visualizer=visualizer))()
    hook = RoutingLossHook(weight=dict(keep_rate=3.0), interval=1)
    hook.before_train(runner)
    hook.before_train_iter(runner, 25)
    net.train()
    losses = net.loss(IMAGES)
    assert all(gate.target == 0.75 for gate in net.routing_gates.values())
    losses['loss_keep_rate'].backward()
    assert all(gate.fc2.bias.grad.any() for gate in net.routing_gates.values())
    hook.after_train_iter(runner, 25)
    assert 0 <= scalars['train/keep_rate_min'] <= scalars['train/keep_rate_max'] <= 1
    assert 'keep/routing_gates.layer1_1' in scalars
    hook.after_train(runner)
    assert 'loss_keep_rate' not in net.loss(IMAGES)
    with pytest.raises(ValueError, match=r"no loss named \['balance'\]; it has \['keep_rate'\]"):
        RoutingLossHook(weight=dict(balance=1.0)).before_train(runner)


@pytest.mark.parametrize('case', ['mmdet', 'KernelDNA'])
def test_deploy_keeps_the_gates(case):
    net = gated(BACKBONES[case][0]())
    set_keep(net, 0.5, IMAGES)
    lean = deploy(net)
    assert lean.deploy_report.norms_left == {} and set(lean.routing_gates) == set(net.routing_gates)
    with torch.no_grad():
        assert_same(lean(IMAGES), net(IMAGES), 1e-4)
        seen = calls_of(lean)
        lean(IMAGES[:1])
    assert len(seen) < len(net.routing_gates) + 4


def test_export_computes_all_and_masks_it(tmp_path):
    net = gated(resnet())
    set_keep(net, 0.5, IMAGES)
    lean = lean_copy(net)
    facts = export(lean, tmp_path / 'a.ts', 'torchscript', size=(64, 64), dynamic='batch')
    assert max(facts['checked'].values()) < 1e-4
    run = torch.jit.load(str(tmp_path / 'a.ts'))
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad(), decisions(net) as seen:
        assert_same(run(images), net(images), 1e-4)
        assert 0 < seen.rate() < 1


def test_half_precision_and_activation_checkpointing():
    net = gated(resnet(with_cp=True))
    net.train()
    with torch.autocast('cpu', torch.bfloat16), collect_losses(routed_layers(net)) as totals:
        outputs = net(IMAGES.requires_grad_())
        loss = sum(y.float().mean() for y in outputs) + totals()['keep_rate']
    IMAGES.requires_grad_(False)
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters() if p.requires_grad)


def test_a_copy_and_a_saved_state_decide_alike(tmp_path):
    net = gated(resnet())
    set_keep(net, 0.5, IMAGES)
    other = gated(resnet())
    torch.save(net.state_dict(), tmp_path / 'a.pth')
    other.load_state_dict(torch.load(tmp_path / 'a.pth'))
    with torch.no_grad():
        for model in (other, copy.deepcopy(net)):
            assert all(torch.equal(a, b) for a, b in zip(model(IMAGES), net(IMAGES)))


def test_refuses():
    for keep in (0, 1.01, -0.5, None):
        with pytest.raises(UsageError, match=r'must lie in \(0, 1\]'):
            skip_blocks(resnet(), keep)
    cases = {
        r'layer2\.0 must always run: it is the first block of its stage': dict(blocks=['layer2.0']),
        r'ResNet has no block layer2\.7 in its stages; they are layer1\.0': dict(blocks=['layer2.7']),
        r'stages=\[4\]: ResNet has stages 0 to 3': dict(stages=(4,)),
        r'full=1 must lie in \[0, 1\)': dict(full=1),
    }
    for message, kwargs in cases.items():
        net = resnet()
        with pytest.raises(UsageError, match=message):
            skip_blocks(net, 0.5, **kwargs)
        assert not hasattr(net, 'routing_gates') and type(net.layer1).__name__ == 'ResLayer'  # nothing half-done
    with pytest.raises(UsageError, match='behind gates already'):
        skip_blocks(gated(resnet()), 0.5)
    with pytest.raises(UsageError, match='Sequential has no stages of residual blocks'):
        skip_blocks(nn.Sequential(nn.Conv2d(3, 4, 1)), 0.5)
    mobile = MobileNetV2(0.25)
    with pytest.raises(UsageError, match=r'layer7\.0 must always run: it is the first block'):
        skip_blocks(mobile, 0.5, blocks=['layer7.0'])
    odd = nn.Module()
    odd.layer1 = nn.Sequential(*(m for m in resnet().layer1), nn.Conv2d(8, 8, 1))
    with pytest.raises(UsageError, match=r'layer1\.2 must always run: a Conv2d is not a residual block'):
        skip_blocks(odd, 0.5, blocks=['layer1.2'])
