"""Variants of a config over seeds: trained, tested, measured, resumable.

Layout, below the folder of the comparison:

    <variant>/seed_<n>/            work_dir of one run, as mmengine writes it
    <variant>/seed_<n>/recipe.json     what the run is of; written first
    <variant>/seed_<n>/train.log, test.log
    <variant>/seed_<n>/trained.json    the checkpoint; written when the training has ended
    <variant>/seed_<n>/result.json     the run's row; written last, whole or not at all: a run that has it is finished
"""

import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from ..errors import UsageError
from ..measure.tables import write_json
from ..variants import get_variant
from .progress import EVENTS_WANTED, read_event
from .results import Row, collect_run, group_rows


@dataclass(frozen=True)
class Variant:
    """One line of the comparison: a config and what is changed in it.

    Attributes:
        name (str): in the table, and of the folder.
        config (str): a file, or ``package::folder/name.py``.
        options (tuple[str]): ``key=value``, as for ``--cfg-options``.
        swap (str, optional): name in the table of variants, as for ``--variant``.
    """

    name: str
    config: str
    options: tuple[str, ...] = ()
    swap: str | None = None


def parse_variant(text: str, base: str) -> Variant:
    """Read a variant from a command line.

    ``path.py`` or ``NAME=path.py`` is a config of its own; a name of :data:`mmkerneldna.variants.VARIANTS` is that variant
    of the base; ``NAME:key=value key=value`` changes the base. Keys that
    begin with ``backbone.``, ``neck.``, ``decode_head.``, ... (a part of the model) may leave ``model.`` out.

    Raises:
        UsageError: none of these.

    Examples:
        >>> parse_variant('kdna:backbone.type=KDNAResNet', 'a.py')
        Variant(name='kdna', config='a.py', options=('model.backbone.type=KDNAResNet',))
    """
    if text.endswith('.py'):
        name, _, path = text.rpartition('=')
        return Variant(name or Path(path.split('::')[-1]).stem, path)
    if re.fullmatch(r'\w+', text):
        get_variant(text)
        return Variant(text, base, swap=text)
    found = re.fullmatch(r'([\w.+-]+):\s*(\S.*)', text)
    options = shlex.split(found.group(2)) if found else []
    if found is None or not options or not all(re.match(r'[\w.]+=', option) for option in options):
        raise UsageError(f"variant '{text}' is neither [NAME=]CONFIG.py nor 'NAME:key=value ...'")
    return Variant(found.group(1), base, tuple(_full_key(option) for option in options))


def _full_key(option: str) -> str:
    part = option.split('.')[0]
    return f'model.{option}' if part == 'backbone' or part == 'neck' or part.endswith('_head') else option


def recipe_of(cfg: Config, seed: int, train_flags: Sequence[str]) -> dict[str, object]:
    """What makes a run the same run: the config with all changes, by its digest, the seed and the training flags."""
    digest = hashlib.sha256(cfg.pretty_text.encode()).hexdigest()
    return dict(config=digest, seed=seed, train_flags=list(train_flags))


@dataclass(frozen=True)
class Run:
    """One variant with one seed.

    Attributes:
        variant (Variant): of what.
        seed (int): random seed of the training.
        work_dir (Path): where it lives.
        recipe (dict): see :func:`recipe_of`.
        options (tuple[str]): config changes, the variant's and the comparison's.
    """

    variant: Variant
    seed: int
    work_dir: Path
    recipe: dict[str, object]
    options: tuple[str, ...]

    @property
    def title(self) -> str:
        """For messages."""
        return f'{self.variant.name}, seed {self.seed}'

    @property
    def finished(self) -> bool:
        """Whether the run has its result."""
        return (self.work_dir / 'result.json').is_file()

    def claim(self, anew: bool = False) -> None:
        """Make the folder this run's.

        Args:
            anew: empty a folder that belongs to a run of another recipe.

        Raises:
            UsageError: it belongs to one, and ``anew`` is not set.
        """
        path = self.work_dir / 'recipe.json'
        if path.is_file() and json.loads(path.read_text()) != self.recipe:
            if not anew:
                raise UsageError(
                    f'{self.work_dir} holds a run of another config, seed or flags; remove it, or name another --work-dir'
                )
            shutil.rmtree(self.work_dir)
        self.work_dir.mkdir(parents=True, exist_ok=True)
        write_json(path, self.recipe)

    def result(self) -> Row:
        """The row of a finished run."""
        return json.loads((self.work_dir / 'result.json').read_text())

    def finish(self) -> Row:
        """Collect the row, and mark the run as finished."""
        row = {**collect_run(self.work_dir, self.title), 'variant': self.variant.name, 'seed': self.seed}
        write_json(self.work_dir / 'result.json', row)
        return row

    @property
    def trained(self) -> bool:
        """Whether the training has ended."""
        return (self.work_dir / 'trained.json').is_file()

    def finish_training(self) -> None:
        """Mark the training as done. Its last checkpoint counts: the best on the test data would flatter."""
        name = Path((self.work_dir / 'last_checkpoint').read_text().strip()).name
        write_json(self.work_dir / 'trained.json', dict(checkpoint=name))

    def checkpoint(self) -> str:
        """Of a training that has ended."""
        return str(self.work_dir / json.loads((self.work_dir / 'trained.json').read_text())['checkpoint'])


