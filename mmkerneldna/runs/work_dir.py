"""What mmengine writes into a work_dir, read once: log records, metrics of tests, configs, the environment of the cost.

``<timestamp>/vis_data/scalars.json`` has a line per log event, ``<timestamp>/vis_data/config.py`` the config as it ran,
``<timestamp>/<timestamp>.json`` the metrics of a test. Several timestamps (resumed trainings, later tests) make one run.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..errors import KernelDNAError
from ..hooks.cost_hook import FILE_NAME

TIMESTAMP = re.compile(r'\d{8}_\d{6}(_.*)?$')


class NoRunsError(KernelDNAError, ValueError):
    """A folder that holds no run of mmengine."""


def find_runs(root: Path) -> list[Path]:
    """Work_dirs at or below ``root``: folders that hold a timestamp folder with logs.

    Raises:
        NoRunsError: there is none.
    """
    stamps = [path for path in Path(root).rglob('*') if path.is_dir() and TIMESTAMP.match(path.name)]
    runs = sorted({path.parent for path in stamps if _has_logs(path)})
    if not runs:
        raise NoRunsError(
            f'{root} holds no run: no folder such as 20260131_235959 with vis_data/ or a test result, at '
            'any depth; name the --work-dir of a training or test'
        )
    return runs


def _has_logs(stamp: Path) -> bool:
    return (stamp / 'vis_data').is_dir() or (stamp / f'{stamp.name}.json').is_file()


def stamps_of(work_dir: Path) -> list[Path]:
    """Timestamp folders of one run, in order."""
    return sorted(path for path in work_dir.iterdir() if path.is_dir() and TIMESTAMP.match(path.name))


@dataclass
class Logs:
    """Of all timestamps of a run.

    Attributes:
        records (list): in order. After a resume steps repeat; the later record wins.
        trained (list): timestamps that logged a step of training.
        broken (int): lines that can't be read (a killed run's last).
    """

    records: list[dict] = field(default_factory=list)
    trained: list[Path] = field(default_factory=list)
    broken: int = 0


def read_logs(stamps: Sequence[Path]) -> Logs:
    """Read every log of a run."""
    logs, records = Logs(), dict[Any, dict]()
    lines = [(stamp, line) for stamp in stamps for line in _lines(stamp)]
    for index, (stamp, line) in enumerate(lines):
        try:
            record = json.loads(line)
        except ValueError:
            logs.broken += 1
            continue
        key = (is_validation(record), record.get('step', index))
        records.pop(key, None)
        records[key] = record
        if not is_validation(record) and stamp not in logs.trained:
            logs.trained.append(stamp)
    logs.records = list(records.values())
    return logs


def _lines(stamp: Path) -> Iterator[str]:
    path = stamp / 'vis_data' / 'scalars.json'
    return filter(str.strip, path.read_text().splitlines() if path.is_file() else [])


def is_validation(record: dict) -> bool:
    """Whether a log record is of an evaluation, not of a step of training."""
    return 'lr' not in record and 'loss' not in record


def read_test(stamps: Sequence[Path]) -> dict:
    """Metrics of the latest test."""
    for stamp in reversed(stamps):
        path = stamp / f'{stamp.name}.json'
        if path.is_file():
            try:
                return json.loads(path.read_text())
            except ValueError:
                continue
    return {}


def read_config(work_dir: Path, stamps: Sequence[Path]) -> Config:
    """The config as it ran (of the training where there was one: a test knows no lengths); empty without a readable one."""
    dumped = [stamp / 'vis_data' / 'config.py' for stamp in reversed(stamps)]
    for path in [*dumped, *sorted(work_dir.glob('*.py'))]:
        if path.is_file():
            try:
                # The dump is complete and literal: what it imports need not be there to read it.
                return Config.fromfile(path, import_custom_modules=False)
            except Exception:
                continue
    return Config()


def config_name(work_dir: Path) -> str | None:
    """Of the config that the Runner dumped into the work_dir; the latest if there are several."""
    dumps = sorted(work_dir.glob('*.py'), key=lambda path: path.stat().st_mtime)
    return dumps[-1].stem if dumps else None


def read_environment(stamps: Sequence[Path]) -> dict:
    """What the cost was last measured with; empty if it never was."""
    for stamp in reversed(stamps):
        path = stamp / FILE_NAME
        if path.is_file():
            return json.loads(path.read_text())['environment']
    return {}


def checkpoint_step(work_dir: Path) -> int | None:
    """12 if ``last_checkpoint`` names ``epoch_12.pth`` or ``iter_12.pth``."""
    path = work_dir / 'last_checkpoint'
    found = re.search(r'_(\d+)\.pth', path.read_text()) if path.is_file() else None
    return int(found.group(1)) if found else None
