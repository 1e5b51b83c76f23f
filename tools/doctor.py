"""Check the installation; for each thing that is wrong print the command that fixes it. Exit status 1 if anything is.

Runs on a bare Python: nothing but the standard library is imported until it is known to be there.
"""

import argparse
import importlib
import importlib.util
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CPU_INDEX = 'https://download.pytorch.org/whl/cpu'
PIP = f'{sys.executable} -m pip'
CHECKOUT = (ROOT / 'pyproject.toml').is_file()
ITSELF = f'-e {ROOT}' if CHECKOUT else '--force-reinstall mmkerneldna'
INSTALL_SELF = f'{PIP} install --no-build-isolation --no-deps {ITSELF}'
OTHERS = {
    'numpy': 'numpy',
    'cv2': 'opencv-python-headless',
    'matplotlib': 'matplotlib',
    'packaging': 'packaging',
    'pycocotools': 'pycocotools',
    'rich': 'rich',
    'scipy': 'scipy',
}


class Finding(NamedTuple):
    """One line of the report; ``fix`` is the command, '' where all is well."""

    what: str
    found: str
    fix: str = ''


def find_dependencies_file() -> Path:
    """``_dependencies.py`` of the checkout, or of the installed package when run from its ``.mim`` folder."""
    for folder in (ROOT / 'mmkerneldna', ROOT.parent):
        if (folder / '_dependencies.py').is_file():
            return folder / '_dependencies.py'
    raise SystemExit(f'error: _dependencies.py of mmkerneldna not found beside {ROOT}')


def load_dependencies():
    """The dependency table, without importing the package (which needs them all)."""
    spec = importlib.util.spec_from_file_location('_mmkerneldna_dependencies', find_dependencies_file())
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_python() -> Finding:
    version = platform.python_version()
    good = (3, 10) <= sys.version_info < (3, 13)
    return Finding('python', version, '' if good else 'make clean setup PYTHON=python3.11')


def install_command(module: str, dependencies) -> str:
    """What installs or repairs a required package."""
    wanted = f"'{dependencies.requirements()[dependencies.MODULES[module]]}'"
    if module == 'torch':
        return f'{PIP} install {wanted}   (CPU only: add --index-url {CPU_INDEX})'
    if module == 'mmcv':
        return f'{PIP} install --no-build-isolation --no-deps --force-reinstall --no-cache-dir {wanted}'
    return f'{PIP} install {wanted}'


def reinstall_command(dist: str) -> str:
    """What repairs a package that is there but broken."""
    return f'{PIP} install --force-reinstall --no-deps {dist}'


def check_required(module: str, dependencies) -> Finding:
    """Version within range and importable."""
    fix = install_command(module, dependencies)
    try:
        version = dependencies.check_dependency(module)
        importlib.import_module(module)
    except dependencies.DependencyError as error:
        return Finding(module, str(error).split(': run ')[0], fix)
    except Exception as error:  # a broken package can raise anything
        return Finding(module, f'does not import: {_first_line(error)}', fix)
    return Finding(module, version)


def check_other(module: str, dist: str) -> Finding:
    try:
        importlib.import_module(module)
        return Finding(module, metadata.version(dist))
    except metadata.PackageNotFoundError:
        return Finding(module, 'installed by another distribution')
    except ModuleNotFoundError as error:
        return Finding(module, _first_line(error), f'{PIP} install {dist}')
    except Exception as error:  # the OpenCV with windows lacks libGL on a server, the headless one does not need it
        return Finding(module, f'does not import: {_first_line(error)}', reinstall_command(dist))


def check_mmcv_ops(dependencies) -> Finding:
    """The compiled part, which ``pip install`` leaves out silently when torch is missing at build time."""
    try:
        importlib.import_module('mmcv._ext')
    except Exception as error:
        return Finding('mmcv._ext', f'does not load: {_first_line(error)}', install_command('mmcv', dependencies))
    return Finding('mmcv._ext', 'loads')


