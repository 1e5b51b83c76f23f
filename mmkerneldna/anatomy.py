"""Which parts an OpenMMLab model has, asked in one place: wrappers, task, backbone, neck and heads."""

import copy
from dataclasses import dataclass
from typing import cast

from mmdet.models import BaseDetector
from mmengine.model import BaseModel, BaseTTAModel, is_model_wrapper
from mmseg.models import BaseSegmentor
from torch import nn

#: attributes of a detector or segmenter whose ``forward`` takes the maps of whole images
DENSE_HEADS = ('rpn_head', 'bbox_head', 'decode_head')


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside a wrapper for distributed runs, inside one for test-time augmentation, or inside both."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = cast(nn.Module, model.module)
    return model


def augments(model: nn.Module) -> bool:
    """Whether a model predicts from several views of an image (test-time augmentation)."""
    return isinstance(undistributed(model), BaseTTAModel)


def rewrap(model: nn.Module, inner: nn.Module) -> nn.Module:
    """``inner`` in the place of ``unwrap(model)``, for inference.

    Test-time augmentation stays, by a copy of its wrapper. Wrappers for distributed training go: they synchronise gradients.
    """
    outer = undistributed(model)
    if not isinstance(outer, BaseTTAModel):
        return inner
    wrapper = copy.copy(outer)
    wrapper._modules = {**outer._modules, 'module': rewrap(outer.module, inner)}
    return wrapper


def undistributed(model: nn.Module) -> nn.Module:
    """The model inside a wrapper for distributed runs; one for test-time augmentation stays."""
    while is_model_wrapper(model):
        model = cast(nn.Module, model.module)
    return model


def task_of(model: nn.Module) -> str:
    """'detection', 'segmentation', or 'backbone' for any other module; of the model inside its wrappers.

    A model of an exported file says it itself, as ``task``.
    """
    model = unwrap(model)
    if is_exported(model):
        return cast(str, model.task)
    if isinstance(model, BaseDetector):
        return 'detection'
    return 'segmentation' if isinstance(model, BaseSegmentor) else 'backbone'


def is_exported(model: nn.Module) -> bool:
    """Whether a model is an exported file, which has no modules or parameters: see :mod:`mmkerneldna.deploy.exported_model`."""
    return hasattr(model, 'file_mb')


def is_whole(model: nn.Module) -> bool:
    """Whether a model has features and heads of its own, as detectors and segmenters do, or is a backbone (or anything)."""
    return isinstance(model, BaseModel) and hasattr(model, 'extract_feat')


def has_proposals(model: nn.Module | dict) -> bool:
    """Whether a model, or the config of one, has a region proposal network and a second stage."""
    return all(_part(model, name) is not None for name in ('rpn_head', 'roi_head'))


def trained_model(model: dict) -> dict:
    """The config of the model that a training leaves behind: the student's where a teacher stands beside it."""
    return model['student'] if model.get('type') == 'Distilled' and isinstance(model.get('student'), dict) else model


def backbone_of(model: nn.Module) -> nn.Module:
    """The backbone of a whole model; any other module is one itself."""
    return cast(nn.Module, model.backbone) if is_whole(model) else model


@dataclass(frozen=True)
class Heads:
    """The heads of a whole model; a cascade's stages one by one.

    Attributes:
        dense: their input sizes follow the image's (RPN, one-stage detectors, segmenters).
        box, mask: of a second stage; their input sizes follow the number of boxes.
    """

    dense: tuple[nn.Module, ...] = ()
    box: tuple[nn.Module, ...] = ()
    mask: tuple[nn.Module, ...] = ()


def heads_of(model: nn.Module) -> Heads:
    """Which heads a detector or segmenter has; none of any other module. Auxiliary heads don't run at inference."""
    if not is_whole(model):
        return Heads()
    dense = tuple(head for name in DENSE_HEADS for head in _listed(model, name))
    roi_head = _part(model, 'roi_head')
    return Heads(dense, _listed(roi_head, 'bbox_head'), _listed(roi_head, 'mask_head'))


def _listed(owner: nn.Module | None, name: str) -> tuple[nn.Module, ...]:
    head = None if owner is None else _part(owner, name)
    if isinstance(head, nn.ModuleList):
        return tuple(head)
    return () if head is None else (head,)


def _part(owner: nn.Module | dict, name: str):
    return owner.get(name) if isinstance(owner, dict) else getattr(owner, name, None)
