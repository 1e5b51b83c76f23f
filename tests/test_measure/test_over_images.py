import pytest
import torch
from helpers import conv_gmacs, randomise
from torch import nn

from mmkerneldna.backbones import KDNAResNet
from mmkerneldna.measure.latency import Failure, Timing
from mmkerneldna.measure.over_images import Spread, gmacs_over_images, keep_rates, time_over_images
from mmkerneldna.routing import set_keep, skip_blocks


def test_the_spread_is_across_images_of_a_single_one_across_repeats():
    timings = [Timing(float(ms), ms + 50.0, 7 - ms % 2, 'busy' if ms == 4 else '') for ms in (4, 1, 10, 2, 3)]
    assert Spread.of(timings) == Spread(4.0, 3.0, 10.0, 6, 'busy')
    assert Spread.of(timings[:1]) == Spread(4.0, 4.0, 54.0, 7, 'busy')
    assert Spread.of([Timing(float(i), 0.0, 1) for i in range(1, 11)]).p90 == 9


def test_every_model_runs_on_every_image_and_a_failure_is_its_own():
    seen = []

    def fails():
        raise RuntimeError('no')

    models = dict(a=[lambda i=i: seen.append(i) for i in range(3)], b=[lambda: None, fails])
    results = time_over_images(models, repeats=2, warmup=1)
    assert sorted(seen)[:: len(seen) // 3] == [0, 1, 2] and isinstance(results['a'], Spread)
    assert results['b'] == Failure('RuntimeError', 'no')


@torch.no_grad()
def test_gmacs_are_of_what_was_run():
    net = skip_blocks(randomise(KDNAResNet(18, sharing=None, base_channels=8)), 0.5)
    net.eval()
    full = conv_gmacs(net, 64)
    images = torch.randn(4, 3, 64, 64)
    calls = [lambda image=image: net(image[None]) for image in images]
    set_keep(net, 1)
    gates = net.routing_gates
    assert len(gates) == 6 and keep_rates(net, calls) == dict(keep_rate=1, **{f'keep/{name}': 1 for name in gates})
    assert gmacs_over_images(calls) == pytest.approx(full, rel=1e-2)  # the gates' products are in it too
    for gate in gates.values():
        nn.init.normal_(gate.fc2.weight)
    set_keep(net, 0.5, images)
    rates = keep_rates(net, calls)
    assert rates['keep_rate'] == pytest.approx(sum(rates[f'keep/{name}'] for name in gates) / 6)
    block = 2 * 9 * 8 * 8 * 16 * 16 / 1e9  # all blocks cost the same
    assert gmacs_over_images(calls) == pytest.approx(full - 6 * (1 - rates['keep_rate']) * block, rel=1e-2)
    assert keep_rates(nn.Conv2d(3, 3, 1), []) == {}
