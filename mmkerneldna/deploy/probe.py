"""Run any OpenMMLab model once on made-up input, without losses and without random choices."""

from collections.abc import Callable, Sequence

import torch
from mmengine.model import BaseModel
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..anatomy import backbone_of, heads_of, is_whole
from ..errors import KernelDNAError

Probe = Tensor | Sequence[Tensor] | Callable[[nn.Module], object] | None

#: H, W of random images, the smallest that a model takes: some pad by reflection, or were built for one size
SIZES = ((64, 96), (128, 192), (224, 224))


class ProbeError(KernelDNAError, ValueError):
    """No random image goes through a module; it needs a probe of its own."""


def make_probe(module: nn.Module, probe: Probe = None) -> Callable[[nn.Module], list[Tensor]]:
    """A function that runs the forward pass of a model and returns all its output tensors.

    Args:
        module (nn.Module): a backbone, or a whole mmdet / mmseg model.
        probe: None, for two random images; the input of ``module.forward`` (a tensor, or a sequence of tensors as necks
            take it); or a function that runs a model given to it and returns its outputs.

    Returns:
        Callable: deterministic; takes ``module`` or a copy of it.

    Raises:
        ProbeError: no probe given and the module is not one that takes images.
    """
    if callable(probe) and not isinstance(probe, Tensor):
        return lambda model: _tensors(probe(model))
    return _runner(module, _images_that_fit(module) if probe is None else probe)


def _runner(module: nn.Module, inputs) -> Callable[[nn.Module], list[Tensor]]:
    if is_whole(module):
        return lambda model: _tensors(run_parts(model, inputs.to(device_of(model))))
    return lambda model: _tensors(model(_moved(inputs, device_of(model))))


def device_of(module: nn.Module) -> torch.device:
    """Device of the first parameter."""
    return next(module.parameters()).device


def run_parts(model: BaseModel, images: Tensor):
    """Every part of a detector or segmenter up to the raw head outputs: (N, C, H, W) -> nested tensors.

    A two-stage detector's second stage gets fixed boxes: proposals are a ranking, and a ranking of nearly equal scores
    turns on a rounding error.
    """
    samples = _data_samples(images)
    heads = heads_of(model)
    if not heads.box:
        return model._forward(images, samples)
    features = model.extract_feat(images)
    outputs = [head.forward(features) for head in heads.dense]
    return features, outputs, model.roi_head.forward(features, _boxes(images), samples)


def _data_samples(images: Tensor) -> list:
    from mmdet.structures import DetDataSample

    height, width = images.shape[-2:]
    meta = dict(
        img_shape=(height, width),
        ori_shape=(height, width),
        pad_shape=(height, width),
        batch_input_shape=(height, width),
        scale_factor=(1.0, 1.0),
    )
    return [DetDataSample(metainfo=meta) for _ in images]


def _boxes(images: Tensor) -> list[InstanceData]:
    height, width = images.shape[-2:]
    corners = images.new_tensor([[0.0, 0.0, 1.0, 1.0], [0.1, 0.2, 0.6, 0.5], [0.5, 0.4, 0.9, 1.0]])
    return [InstanceData(bboxes=corners * images.new_tensor([width, height, width, height])) for _ in images]


def _images_that_fit(module: nn.Module) -> Tensor:
    """Two random images of the first number of channels and the first size that ``module`` takes."""
    first = next((m for m in backbone_of(module).modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        raise ProbeError(f'{type(module).__name__} has no convolution to read its input channels from; pass probe=')
    refused = None
    for size in SIZES:
        for channels in dict.fromkeys((first.in_channels, 3)):  # a stem may rearrange pixels before its first conv
            images = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))
            try:
                with torch.no_grad():
                    _runner(module, images)(module)
            except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
                refused = refused or error
            else:
                return images
    raise ProbeError(
        f'no random image goes through {type(module).__name__} ({type(refused).__name__}: '
        f'{" ".join(str(refused).split())[:200]}); pass probe=, an input or a function that runs it'
    ) from refused


def _moved(probe, device):
    return probe.to(device) if isinstance(probe, Tensor) else type(probe)(x.to(device) for x in probe)


def _tensors(outputs) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
