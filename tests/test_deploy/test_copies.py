"""Copies of deployed models, by deepcopy and through a file: the same outputs, from weights of their own."""

import copy
import io

import pytest
import torch
from helpers import assert_same
from test_deploy_models import small_model
from test_shared import half_resnet18, kernels

from mmkerneldna.deploy import deploy
from mmkerneldna.deploy.probe import make_probe


def through_a_file(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def tensors(outputs):
    return [output for output in outputs if torch.is_tensor(output)]


@pytest.fixture(
    scope='module',
    params=[('resnet', 'torch'), ('fcn', 'torch'), ('faster', 'torch'), ('resnet', 'onednn'), ('faster', 'onnxruntime')],
    ids='-'.join,
)
def deployed(request):
    """A deployed model, its convolutions packed and fused or in another runtime, and what runs it."""
    name, backend = request.param
    if backend == 'onnxruntime':
        pytest.importorskip('onnx')
        pytest.importorskip('onnxruntime')
    model = half_resnet18() if name == 'resnet' else small_model(name)
    return deploy(model, shared=True, backend=backend), make_probe(model, torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize('duplicate', [copy.deepcopy, through_a_file])
@torch.no_grad()
def test_a_copy_computes_the_same_with_its_own_weights(deployed, duplicate):
    model, run = deployed
    expected = tensors(run(model))
    other = duplicate(model)
    assert_same(tensors(run(other)), expected)
    assert len(kernels(other)[1]) == len(kernels(model)[1])  # what is shared stays shared
    for parameter in other.parameters():
        parameter.zero_()
    assert_same(tensors(run(model)), expected)
    assert any((output != target).any() for output, target in zip(tensors(run(other)), expected, strict=True))