def check_cuda(dependencies) -> list[Finding]:
    """Whether torch sees a GPU and mmcv has kernels for it. A machine without a GPU is all right."""
    torch = importlib.import_module('torch')
    nvcc = _nvcc_version()
    findings = [Finding('nvcc', nvcc or 'none (needed only to compile mmcv for a GPU)')]
    if not torch.cuda.is_available():
        driver = shutil.which('nvidia-smi')
        fix = "make setup TORCH='torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130'" if driver else ''
        state = 'nvidia-smi is there, but torch sees no GPU' if driver else 'no GPU: everything runs on the CPU'
        return findings + [Finding('CUDA', f'{state} (torch built for CUDA {torch.version.cuda or "none"})', fix)]
    findings.append(Finding('CUDA', f'{torch.version.cuda}, {torch.cuda.get_device_name()}'))
    return findings + [check_mmcv_cuda(dependencies)]


def check_mmcv_cuda(dependencies) -> Finding:
    try:
        compiled = importlib.import_module('mmcv.ops').get_compiling_cuda_version()
    except Exception as error:
        compiled = _first_line(error)
    good = compiled[:1].isdigit()
    return Finding('mmcv CUDA ops', compiled, '' if good else f'FORCE_CUDA=1 {install_command("mmcv", dependencies)}')


def check_config_scope(scope: str, fix: str) -> Finding:
    """Whether configs named ``scope::...`` are found."""
    spec = importlib.util.find_spec(scope)
    found = spec is not None and (Path(spec.origin).parent / '.mim' / 'configs').is_dir()
    return Finding(f'{scope}:: configs', 'found' if found else 'not found', '' if found else fix)


def check_import() -> Finding:
    try:
        package = importlib.import_module('mmkerneldna')
    except Exception as error:
        return Finding('mmkerneldna', f'does not import: {_first_line(error)}', INSTALL_SELF)
    return Finding('mmkerneldna', package.__version__)


def examine() -> list[Finding]:
    """All findings; what builds on a broken part is left out."""
    dependencies = load_dependencies()
    findings = [check_python()]
    findings += [check_required(module, dependencies) for module in dependencies.MODULES]
    findings += [check_other(module, dist) for module, dist in OTHERS.items()]
    wrong = {finding.what for finding in findings if finding.fix}
    if 'torch' not in wrong:
        findings += check_cuda(dependencies)
        findings += [] if 'mmcv' in wrong else [check_mmcv_ops(dependencies)]
    findings += [
        check_config_scope(scope, reinstall_command(dependencies.MODULES[scope]))
        for scope in ('mmdet', 'mmseg')
        if scope not in wrong
    ]
    return findings + [check_config_scope('mmkerneldna', INSTALL_SELF)] + ([] if wrong else [check_import()])


def _nvcc_version() -> str:
    nvcc = shutil.which('nvcc')
    if not nvcc:
        return ''
    lines = subprocess.run([nvcc, '--version'], capture_output=True, text=True, timeout=30, check=False).stdout.splitlines()
    return next((line.split('release')[-1].split(',')[0].strip() for line in lines if 'release' in line), nvcc)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def show(findings: list[Finding]) -> None:
    """A table; plain text where rich is missing."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for finding in findings:
            print(f'{"WRONG" if finding.fix else "ok":6} {finding.what:20} {finding.found}')
        return
    table = Table('', 'part', 'found', title='mmkerneldna: installation')
    for finding in findings:
        table.add_row('[red]wrong[/]' if finding.fix else '[green]ok[/]', finding.what, finding.found)
    Console().print(table)


def main() -> int:
    argparse.ArgumentParser(description=__doc__.split('\n')[0]).parse_args()
    if CHECKOUT:
        sys.path.insert(0, str(ROOT))
    findings = examine()
    show(findings)
    wrong = [finding for finding in findings if finding.fix]
    for finding in wrong:
        print(f'to fix {finding.what}:\n    {finding.fix}')
    print('all is well' if not wrong else f'{len(wrong)} to fix; or everything anew: make clean setup')
    return int(bool(wrong))


if __name__ == '__main__':
    raise SystemExit(main())
