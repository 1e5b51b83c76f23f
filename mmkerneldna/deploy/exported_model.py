"""An exported file in the place of a model: the evaluation, the cost and the tools of mmdet and mmseg take it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..anatomy import has_proposals
from ..measure.complexity import complexity_row
from .exported_results import fill_detections, fill_label_map
from .file_meta import KINDS, FileError
from .runners import FileRunner


def is_exported_name(path: str | Path) -> bool:
    """Whether a path is named like an exported file that this package runs."""
    return Path(path).suffix in KINDS


def file_megabytes(path: str | Path) -> float:
    """Size of an exported file with what lies beside it (OpenVINO's ``.bin``, ONNX's external data), in MB (1e6 bytes)."""
    path = Path(path)
    beside = (path, path.with_suffix('.bin') if path.suffix == '.xml' else path.with_name(path.name + '.data'))
    return sum(file.stat().st_size for file in beside if file.is_file()) / 1e6


@MODELS.register_module()
class ExportedModel(BaseModel):
    """Runs a file of ``tools/export.py --end2end`` as a detector or a segmenter would predict.

    ``test_step`` takes what a data loader yields and returns the samples with ``pred_instances`` or ``pred_sem_seg`` in the
    coordinates of the original images. Images of one size go into the file together, as many as it takes at once.

    Args:
        file (str): ONNX, OpenVINO or pt2.
        threads (int, optional): of the runtime. Defaults to torch's number.
        original (dict, optional): config of the model that was exported. Its parameters and GMACs are stated as the file's.
        scope (str): of that config's types.
        data_preprocessor: not used, the file has its own; a Runner hands over the config's.

    Attributes:
        task (str): 'detection' or 'segmentation'.
        file_mb (float): size of the file, see :func:`file_megabytes`.

    Raises:
        FileError: a file that can't be read, or that holds a part of a model only.
        RuntimeMissingError: what runs it is not installed.
    """

    def __init__(
        self,
        file: str,
        threads: int | None = None,
        original: dict | None = None,
        scope: str = 'mmengine',
        data_preprocessor: Any = None,
    ) -> None:
        super().__init__()
        self.runner = FileRunner(file, threads or torch.get_num_threads())
        self.meta = self.runner.meta
        self.meta.check_whole(file)
        self.task = 'segmentation' if self.meta.task == 'segmentation' else 'detection'
        self.file_mb = file_megabytes(file)
        self._original, self._scope = original, scope

    @property
    def precision(self) -> str:
        """What the file computes in."""
        return self.meta.dtype

    def forward(self, inputs: Any, data_samples: Sequence[BaseDataElement] | None = None, mode: str = 'predict') -> Any:
        """Predict.

        Args:
            inputs: N images, each (3, H, W), BGR; their sizes may differ. Values of 0..255, rounded if they are no uint8.
            data_samples: N samples, as the pipeline packs them.
            mode (str): 'predict'; there is nothing in a file that could be trained.

        Returns:
            list: the samples.

        Raises:
            FileError: another mode, or images of a size that the file does not take.
        """
        if mode != 'predict' or data_samples is None:
            raise FileError(f"{self.runner.path} can only predict (mode='predict', with samples), not {mode!r}")
        outputs = self.run([as_uint8(image) for image in inputs])
        if self.task == 'segmentation':
            return [fill_label_map(sample, self._only(found)) for sample, found in zip(data_samples, outputs)]
        return [fill_detections(sample, found, self.meta) for sample, found in zip(data_samples, outputs)]

    def test_step(self, data: dict[str, Any]) -> Any:
        """Predict on what a data loader yields; the file does its own preprocessing."""
        return self.forward(data['inputs'], data['data_samples'])

    val_step = test_step

    def run(self, images: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        """Outputs of the file, image by image.

        Args:
            images: each (3, H, W), uint8, BGR.

        Returns:
            list: for each image name -> array without the batch axis.
        """
        results: list[dict[str, np.ndarray]] = [{} for _ in images]
        for indices in self._batches([image.shape for image in images]):
            # a file of a fixed batch gets its number of images: the last one again and again
            wanted = indices + indices[-1:] * ((self.meta.batch or len(indices)) - len(indices))
            outputs = self.runner(np.stack([images[index] for index in wanted]))
            for place, index in enumerate(indices):
                results[index] = {name: values[place] for name, values in outputs.items()}
        return results

    def complexity_row(self, size: tuple[int, int], proposals: int | None = None) -> dict[str, float]:
        """Parameters and GMACs of the model that was exported; nothing where its config is not known.

        It is built with random weights, with which a two-stage detector finds another number of boxes: no GMACs then.
        """
        if self._original is None:
            return {}
        with torch.random.fork_rng(devices=[]), DefaultScope.overwrite_default_scope(self._scope):
            model: nn.Module = MODELS.build(self._original)
        row = complexity_row(model, size, proposals)
        if has_proposals(model) and proposals is None:
            del row['gmacs']
        return row

    def _only(self, outputs: dict[str, np.ndarray]) -> np.ndarray:
        (labels,) = outputs.values()
        return labels

    def _batches(self, shapes: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
        """Indices of images of one size, at most as many as the file takes."""
        for shape in dict.fromkeys(shapes):
            alike = [index for index, other in enumerate(shapes) if other == shape]
            step = self.meta.batch or len(alike)
            for start in range(0, len(alike), step):
                yield alike[start : start + step]


def as_uint8(image: Tensor) -> np.ndarray:
    """(3, H, W) as a file takes it; pipelines with ``to_float32=True`` give whole numbers as floats."""
    if image.dtype != torch.uint8:
        image = image.round().clamp(0, 255).to(torch.uint8)
    return image.cpu().numpy()
