"""A shared-kernel net in what surrounds a model in training: optimizer, EMA, AMP, checkpointing, compile, DDP."""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from helpers import randomise
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmkerneldna.backbones import KDNAMobileNetV2, KDNAResNet
from mmkerneldna.layers import ChildConv2d
from mmkerneldna.sharing import SharingPlanError, check_paramwise


def small_net(**kwargs):
    return randomise(KDNAResNet(18, base_channels=8, norm_eval=False, **kwargs))


def step(net, x, optimizer):
    optimizer.zero_grad()
    loss = sum(o.square().mean() for o in net(x))
    loss.backward()
    optimizer.step()
    return loss.item()


def ties(net):
    return [m.weight is m.parent.weight for m in net.modules() if isinstance(m, ChildConv2d)]


def test_round_trip_of_a_trained_state_dict():
    net, x = small_net().train(), torch.rand(2, 3, 64, 64)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    step(net, x, optimizer)
    other = KDNAResNet(18, base_channels=8, norm_eval=False)
    other.load_state_dict(net.state_dict(), strict=True)
    for a, b in zip(net.eval()(x), other.eval()(x)):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    stored = sum(net.state_dict()[name].numel() for name in net.state_dict() if 'running' not in name and 'num_b' not in name)
    assert stored == sum(p.numel() for p in net.parameters())


def test_deepcopy_trains_apart():
    net, x = small_net().train(), torch.rand(2, 3, 64, 64)
    twin = copy.deepcopy(net)
    assert all(ties(twin)) and len(ties(twin)) == 6
    before = net.layer3[1].conv2.weight.detach().clone()
    step(twin, x, torch.optim.SGD(twin.parameters(), 0.1))
    assert torch.equal(net.layer3[1].conv2.weight, before)
    assert not torch.equal(twin.layer3[0].conv2.weight, before)
    assert torch.equal(twin.layer3[0].conv2.weight, twin.layer3[1].conv2.weight)


@pytest.mark.parametrize('update_buffers', [True, False])
def test_ema_averages_a_shared_kernel_once(update_buffers):
    net, x = small_net().train(), torch.rand(2, 3, 64, 64)
    ema = ExponentialMovingAverage(net, momentum=0.25, update_buffers=update_buffers)
    kernel = net.layer3[1].conv2.weight
    start = kernel.detach().clone()
    ema.update_parameters(net)
    step(net, x, torch.optim.SGD(net.parameters(), 0.5))
    first = kernel.detach().clone()
    ema.update_parameters(net)
    average = ema.module.layer3[1].conv2.weight
    torch.testing.assert_close(average, 0.75 * start + 0.25 * first)
    assert ema.module.layer3[0].conv2.weight is average


def test_channels_last_gives_the_same_features():
    net, x = small_net().eval(), torch.rand(2, 3, 64, 64)
    expected = [o.detach() for o in net(x)]
    net = net.to(memory_format=torch.channels_last)
    assert all(ties(net))
    outputs = net(x.to(memory_format=torch.channels_last))
    assert outputs[-1].is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(outputs, expected):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


def test_moving_the_dtype_keeps_the_tie():
    assert all(ties(small_net().double())) and all(ties(small_net().to(torch.bfloat16)))


def test_autocast_trains():
    net, x = small_net().train(), torch.rand(2, 3, 64, 64)
    reference = [o.detach() for o in copy.deepcopy(net)(x)]
    with torch.autocast('cpu', torch.bfloat16):
        outputs = net(x)
    sum(o.float().square().mean() for o in outputs).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
    assert net.layer3[0].conv2.weight.grad.dtype == torch.float32
    for a, b in zip(outputs, reference):
        assert (a.float() - b).abs().mean() < 0.05 * b.abs().mean()