def execute(run: Run, train_flags: Sequence[str], on_line: Callable[[str], None], tools: Path) -> Row:
    """Bring a run to its end from wherever it is; a finished one is only read.

    A training that was killed is resumed from its last checkpoint by ``tools/train.py --resume``.

    Args:
        run (Run): claimed.
        train_flags: for tools/train.py.
        on_line: gets each line of output, to show progress.
        tools (Path): folder of train.py and test.py.

    Returns:
        dict: its row; if training or test failed, one without score whose note says so, and which is not kept: the
        next call tries again.
    """
    if run.finished:
        return run.result()
    common = [run.variant.config, '--work-dir', str(run.work_dir)]
    common += ['--variant', run.variant.swap] if run.variant.swap else []
    options = ['--cfg-options', *run.options] if run.options else []
    if not run.trained:
        train = [str(tools / 'train.py'), *common, '--resume', '--seed', str(run.seed), *train_flags, *options]
        if not _call(train, run.work_dir / 'train.log', on_line):
            return _failed(run, 'train.log')
        run.finish_training()
    test = [str(tools / 'test.py'), common[0], run.checkpoint(), *common[1:], *options]
    if not _call(test, run.work_dir / 'test.log', on_line):
        return _failed(run, 'test.log')
    return run.finish()


def _failed(run: Run, log: str) -> Row:
    return dict(name=run.title, variant=run.variant.name, seed=run.seed, score=None, note=f'failed, see {run.work_dir / log}')


def _call(command: Sequence[str], log: Path, on_line: Callable[[str], None]) -> bool:
    """Run a tool, its output but the steps into a log; whether it ended well. It stops when this process is interrupted."""
    with open(log, 'a') as file, _locked(log.parent) as lock:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=[lock.fileno()],
            env={**os.environ, EVENTS_WANTED: '1'},
        )
        with process:
            assert process.stdout is not None  # a pipe, see above
            try:
                for line in process.stdout:
                    if read_event(line) is None:
                        file.write(line)
                        file.flush()
                    on_line(line.rstrip())
            except BaseException:
                process.terminate()
                raise
    return process.returncode == 0


def _locked(work_dir: Path):
    """Lock a run's folder. The tool inherits the lock: it lasts as long as either of the two lives.

    If this process is killed outright, the training it started goes on; a second one must not write to the same folder.
    """
    lock = open(work_dir / 'lock', 'w')  # noqa: SIM115  (the caller closes it, that ends the lock)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise UsageError(
            f'a training or test of an earlier comparison still runs in {work_dir}; wait for it or stop it'
        ) from None
    return lock


def variant_rows(rows: Sequence[Row], variants: Sequence[Variant]) -> list[Row]:
    """One row per variant, in their order: mean and spread over seeds, and ``score_gain`` over the first variant.

    ``score_gain`` compares means; whether it is more than chance the spreads must tell.
    """
    by_variant = {row['name']: row for row in group_rows(rows, lambda row: row['variant'])}
    grouped = [by_variant[variant.name] for variant in variants if variant.name in by_variant]
    task = next((row['task'] for row in grouped if row.get('task')), None)
    base = grouped[0].get('score') if grouped else None
    for row in grouped:
        known = base is not None and row.get('score') is not None
        row.update(task=row.get('task') or task, score_gain=row['score'] - base if known else None)
    return grouped
