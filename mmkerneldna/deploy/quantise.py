"""int8 files by post-training quantisation: for OpenVINO by NNCF, for onnxruntime by its own static quantisation (QDQ).

Both measure the ranges of the activations on calibration images and keep the same operations in float (:mod:`.quantise_graph`).
With a largest allowed loss, layers that hurt go back to float: layers are ranked by the error that each adds to its input's, on
two images; 1, 2, 4, ... of the worst are left out until the score is good enough, then as few of these as will do.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from mmengine.logging import print_log

from ..errors import KernelDNAError
from . import quantise_onnx, quantise_openvino
from .file_meta import FileMeta, kind_of, read_meta, write_meta
from .onnx_values import layer_outputs_onnx
from .quantise_graph import Selection, channel_axis
from .writers import whole_files_only

#: fewer images do not show what the activations of a net look like
FEWEST_IMAGES = 10
#: images on which layers are ranked
RANKED_ON = 2
#: share of a net's multiply-accumulates that its last layers may have to stay float
CHEAP = 0.02

_READ: dict[str, Callable[[Path], Selection]] = dict(
    onnx=quantise_onnx.read_selection, openvino=quantise_openvino.read_selection
)
_SIZES = dict(onnx=quantise_onnx.kernel_sizes_onnx, openvino=quantise_openvino.kernel_sizes_openvino)
_OUTPUTS = dict(onnx=layer_outputs_onnx, openvino=quantise_openvino.layer_outputs_openvino)


class QuantiseError(KernelDNAError, ValueError):
    """A file that can't be quantised as asked; none is left behind."""


@dataclass
class QuantiseReport:
    """What :func:`quantise` did.

    Attributes:
        file (str): written.
        images (int): calibrated on.
        layers (int): convolutions and matrix products in int8.
        last_float (list[str]): last layers that stay float because they cost next to nothing, see
            :func:`cheap_last_layers`.
        left_float (list[str]): layers that stay float because they hurt; the worst first.
        float_score, score (float, optional): of the float file and of the new one, where they were asked for.
        trials (list[tuple[int, float]]): how many layers were left float, and the score with that.
    """

    file: str
    images: int
    layers: int
    last_float: list[str] = field(default_factory=list)
    left_float: list[str] = field(default_factory=list)
    float_score: float | None = None
    score: float | None = None
    trials: list[tuple[int, float]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f'{self.file}: {self.layers} layers in int8, calibrated on {self.images} images']
        if self.last_float:
            lines.append(f'last layers that stay float, small ones whose outputs are results: {len(self.last_float)}')
        if self.float_score is not None and self.score is not None:
            lines.append(f'score {self.score:.2f} (float {self.float_score:.2f}, {self.score - self.float_score:+.2f})')
            lines += [f'{count} layers left float: score {score:.2f}' for count, score in self.trials]
        lines += [f'left float, because it hurts: {name}' for name in self.left_float]
        return '\n'.join(lines)


def quantise(
    path: str | Path,
    out: str | Path,
    images: Sequence[np.ndarray],
    max_drop: float | None = None,
    score: Callable[[Path], float] | None = None,
) -> QuantiseReport:
    """Write an int8 copy of an fp32 file.

    Args:
        path: of an end-to-end ONNX or OpenVINO file in fp32.
        out: of the new file, of the same kind; written whole or not at all.
        images: (3, H, W) each, uint8, BGR, as the file takes them.
        max_drop: largest loss of the score; layers that hurt stay float until it is kept.
        score: of a file, the higher the better; needed with ``max_drop``, else not called.

    Returns:
        QuantiseReport: also in the log.

    Raises:
        QuantiseError: too few images, a file that is no fp32 file of these two kinds, or a loss that can't be kept.
        FileError: the file can't be read, or does not take images of this size.
        RuntimeMissingError: what quantises is not installed.
    """
    path, out = Path(path), Path(out)
    meta = read_meta(path)
    kind = _check(path, out, meta, images, max_drop, score)
    batches = [np.repeat(image[None], meta.batch or 1, axis=0) for image in images]
    selection = _READ[kind](path)
    if not selection.layers:
        raise QuantiseError(f'{path} has no convolution and no matrix product: there is nothing to quantise')
    last = cheap_last_layers(path, kind, selection, batches[0])
    selection = selection.without(last)
    with whole_files_only(out) as draft:
        report = QuantiseReport(str(out), len(images), 0, last)

        def score_without(names: Sequence[str]) -> float:
            _write(kind, path, draft, meta, batches, selection.without(names))
            return 0.0 if score is None or max_drop is None else score(draft)

        if max_drop is None or score is None:
            score_without(())
        else:
            report.float_score = score(path)
            rank = partial(_rank, kind, path, draft, batches, selection)
            report.left_float = _search(score_without, rank, report.float_score - max_drop, report)
        report.layers = len(selection.layers) - len(report.left_float)
    print_log(str(report), logger='current')
    return report


