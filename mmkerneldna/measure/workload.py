"""Turn a model and a stated workload into the call that is measured."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..anatomy import has_proposals, task_of
from ..modules import to_memory_format
from .fixed_proposals import FixedProposals
from .synthetic import detection_batch, segmentation_batch, synthetic_images

Call = Callable[[], Any]


@dataclass(frozen=True)
class Workload:
    """What is fed to a model, and how.

    Attributes:
        batch (int): images per call.
        size (tuple[int, int]): H, W of each image before the model's own padding.
        device (str): 'cpu', 'cuda', 'cuda:1', ...
        dtype (torch.dtype, optional): autocast to bf16 or fp16; None: fp32, no autocast.
        channels_last (bool): memory format of the kernels and of a backbone's input.
        proposals (int, optional): for inference with a two-stage detector: proposals per image, the same for every model
            (see :mod:`.fixed_proposals`); None: what the RPN finds. Other models have none.
    """

    batch: int
    size: tuple[int, int]
    device: str = 'cpu'
    dtype: torch.dtype | None = None
    channels_last: bool = False
    proposals: int | None = None

    @property
    def precision(self) -> str:
        """'fp32', 'bf16' or 'fp16'."""
        return {None: 'fp32', torch.bfloat16: 'bf16', torch.float16: 'fp16'}[self.dtype]

    def autocast(self):
        """Context of one forward pass."""
        return nullcontext() if self.dtype is None else torch.autocast(torch.device(self.device).type, self.dtype)

    def proposals_of(self, model: nn.Module) -> int | None:
        """The fixed number of proposals per image with which this model predicts, or None."""
        return self.proposals if has_proposals(model) else None

    def second_stage(self, model: nn.Module) -> AbstractContextManager:
        """Context of predictions, to be entered as often as wanted.

        Raises:
            UsageError: see :class:`.FixedProposals`.
        """
        count = self.proposals_of(model)
        return nullcontext() if count is None else FixedProposals(model, count)

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model to where and how this workload wants it."""
        model = model.to(self.device)
        return to_memory_format(model, torch.channels_last) if self.channels_last else model


def inference_call(model: nn.Module, workload: Workload, batch: dict | None = None) -> Call:
    """What a user runs to get a result.

    A backbone: images on the device to features. A detector or segmenter: ``test_step``, that is ``uint8`` images on
    the CPU through the data preprocessor (copy to the device, normalise, pad), the network and all post-processing.

    Args:
        model (nn.Module): in eval mode, on the workload's device.
        workload (Workload): batch, size, device and precision.
        batch (dict, optional): what a data loader yields, instead of synthetic images.
    """
    task = task_of(model)
    if task == 'backbone':
        return _no_grad(model, workload, _images(workload))
    data, second_stage = batch or _make_batch(task, workload, with_mask=False), workload.second_stage(model)

    def call():
        with torch.no_grad(), workload.autocast(), second_stage:
            return model.test_step(data)

    return call


def tensor_call(model: nn.Module, workload: Workload) -> Call:
    """The network alone, without post-processing: mm's ``mode='tensor'``; for a backbone its forward."""
    task = task_of(model)
    if task == 'backbone':
        return _no_grad(model, workload, _images(workload))
    data = model.data_preprocessor(_make_batch(task, workload, with_mask=False), False)
    second_stage = workload.second_stage(model)

    def call():
        with torch.no_grad(), workload.autocast(), second_stage:
            return model(data['inputs'], data['data_samples'], mode='tensor')

    return call


def train_call(model: nn.Module, workload: Workload) -> Call:
    """One training step: forward, loss, backward, SGD step with momentum; data loading and preprocessing excluded.

    The loss of a detector or segmenter is its own, on synthetic annotations (8 boxes per image, masks where the
    model has a mask head); the loss of a backbone is the mean of the squares of all features.

    Args:
        model (nn.Module): in training mode, on the workload's device; its weights change.
        workload (Workload): batch, size, device and precision.
    """
    loss = _loss_call(model, workload)
    # The rate is small: noise as training data must not blow up the weights while the clock runs.
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-6, momentum=0.9)
    scaler = torch.amp.GradScaler(torch.device(workload.device).type, enabled=workload.dtype is torch.float16)

    def call():
        with workload.autocast():
            total = loss()
        scaler.scale(total).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return call


def _loss_call(model: nn.Module, workload: Workload) -> Callable[[], Tensor]:
    task = task_of(model)
    if task == 'backbone':
        images = _images(workload)
        return lambda: cast(Tensor, sum(f.float().square().mean() for f in _tensors(model(images))))
    if task == 'segmentation':
        _train_at_stated_size(model, workload)
    batch = _make_batch(task, workload, with_mask=getattr(model, 'with_mask', False))
    data = model.data_preprocessor(batch, True)
    return lambda: model.parse_losses(model(**data, mode='loss'))[0]


def _train_at_stated_size(model: nn.Module, workload: Workload) -> None:
    """mmseg pads training images to the crop size of the config, which is not the size that was asked for."""
    model.data_preprocessor.size, model.data_preprocessor.size_divisor = workload.size, None


def _make_batch(task: str, workload: Workload, with_mask: bool) -> dict[str, list[Any]]:
    if task == 'detection':
        return detection_batch(workload.batch, workload.size, with_mask)
    return segmentation_batch(workload.batch, workload.size)


def _images(workload: Workload) -> Tensor:
    images = torch.stack(synthetic_images(workload.batch, workload.size)).float().sub(127.5).div(58)
    images = images.to(workload.device)
    return images.contiguous(memory_format=torch.channels_last) if workload.channels_last else images


def _no_grad(model: nn.Module, workload: Workload, images: Tensor) -> Call:
    def call():
        with torch.no_grad(), workload.autocast():
            return model(images)

    return call


def _tensors(features) -> list[Tensor]:
    return [features] if isinstance(features, Tensor) else list(features)
