"""What an exported file says about itself: JSON under the key ``mmkerneldna`` in the file's own place for metadata.

ONNX has ``metadata_props``, OpenVINO the ``rt_info`` of its XML, a pt2 package is a zip archive with a folder ``extra``. So the
examples and any other program can read it without this package.
"""

import json
import xml.etree.ElementTree as xml
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import KernelDNAError

KEY = 'mmkerneldna'
#: of the format of the metadata itself; files of a later version are refused
VERSION = 1
TASKS = ('detection', 'instance', 'segmentation', 'raw')
#: file name's suffix -> kind of file
KINDS = {'.onnx': 'onnx', '.xml': 'openvino', '.pt2': 'pt2'}


class FileError(KernelDNAError, ValueError):
    """An exported file that can't be used: not there, not readable, of another kind, or not made for what is asked."""


@dataclass
class FileMeta:
    """The contract of an exported file.

    Attributes:
        task (str): ``'detection'`` (outputs dets, labels), ``'instance'`` (and masks), ``'segmentation'`` (labels_map), or
            ``'raw'`` for a part of a model that takes normalised float images.
        classes (list): names, in the order of the labels.
        input (dict): ``name``, ``channels`` ('bgr'), ``dtype`` ('uint8'), ``pad_divisor`` (what the graph pads sides to),
            ``least_side`` (of the images), ``side_multiple`` (what their sides are a multiple of).
        size (list, optional): [H, W] of the images, None where any size goes.
        batch (int, optional): number of images, None where any number goes.
        outputs (list): their names, in order.
        dtype (str): 'fp32', 'bf16', 'fp16' or 'int8', what the network computes in.
        config (str): name of the config.
        mask_threshold (float, optional): of an instance segmenter: from which probability on a pixel belongs to the object.
        version (int): of this format.
    """

    task: str
    classes: list[str] = field(default_factory=list)
    input: dict[str, Any] = field(default_factory=lambda: dict(name='images', channels='bgr', dtype='uint8', pad_divisor=1))
    size: list[int] | None = None
    batch: int | None = None
    outputs: list[str] = field(default_factory=list)
    dtype: str = 'fp32'
    config: str = ''
    mask_threshold: float | None = None
    version: int = VERSION

    def check_whole(self, path: str | Path) -> None:
        """Refuse the file of a part of a model, whose outputs are no predictions.

        Raises:
            FileError: names the file and how a whole model is exported.
        """
        if self.task == 'raw':
            raise FileError(f'{path} holds raw outputs of a part of a model: export the whole model by --end2end to test it')

    def check_images(self, shape: tuple[int, ...], dtype: str) -> None:
        """Refuse images the file was not made for.

        Args:
            shape (tuple): of the array of images, (N, 3, H, W).
            dtype (str): of its elements, e.g. ``'uint8'``.

        Raises:
            FileError: names what came and what the file takes.
        """
        wanted = [self.batch or 'N', 3, *(self.size or ('H', 'W'))]
        least, multiple = self.input.get('least_side', 1), self.input.get('side_multiple', 1)
        fits = len(shape) == 4 and not any(type(w) is int and s != w for s, w in zip(shape, wanted)) and min(shape[2:]) >= least
        fits = fits and not any(side % multiple for side in shape[2:])
        if not fits or dtype != self.input['dtype']:
            sides = f', sides of {least} or more' if least > 1 else ''
            sides += f', multiples of {multiple}' if multiple > 1 else ''
            takes = f'({", ".join(map(str, wanted))}) {self.input["dtype"]}{sides}'
            raise FileError(
                f'images {tuple(shape)} {dtype}: this file takes {takes}; resize or batch the images so, or export with '
                '--dynamic both for a file that takes any size and batch'
            )


