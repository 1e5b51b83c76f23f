"""Ship the configs, the tools and the model index inside the package, under ``mmkerneldna/.mim``.

mmengine and mim look there for ``mmkerneldna::...``. A wheel gets copies; an editable install gets links, so an edited
config is seen at once. Everything else is in pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM_DIR = Path('mmkerneldna', '.mim')
MIM_CONTENT = ('configs', 'tools', 'model-index.yml')


class BuildPyWithMim(build_py):
    """``build_py`` that adds ``mmkerneldna/.mim``."""

    def run(self):
        super().run()
        base, place = (ROOT, _link) if self.editable_mode else (Path(self.build_lib), _copy)
        target = base / MIM_DIR
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in MIM_CONTENT:
            place(ROOT / name, target / name)


def _link(source: Path, target: Path) -> None:
    target.symlink_to(Path('..', '..', source.name))


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__', '*.pyc'))
    else:
        shutil.copy2(source, target)


setup(cmdclass={'build_py': BuildPyWithMim})
