"""One trained model in every format that a CPU can run: each made, scored and timed like any other."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from torch import nn

from ..anatomy import is_exported
from ..deploy import deploy
from ..deploy.end2end import EndToEnd, export_whole
from ..deploy.exported_model import ExportedModel
from ..deploy.half import write_half
from ..deploy.quantise import QuantiseReport, quantise
from ..deploy.runtimes import RuntimeMissingError
from ..deploy.writers import SUFFIXES
from ..errors import KernelDNAError
from ..measure.latency import Failure, Timing, time_interleaved
from ..measure.memory import weight_bytes
from ..measure.workload import Workload, inference_call
from ..runs.scores import SCORES, is_number
from .calibration import DEFAULT_COUNT, calibration_images
from .evaluation import main_score
from .sample_images import class_names, sample_images

Row = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """A row of the table.

    Attributes:
        title (str): of the row.
        file (str, optional): format of the exported file; None for a model of torch.
        dtype (str): what it computes in.
        deployed (bool): of a model of torch.
        backend (str): of a deployed one.
    """

    title: str
    file: str | None = None
    dtype: str = 'fp32'
    deployed: bool = False
    backend: str = 'torch'


FORMATS = {
    'torch': Format('torch eager'),
    'deployed': Format('torch deployed', deployed=True),
    'deployed-onednn': Format('torch deployed, oneDNN graphs', deployed=True, backend='onednn'),
    'deployed-bf16': Format('torch deployed bf16', dtype='bf16', deployed=True),
    'pt2': Format('torch pt2', 'pt2'),
    'onnx': Format('onnxruntime', 'onnx'),
    'onnx-fp16': Format('onnxruntime, weights in fp16', 'onnx', 'fp16'),
    'onnx-int8': Format('onnxruntime int8', 'onnx', 'int8'),
    'openvino': Format('OpenVINO', 'openvino'),
    'openvino-bf16': Format('OpenVINO bf16', 'openvino', 'bf16'),
    'openvino-fp16': Format('OpenVINO fp16', 'openvino', 'fp16'),
    'openvino-int8': Format('OpenVINO int8', 'openvino', 'int8'),
}


@dataclass
class FormatMaker:
    """Makes the model of each format.

    Args:
        cfg: of the model, as it was built.
        name: of the config.
        model: trained, on the CPU, in evaluation mode.
        checkpoint: what was loaded; it may name the classes.
        folder: for the files.
        size: H, W of the example image.
        dynamic: what may vary in a file, see :class:`.EndToEnd`; a format that can't do that gets one image of ``size``.
        calib: images that int8 is calibrated on.
        max_drop: largest loss of int8, in points of the score; None for as it comes.
        score: of a file, for ``max_drop``.
        reuse: take files that are in the folder already.

    Attributes:
        reports: of the int8 formats that were written.
        files: of the formats that were asked for.
    """

    cfg: Config
    name: str
    model: nn.Module
    checkpoint: dict[str, Any]
    folder: Path
    size: tuple[int, int]
    dynamic: str = 'both'
    calib: int = DEFAULT_COUNT
    max_drop: float | None = None
    score: Callable[[Path], float] | None = None
    reuse: bool = False
    reports: dict[str, QuantiseReport] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)

    def __call__(self, key: str) -> nn.Module:
        """The model of a format; its file is written first where it is not there.

        Raises:
            KernelDNAError: why it can't be had.
        """
        wanted = FORMATS[key]
        if wanted.file:
            return ExportedModel(str(self.file(key)))
        if not wanted.deployed:
            return self.model
        return deploy(self.model, dtype=torch.bfloat16 if wanted.dtype == 'bf16' else None, backend=wanted.backend)

    def file(self, key: str) -> Path:
        """The file of a format."""
        if key not in self.files:
            path = self.folder / f'{key}{SUFFIXES[str(FORMATS[key].file)]}'
            if not (self.reuse and path.is_file()):
                self._write(key, path)
            self.files[key] = path
        return self.files[key]

    def _write(self, key: str, path: Path) -> None:
        wanted = FORMATS[key]
        if wanted.dtype == 'fp32':
            self._export(str(wanted.file), path)
        elif wanted.dtype == 'int8':
            self.reports[key] = quantise(self.file(str(wanted.file)), path, self._images, self.max_drop, self.score)
        else:
            write_half(self.file(str(wanted.file)), path, wanted.dtype)

    def _export(self, kind: str, path: Path) -> None:
        classes = class_names(self.cfg, self.checkpoint)
        images = sample_images(self.cfg, 1)
        try:
            export_whole(self.model, EndToEnd(path, kind, self.size, self.dynamic, self.name, classes, images))
        except KernelDNAError as error:
            if self.dynamic == 'none' or isinstance(error, RuntimeMissingError):
                raise
            print_log(f'{kind}, --dynamic {self.dynamic}: {error}; trying one image of a fixed size', logger='current')
            export_whole(self.model, EndToEnd(path, kind, self.size, 'none', self.name, classes, images))

    @cached_property
    def _images(self) -> list[np.ndarray]:
        return calibration_images(self.cfg, self.calib)


def score_row(key: str, model: nn.Module, metrics: Mapping[str, Any]) -> Row:
    """A row with the scores of a format, in percent, if there are any, and its size."""
    scores = {score.name: float(metrics[score.key]) * score.scale for score in SCORES if is_number(metrics.get(score.key))}
    main = dict(main=main_score(metrics)[1]) if metrics else {}
    return dict(name=FORMATS[key].title, format=key, **scores, **main, file_mb=megabytes(model))


def megabytes(model: nn.Module) -> float:
    """Size of an exported file, or of a model's weights, each once, in MB (1e6 bytes)."""
    return cast(Any, model).file_mb if is_exported(model) else weight_bytes(model) / 1e6


def time_formats(models: Mapping[str, nn.Module], dataset, batches: Sequence[int], repeats: int, warmup: int) -> dict[str, Row]:
    """Latency of a whole ``test_step``, in turns, on the first image of the test set.

    Args:
        models: key of a format -> its model.
        dataset: the test set.
        batches: numbers of images per call, each measured by itself.
        repeats, warmup: see :func:`.latency.time_interleaved`.

    Returns:
        dict: key -> cells ``b1_ms``, ``b1_p90_ms``, ``b1_disturbed`` (for a batch of 1) or ``b1_error``.
    """
    sample = dataset[0]
    size = tuple(sample['inputs'].shape[-2:])
    cells: dict[str, Row] = {key: {} for key in models}
    for batch in batches:
        data = {key: [sample[key]] * batch for key in ('inputs', 'data_samples')}
        calls = {key: inference_call(model, Workload(batch, size), data) for key, model in models.items()}
        for key, timing in time_interleaved(calls, 'cpu', repeats, warmup).items():
            cells[key].update(_timing_cells(f'b{batch}', timing))
    return cells


def _timing_cells(prefix: str, timing: Timing | Failure) -> Row:
    if isinstance(timing, Failure):
        return {f'{prefix}_ms': None, f'{prefix}_error': str(timing)}
    return {
        f'{prefix}_ms': timing.median,
        f'{prefix}_p90_ms': timing.p90,
        f'{prefix}_disturbed': timing.disturbed or None,
        f'{prefix}_repeats': timing.repeats,
    }