def test_batch_of_one_trains():
    net = small_net().train()
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    losses = [step(net, torch.rand(1, 3, 64, 64), optimizer) for _ in range(2)]
    assert all(map(torch.isfinite, map(torch.tensor, losses)))
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize('build', [small_net, lambda **kw: randomise(KDNAMobileNetV2(0.35, **kw))])
def test_activation_checkpointing_gives_the_same_gradients(build):
    # In double: in front of a batch norm the true gradient of a filter scale is close to nil, and float noise is not.
    plain, checkpointed = build().double().train(), build(with_cp=True).double().train()
    checkpointed.load_state_dict(plain.state_dict())
    grads = []
    for net in (plain, checkpointed):
        x = torch.linspace(0, 1, 2 * 3 * 64 * 64, dtype=torch.double).view(2, 3, 64, 64).sin().requires_grad_()
        sum(o.square().mean() for o in net(x)).backward()
        grads.append({name: p.grad for name, p in net.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-6, atol=1e-9, msg=name)


def test_compiled_net_agrees():
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    from mmkerneldna.sharing import share_kernels

    net = randomise(share_kernels(net, {'0': '3'})).eval()
    x = torch.rand(2, 4, 8, 8)
    compiled = torch.compile(net, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(x), net(x))
    grads = []
    for f in (net, compiled):
        net.zero_grad()
        f(x).square().sum().backward()
        grads.append([p.grad.clone() for p in net.parameters()])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


OPTIMIZER = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1, weight_decay=0.01))


def test_paramwise_needs_a_constructor_and_says_so():
    net = small_net()
    cfg = dict(OPTIMIZER, paramwise_cfg=dict(norm_decay_mult=0.0))
    with pytest.raises(ValueError, match='more than one parameter group'):
        build_optim_wrapper(net, copy.deepcopy(cfg))  # what torch says
    with pytest.raises(SharingPlanError, match='layer3.0.conv2 borrows into two parameter groups.*SharedKernelOptimWrapper'):
        check_paramwise(net, cfg)


def test_paramwise_with_bypass_duplicate_takes_each_parameter_once():
    net = small_net()
    cfg = dict(OPTIMIZER, paramwise_cfg=dict(norm_decay_mult=0.0, bypass_duplicate=True))
    check_paramwise(net, cfg)
    wrapper = build_optim_wrapper(net, cfg)
    taken = [id(p) for group in wrapper.optimizer.param_groups for p in group['params']]
    assert sorted(taken) == sorted(id(p) for p in net.parameters())
    decay = {id(p): group['weight_decay'] for group in wrapper.optimizer.param_groups for p in group['params']}
    assert decay[id(net.layer3[0].conv2.gate.norm.weight)] == 0.0 and decay[id(net.layer3[0].conv2.weight)] == 0.01


def test_static_nets_and_plain_optimizers_need_nothing():
    check_paramwise(small_net(), OPTIMIZER)
    check_paramwise(KDNAResNet(18, base_channels=8, sharing=None), dict(OPTIMIZER, paramwise_cfg=dict(norm_decay_mult=0.0)))


def _ddp_worker(rank, folder, state, batches):
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    dist.init_process_group('gloo', f'file://{folder}/rendezvous', rank=rank, world_size=2)
    net = KDNAResNet(18, base_channels=8, norm_eval=True)
    net.load_state_dict(state)
    ddp = nn.parallel.DistributedDataParallel(net.train())
    step(ddp, batches[rank], torch.optim.SGD(ddp.parameters(), 0.1))
    torch.save({k.removeprefix('module.'): v for k, v in ddp.state_dict().items()}, folder / f'weights{rank}.pt')
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_reach_the_weights_of_one(tmp_path):
    net = randomise(KDNAResNet(18, base_channels=8, norm_eval=True)).train()
    state = copy.deepcopy(net.state_dict())
    batch = torch.rand(4, 3, 64, 64)
    mp.spawn(_ddp_worker, (tmp_path, state, batch.chunk(2)), nprocs=2)
    results = [torch.load(tmp_path / f'weights{rank}.pt') for rank in range(2)]
    step(net, batch, torch.optim.SGD(net.parameters(), 0.1))
    assert results[0].keys() == net.state_dict().keys() and 'layer3.0.conv2.weight' not in results[0]
    for name, value in net.state_dict().items():
        for rank in range(2):
            torch.testing.assert_close(results[rank][name], value, rtol=1e-3, atol=1e-5, msg=name)
