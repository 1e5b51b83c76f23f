"""Compiled, traced and graphed regions: the same features, a bounded cache, a fall-back that is said once."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODELS
from torch import nn

import mmkerneldna  # noqa: F401
from mmkerneldna.deploy import compilation, deploy
from mmkerneldna.deploy.compilation import WithFallback
from mmkerneldna.deploy.cuda_graphs import graphed
from mmkerneldna.deploy.regions import regions
from mmkerneldna.deploy.size_cache import Captured, SizeCache, input_key
from mmkerneldna.hooks import DeployHook
from mmkerneldna.sharing import share_kernels


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return self.conv2(self.norm1(self.conv1(x)).relu()) + x


@pytest.fixture
def block():
    torch.manual_seed(0)
    model = share_kernels(Block(), {'conv1': 'conv2'}).eval()
    model.norm1.running_mean.normal_()
    model.norm1.running_var.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize('compile, batches', [(True, [1]), ('dynamic', [2, 3])])
def test_compiled_equals_original(block, compile, batches, monkeypatch):
    monkeypatch.setattr(WithFallback, '_give_up', lambda self, error: pytest.fail(f'not compiled: {error}'))
    deployed = deploy(block, compile=compile)
    for batch in batches:
        x = torch.randn(batch, 8, 10 + 4 * batch, 16)
        torch.testing.assert_close(deployed(x), block(x), rtol=1e-5, atol=1e-5)


def test_missing_compiler_falls_back_once(block, monkeypatch):
    said = []
    monkeypatch.setattr(compilation, 'print_log', lambda message, **kwargs: said.append(message))
    monkeypatch.setattr(WithFallback, 'said', False)

    def broken(*args):
        raise torch._dynamo.exc.BackendCompilerFailed('inductor', RuntimeError('no C++ compiler'), None)

    monkeypatch.setattr(torch, 'compile', lambda function, **kwargs: broken)
    x = torch.randn(1, 8, 9, 9)
    for deployed in (deploy(block, compile=True), deploy(block, compile=True)):
        for _ in range(2):
            torch.testing.assert_close(deployed(x), block(x), rtol=1e-5, atol=1e-5)
    assert len(said) == 1 and 'no C++ compiler' in said[0]


def test_wrong_input_is_no_compiler_failure(block, monkeypatch):
    monkeypatch.setattr(WithFallback, '_give_up', lambda self, error: pytest.fail('taken for a missing compiler'))
    monkeypatch.setattr(torch, 'compile', lambda function, **kwargs: function)
    with pytest.raises(RuntimeError, match='shapes cannot be multiplied'):
        deploy(block, compile=True)(torch.randn(1, 5, 9, 9))


class Recorder:
    """A capture function that notes what it captured and released, and runs the plain function."""

    def __init__(self, nbytes=lambda args: 10):
        self.captures, self.released, self.replays, self.nbytes = [], [], [], nbytes

    def __call__(self, plain, args):
        shape = tuple(args[0].shape)
        if shape == (13,):
            raise RuntimeError('cannot capture 13')
        self.captures.append(shape)

        def run(*args):
            self.replays.append(shape)
            return plain(*args)

        return Captured(run, self.nbytes(args), lambda: self.released.append(shape))


def _run(cache, *lengths):
    for length in lengths:
        assert torch.equal(cache(torch.arange(length)), torch.arange(length) * 2)


def test_cache_keeps_the_sizes_used_last():
    recorder = Recorder()
    cache = SizeCache(lambda x: x * 2, recorder, max_sizes=2)
    _run(cache, 1, 2, 1, 3, 1, 2)
    assert recorder.captures == [(1,), (2,), (3,), (2,)]
    assert recorder.released == [(2,), (3,)]
    assert recorder.replays == [(1,), (2,), (1,), (3,), (1,), (2,)]


def test_cache_is_bounded_in_bytes():
    recorder = Recorder(nbytes=lambda args: len(args[0]))
    cache = SizeCache(lambda x: x * 2, recorder, max_sizes=9, max_bytes=10)
    _run(cache, 4, 5, 6, 11, 11)
    assert recorder.released == [(4,), (5,), (11,)]  # 4 + 5 + 6 > 10, 5 + 6 > 10; 11 alone is too large
    assert recorder.captures.count((11,)) == 1 and cache.nbytes == 6


def test_what_cannot_be_captured_runs_plainly():
    recorder = Recorder()
    cache = SizeCache(lambda x, scale=2: x * scale, recorder)
    _run(cache, 13, 13, 1)
    assert recorder.captures == [(1,)]
    assert torch.equal(cache(torch.ones(1), scale=3), torch.full((1,), 3.0))
    assert torch.equal(cache(torch.ones(1), 4), torch.full((1,), 4.0))


def test_key_tells_layouts_and_types_apart():
    x = torch.randn(2, 3, 4, 4)
    keys = {input_key((y,)) for y in (x, x.to(memory_format=torch.channels_last), x.double(), x[:1])}
    assert len(keys) == 4
    assert input_key(([x, x],)) != input_key((x,)) and input_key((x, 'text')) is None


def test_regions_of_whole_models():
    bare = nn.Conv2d(3, 3, 1)
    assert [(r.owner, r.name, r.whole) for r in regions(bare)] == [(bare, 'forward', True)]


def test_hook_tests_the_deployed_model():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    runner = SimpleNamespace(model=model)
    DeployHook().before_test(runner)
    assert isinstance(runner.model[1], nn.Identity) and runner.model.deployed_from == (model,)
    wrapper = MMDistributedDataParallel.__new__(MMDistributedDataParallel)
    nn.Module.__init__(wrapper)
    wrapper.module = model
    runner = SimpleNamespace(model=wrapper)
    DeployHook().before_test(runner)
    assert isinstance(runner.model[1], nn.Identity) and wrapper.module is model


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_cuda_graphs_equal_original():
    model = MODELS.build(dict(type='KDNAResNet', depth=18)).cuda().eval()
    deployed = deploy(model, cuda_graph=2)
    torch.backends.cudnn.allow_tf32 = False
    images = [torch.randn(1, 3, size, size, device='cuda') for size in (64, 96, 128, 64)]
    features = [deployed(x) for x in images]  # all kept: a replay must not overwrite what an earlier one returned
    for x, outputs in zip(images, features):
        for output, expected in zip(outputs, model(x)):
            torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_graph_larger_than_the_bound_is_refused():
    cache = graphed(lambda x: x * 2, 2, torch.device('cuda'), max_bytes=1)
    x = torch.randn(1000, device='cuda')
    assert torch.equal(cache(x), x * 2) and not cache.captured