def kind_of(path: str | Path) -> str:
    """'onnx', 'openvino' or 'pt2', from the name of a file.

    Raises:
        FileError: any other name.
    """
    kind = KINDS.get(Path(path).suffix)
    if kind is None:
        raise FileError(f'{path} is no exported file: expected a name that ends in {", ".join(KINDS)}')
    return kind


def read_meta(path: str | Path) -> FileMeta:
    """The metadata of an exported file of any kind.

    Raises:
        FileError: no such file, no file of its kind, or none written by this package.
    """
    path = Path(path)
    kind = kind_of(path)
    if not path.is_file():
        raise FileError(f'{path} does not exist')
    try:
        text = _READERS[kind](path)
    except KernelDNAError:
        raise
    except Exception as error:  # zip, XML and protobuf raise what they like
        raise FileError(f'{path} is not readable as {kind} ({type(error).__name__})') from error
    if text is None:
        raise FileError(f'{path} has no metadata of mmkerneldna: was it written by tools/export.py?')
    return _parse(text, path)


def _parse(text: str, path: Path) -> FileMeta:
    try:
        values = json.loads(text)
        version = values['version']
        if version > VERSION:
            raise FileError(f'{path} has metadata of version {version}, newer than {VERSION}: update mmkerneldna')
        return FileMeta(**{key: value for key, value in values.items() if key in FileMeta.__dataclass_fields__})
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f'{path} has damaged metadata ({type(error).__name__}): export it again') from error


def write_meta(path: str | Path, meta: FileMeta) -> None:
    """Put the metadata into an exported file, in place of what it had."""
    if meta.task not in TASKS:
        raise FileError(f'task={meta.task!r} must be one of {TASKS}')
    path = Path(path)
    _WRITERS[kind_of(path)](path, json.dumps(asdict(meta)))


def _read_onnx(path: Path) -> str | None:
    return next(
        (entry.value for entry in _onnx().load(str(path), load_external_data=False).metadata_props if entry.key == KEY), None
    )


def _write_onnx(path: Path, text: str) -> None:
    onnx = _onnx()
    model = onnx.load(str(path), load_external_data=False)
    onnx.helper.set_model_props(model, {**{entry.key: entry.value for entry in model.metadata_props}, KEY: text})
    onnx.save(model, str(path))


def _onnx():
    from .runtimes import require

    return require('onnx')


def _read_openvino(path: Path) -> str | None:
    entry = xml.parse(path).getroot().find(f'rt_info/{KEY}')
    return None if entry is None else entry.get('value')


def _write_openvino(path: Path, text: str) -> None:
    tree = xml.parse(path)
    root = tree.getroot()
    info = root.find('rt_info')
    info = xml.SubElement(root, 'rt_info') if info is None else info
    entry = info.find(KEY)
    (xml.SubElement(info, KEY) if entry is None else entry).set('value', text)
    tree.write(path, encoding='utf-8', xml_declaration=True)


def _read_pt2(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(f'extra/{KEY}')]
        return archive.read(names[-1]).decode() if names else None


def _write_pt2(path: Path, text: str) -> None:
    """A zip archive can't replace an entry: a file that has one is written again without it."""
    if _read_pt2(path) is not None:
        _drop_entry(path, f'extra/{KEY}')
    with zipfile.ZipFile(path, 'a') as archive:
        root = archive.namelist()[0].partition('/')[0]
        archive.writestr(f'{root}/extra/{KEY}', text)


def _drop_entry(path: Path, ending: str) -> None:
    copy = path.with_name(f'{path.name}.copy')
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, 'w') as new:
        for entry in old.infolist():
            if not entry.filename.endswith(ending):
                new.writestr(entry, old.read(entry))
    copy.replace(path)


_READERS: dict[str, Callable[[Path], str | None]] = dict(onnx=_read_onnx, openvino=_read_openvino, pt2=_read_pt2)
_WRITERS: dict[str, Callable[[Path, str], None]] = dict(onnx=_write_onnx, openvino=_write_openvino, pt2=_write_pt2)
