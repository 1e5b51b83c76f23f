"""Run an exported file: numpy images in, named numpy arrays out, whatever its runtime."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..torch_internals import read_aot_package
from .file_meta import FileError, FileMeta, kind_of, read_meta
from .runtimes import require

#: FileMeta.dtype -> OpenVINO's name of the precision it computes in; left to itself it takes bf16 where the CPU has it
OPENVINO_PRECISIONS = dict(fp32='f32', bf16='bf16', fp16='f16', int8='f32')


class FileRunner:
    """An exported file, opened.

    Args:
        path (str | Path): of an ONNX, OpenVINO or pt2 file with metadata (see :mod:`.file_meta`).
        threads (int, optional): of the runtime; its own choice by default. A pt2 file always runs with torch's.

    Attributes:
        meta (FileMeta): of the file.
        kind (str): 'onnx', 'openvino' or 'pt2'.

    Raises:
        FileError: the file can't be read.
        RuntimeMissingError: its runtime is not installed.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        self.path, self.kind = Path(path), kind_of(path)
        self.meta = read_meta(path)
        try:
            self._run = _OPENERS[self.kind](self.path, self.meta, threads)
        except RuntimeError as error:  # the runtimes' own errors are RuntimeErrors
            raise FileError(f'{self.kind} does not open {path}: {str(error)[:400]}') from error

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Run on a batch.

        Args:
            images (ndarray): (N, 3, H, W), uint8 BGR (of a 'raw' file: normalised float32).

        Returns:
            dict: name of an output -> array.

        Raises:
            FileError: images the file was not made for.
        """
        self.meta.check_images(images.shape, str(images.dtype))
        return dict(zip(self.meta.outputs, self._run(np.ascontiguousarray(images)), strict=True))


def _open_onnx(path: Path, meta: FileMeta, threads: int | None) -> Callable:
    runtime = require('onnxruntime')
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    # threads that go on spinning after a call would disturb what runs next, another runtime's turn of a benchmark too
    options.add_session_config_entry('session.force_spinning_stop', '1')
    session = runtime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    return lambda images: session.run(meta.outputs, {meta.input['name']: images})


def _open_openvino(path: Path, meta: FileMeta, threads: int | None) -> Callable:
    openvino = require('openvino')
    settings: dict[str, object] = {'INFERENCE_PRECISION_HINT': OPENVINO_PRECISIONS[meta.dtype]}
    if threads:
        settings['INFERENCE_NUM_THREADS'] = threads
    compiled = openvino.compile_model(str(path), 'CPU', settings)
    request = compiled.create_infer_request()

    def run(images):
        results = request.infer([images])
        return [results[output].copy() for output in compiled.outputs]

    return run


def _open_pt2(path: Path, meta: FileMeta, threads: int | None) -> Callable:
    package = read_aot_package(str(path))

    def run(images):
        with torch.inference_mode():
            return [
                output.float().numpy() if output.is_floating_point() else output.numpy()
                for output in package(torch.from_numpy(images))
            ]

    return run


_OPENERS: dict[str, Callable[[Path, FileMeta, int | None], Callable]] = dict(
    onnx=_open_onnx, openvino=_open_openvino, pt2=_open_pt2
)