def cheap_last_layers(path: Path, kind: str, selection: Selection, images: np.ndarray) -> list[str]:
    """Last layers that stay float.

    Their outputs are results, boxes most of all, and they save nothing worth having where they are small. (onnxruntime has int8
    kernels only for layers whose output is rounded to 256 steps too.)

    Args:
        path: of the float file.
        kind: of that file.
        selection: what may be quantised.
        images: (N, 3, H, W), to see how large outputs are.

    Returns:
        list: names, the cheapest first, as many as have :data:`CHEAP` of all multiply-accumulates.
    """
    outputs, sizes = _OUTPUTS[kind](path, selection.layers, images), _SIZES[kind](path, set(selection.layers))
    costs = {name: values.size // values.shape[channel_axis(values)] * sizes[name] for name, values in outputs.items()}
    left = CHEAP * sum(costs.values())
    found = []
    for name in sorted(selection.last, key=costs.__getitem__):
        left -= costs[name]
        if left < 0:
            break
        found.append(name)
    return found


def _check(path: Path, out: Path, meta: FileMeta, images: Sequence[np.ndarray], max_drop, score) -> str:
    kind = kind_of(path)
    if kind not in _READ:
        raise QuantiseError(f'{path} is a {kind} file: int8 is for {" and ".join(_READ)}')
    if kind_of(out) != kind:
        raise QuantiseError(f'{out} is to be written from {path}: give it the suffix {path.suffix}')
    if meta.dtype != 'fp32':
        raise QuantiseError(f'{path} computes in {meta.dtype}: export it in fp32, int8 is made of that')
    if len(images) < FEWEST_IMAGES:
        raise QuantiseError(
            f'{len(images)} calibration images are too few: at least {FEWEST_IMAGES} are needed, 100 to 300 usual'
        )
    if max_drop is not None and (score is None or not max_drop >= 0):
        raise QuantiseError(f'max_drop={max_drop} must be at least 0, with a function that scores a file')
    for image in images:
        meta.check_images((meta.batch or 1, *image.shape), str(image.dtype))
    return kind


def _write(kind: str, path: Path, draft: Path, meta: FileMeta, batches: Sequence[np.ndarray], selection: Selection) -> None:
    try:
        if kind == 'onnx':
            quantise_onnx.quantise_onnx(path, draft, batches, selection, full_range=has_vnni())
        else:
            quantise_openvino.quantise_openvino(path, draft, batches, selection)
    except KernelDNAError:
        raise
    except Exception as error:  # both libraries raise what they like
        raise QuantiseError(f'{path} can not be quantised, {type(error).__name__}: {str(error)[:400]}') from error
    write_meta(draft, replace(meta, dtype='int8'))


def _search(
    score_without: Callable[[Sequence[str]], float], rank: Callable[[], list[str]], lowest: float, report: QuantiseReport
) -> list[str]:
    """As few layers left float as keep the score; the last file written is the one without them.

    Args:
        score_without: writes the file with some layers left float, and scores it.
        rank: all layers, the worst first, by the file written last.
        lowest: score to keep.
        report: gets the trials.
    """

    def keeps(names: Sequence[str]) -> bool:
        report.score = score_without(names)
        report.trials.append((len(names), report.score))
        return report.score >= lowest

    if keeps(()):
        return []
    worst = rank()
    fails, count = 0, 1
    while not keeps(worst[:count]):
        if count == len(worst):
            raise QuantiseError(
                f'no int8 file reaches a score of {lowest:.2f} (the float file has {report.float_score:.2f}): with all '
                f'{count} layers left float it is {report.score:.2f}'
            )
        fails, count = count, min(2 * count, len(worst))
    while count - fails > 1:
        middle = (fails + count) // 2
        fails, count = (fails, middle) if keeps(worst[:middle]) else (middle, count)
    if report.trials[-1][0] != count:
        keeps(worst[:count])
    return worst[:count]


def _rank(kind: str, path: Path, draft: Path, batches: Sequence[np.ndarray], selection: Selection) -> list[str]:
    """Layers, the one that adds most error first."""
    errors: dict[str, float] = dict.fromkeys(selection.layers, 0.0)
    for batch in batches[:RANKED_ON]:
        wanted, found = (_OUTPUTS[kind](file, selection.layers, batch) for file in (path, draft))
        for name in wanted.keys() & found.keys():
            if wanted[name].shape == found[name].shape:  # a second stage may get another number of boxes
                errors[name] += relative_error(found[name], wanted[name])
    return sorted(selection.layers, key=lambda name: added_error(name, errors, selection.feeds), reverse=True)


def relative_error(values: np.ndarray, wanted: np.ndarray) -> float:
    """Power of the difference over the power of what is wanted."""
    power = float(np.square(wanted.astype(np.float64)).sum())
    return float(np.square(values.astype(np.float64) - wanted).sum()) / power if power else 0.0


def added_error(name: str, errors: Mapping[str, float], feeds: Mapping[str, Sequence[str]]) -> float:
    """A layer's error beyond the largest of the layers that feed it."""
    return errors[name] - max((errors.get(source, 0.0) for source in feeds.get(name, ())), default=0.0)


def has_vnni() -> bool:
    """Whether the CPU multiplies int8 without saturating on the way (AVX-512 VNNI, AVX VNNI, AMX, or no x86 at all)."""
    try:
        text = Path('/proc/cpuinfo').read_text()
    except OSError:
        return True
    return 'flags' not in text or any(flag in text.split() for flag in ('avx512_vnni', 'avx_vnni', 'amx_int8'))
