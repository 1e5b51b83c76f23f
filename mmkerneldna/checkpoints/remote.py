"""Checkpoints under a short name or a web address: found on this machine, else fetched, else one error that says what to do.

``torchvision://resnet50``, ``open-mmlab://detectron2/resnet50_caffe``, ``mmcls://resnet18`` stand for addresses that mmengine
keeps in tables. torchvision itself is asked for names of its newer weights only, where it is installed. A file that was
copied by hand into the folder that torch downloads to is as good as a download.
"""

import difflib
import importlib.util
import os
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import mmengine
import torch
from mmengine.dist import barrier, is_distributed
from mmengine.logging import print_log
from mmengine.runner.checkpoint import get_deprecated_model_names, get_external_models, get_mmcls_models, get_torchvision_models

from ..errors import CheckpointError
from .reading import plain_state_dict, split_backbone
from .safe_reading import read_checkpoint

WEB = ('http://', 'https://')
TORCHVISION = ('torchvision://', 'modelzoo://')
OPENMMLAB = ('open-mmlab://', 'openmmlab://')
MMCLS = ('mmcls://',)
PREFIXES = (*WEB, *TORCHVISION, *OPENMMLAB, *MMCLS)


def fetch(name: str, map_location='cpu', unsafe: bool | None = None) -> Mapping[str, Any]:
    """Read a checkpoint from a file, or from what a short name or an address stands for.

    Args:
        name (str): a path, a name with one of :data:`PREFIXES`, or a web address.
        map_location: as for ``torch.load``.
        unsafe (bool, optional): as for :func:`.safe_reading.read_checkpoint`; by default what the tool allows.

    Returns:
        Mapping: what the file holds; of ``mmcls://``, a classifier, the backbone only, as mmengine has it.

    Raises:
        CheckpointError: no such name or file, the file can't be fetched (says which to put where), or can't be read.
    """
    name = str(name)
    if unsafe is None:
        unsafe = os.environ.get('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD') == '1'  # --unsafe-checkpoint
    if not name.startswith(PREFIXES):
        return read_checkpoint(name, map_location, unsafe)
    held = read_checkpoint(str(find_file(name)), map_location, unsafe)
    return dict(state_dict=split_backbone(plain_state_dict(held, name))[0]) if name.startswith(MMCLS) else held


def resolve(name: str) -> str:
    """The address behind a short name; an address is one itself. A user's own table may hold paths in place of addresses.

    Raises:
        CheckpointError: no table has the name.
    """
    if name.startswith(WEB):
        return name
    kind, _, short = name.partition('://')
    table = _table(f'{kind}://', short)
    if short in table:
        return table[short]
    near = difflib.get_close_matches(short, table, n=3, cutoff=0.4)
    newer = ' (newer weights need torchvision installed)' if f'{kind}://' in TORCHVISION and not _has_torchvision() else ''
    raise CheckpointError(f'checkpoint {name} is not known{newer}{"; nearest: " if near else ""}{", ".join(near)}')


def find_file(name: str) -> Path:
    """The local file of a name with one of :data:`PREFIXES`, which is downloaded where there is none.

    In a distributed run the first process of each machine downloads, the others wait.

    Raises:
        CheckpointError: it is nowhere and can't be downloaded: names the address, the file and the folder to put it into.
    """
    url = resolve(name)
    if not url.startswith(WEB):
        return Path(mmengine_home(), url)
    file_name = os.path.basename(urlparse(url).path)
    if not file_name:
        raise CheckpointError(f'checkpoint {name} names no file')
    if not is_distributed():
        return _cached(file_name) or _download(name, url, file_name)
    try:
        if os.environ.get('LOCAL_RANK', '0') == '0' and _cached(file_name) is None:
            _download(name, url, file_name)
    finally:
        barrier()  # also where the download failed: the others must not wait for ever
    return _cached(file_name) or _download(name, url, file_name)


def folders() -> list[Path]:
    """Where files are looked for: torch's download folder, then the one of its early versions."""
    home = os.environ.get('TORCH_HOME') or os.path.join(os.environ.get('XDG_CACHE_HOME', '~/.cache'), 'torch')
    return [Path(torch.hub.get_dir(), 'checkpoints').expanduser(), Path(home, 'checkpoints').expanduser()]


def mmengine_home() -> Path:
    """The folder of mmengine's downloads and of a user's own table ``open_mmlab.json``."""
    cache = os.path.join(os.environ.get('XDG_CACHE_HOME', '~/.cache'), 'mmengine')
    return Path(os.environ.get('MMENGINE_HOME', cache)).expanduser()


def _table(prefix: str, short: str) -> dict[str, str]:
    if prefix in MMCLS:
        return get_mmcls_models()
    if prefix in OPENMMLAB:
        table = get_external_models()
        return {**table, **{old: table[new] for old, new in get_deprecated_model_names().items() if new in table}}
    table = mmengine.load(str(Path(mmengine.__file__).parent / 'hub' / 'torchvision_0.12.json'))
    return table if short in table or not _has_torchvision() else get_torchvision_models()


def _has_torchvision() -> bool:
    return importlib.util.find_spec('torchvision') is not None


def _cached(file_name: str) -> Path | None:
    return next((folder / file_name for folder in folders() if (folder / file_name).is_file()), None)


def _download(name: str, url: str, file_name: str) -> Path:
    folder = folders()[0]
    print_log(f'downloading {url} to {folder}', logger='current')
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(folder / file_name), progress=False)
    except (OSError, HTTPException, ValueError) as error:  # network, disk; an answer cut short; an address that is none
        cause = ' '.join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"checkpoint {name} is not on this machine and can't be fetched ({cause}): download {url} where "
            f'there is a network, and put the file {file_name} into {folder}; or name a file in place of '
            f'{name}'
        ) from error
    return folder / file_name
