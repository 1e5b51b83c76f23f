"""Run any OpenMMLab model once on made-up input, without losses and without random choices."""
from typing import Callable, List, Optional, Sequence, Tuple, Union

import torch
from mmengine.model import BaseModel
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Probe = Union[None, Tensor, Sequence[Tensor], Callable[[nn.Module], object]]


def make_probe(module: nn.Module, probe: Probe = None,
               size: Tuple[int, int] = (64, 96)) -> Callable[[nn.Module], List[Tensor]]:
    """A function that runs the forward pass of a model and returns all its output tensors.

    Args:
        module (nn.Module): a backbone, or a whole mmdet / mmseg model.
        probe: None, for two random images; the input of ``module.forward`` (a tensor, or a sequence of tensors as necks
            take it); or a function that runs a model given to it and returns its outputs.
        size (tuple): H, W of the random images.

    Returns:
        Callable: deterministic; takes ``module`` or a copy of it.

    Raises:
        ValueError: no probe given and the module is not one that takes images.
    """
    if callable(probe) and not isinstance(probe, Tensor):
        return lambda model: _tensors(probe(model))
    if probe is None:
        probe = _images(module, size)
    if isinstance(module, BaseModel) and hasattr(module, 'extract_feat'):
        return lambda model: _tensors(run_parts(model, probe.to(device_of(model))))
    return lambda model: _tensors(model(_moved(probe, device_of(model))))


def device_of(module: nn.Module) -> torch.device:
    """Device of the first parameter."""
    return next(module.parameters()).device


def run_parts(model: BaseModel, images: Tensor):
    """Every part of a detector or segmenter up to the raw head outputs: (N, C, H, W) -> nested tensors.

    A two-stage detector's second stage gets fixed boxes: proposals are a ranking, and a ranking of nearly equal scores
    turns on a rounding error.
    """
    features = model.extract_feat(images)
    samples = _data_samples(images)
    if getattr(model, 'roi_head', None) is None:
        head = model.bbox_head if hasattr(model, 'bbox_head') else getattr(model, 'decode_head', None)
        return head.forward(features) if head is not None else model._forward(images, samples)
    outputs = model.rpn_head.forward(features) if getattr(model, 'rpn_head', None) is not None else ()
    return features, outputs, model.roi_head.forward(features, _boxes(images), samples)


def _data_samples(images: Tensor) -> list:
    from mmdet.structures import DetDataSample
    height, width = images.shape[-2:]
    meta = dict(img_shape=(height, width), ori_shape=(height, width), pad_shape=(height, width),
                batch_input_shape=(height, width), scale_factor=(1.0, 1.0))
    return [DetDataSample(metainfo=meta) for _ in images]


def _boxes(images: Tensor) -> List[InstanceData]:
    height, width = images.shape[-2:]
    corners = images.new_tensor([[0.0, 0.0, 1.0, 1.0], [0.1, 0.2, 0.6, 0.5], [0.5, 0.4, 0.9, 1.0]])
    return [InstanceData(bboxes=corners * images.new_tensor([width, height, width, height])) for _ in images]


def _images(module: nn.Module, size: Tuple[int, int]) -> Tensor:
    backbone = getattr(module, 'backbone', module)
    first = next((m for m in backbone.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        raise ValueError(f'{type(module).__name__} has no convolution to read its input channels from; pass probe=')
    channels = first.in_channels
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))


def _moved(probe, device):
    return probe.to(device) if isinstance(probe, Tensor) else type(probe)(x.to(device) for x in probe)


def _tensors(outputs) -> List[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
