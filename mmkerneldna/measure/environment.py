"""Where a number was measured: goes in front of every table."""

import platform
from datetime import datetime
from importlib import metadata
from pathlib import Path

import torch

from ..version import __version__

DISTRIBUTIONS = {
    'mmengine': 'onedl-mmengine',
    'mmcv': 'onedl-mmcv',
    'mmdet': 'onedl-mmdetection',
    'mmseg': 'onedl-mmsegmentation',
}


def environment(device: str | torch.device = 'cpu') -> dict[str, str]:
    """Versions, processor, threads and date, all as text.

    Args:
        device (str): its name is stated; on CUDA with its memory, the CUDA and cuDNN versions and whether TF32 is on.
    """
    facts = dict(
        date=datetime.now().astimezone().isoformat(timespec='seconds'),
        python=platform.python_version(),
        torch=torch.__version__,
        mmkerneldna=__version__,
    )
    facts.update({name: metadata.version(distribution) for name, distribution in DISTRIBUTIONS.items()})
    facts.update(device=str(device), cpu=_cpu_name(), threads=str(torch.get_num_threads()))
    if torch.device(device).type == 'cuda':
        facts.update(_cuda_facts(device))
    return facts


def _cuda_facts(device) -> dict[str, str]:
    properties = torch.cuda.get_device_properties(device)
    return dict(
        gpu=f'{properties.name}, {properties.total_memory / 2**30:.0f} GiB',
        cuda=str(torch.version.cuda),
        cudnn=str(torch.backends.cudnn.version()),
        cudnn_benchmark=str(torch.backends.cudnn.benchmark),
        tf32=f'conv {torch.backends.cudnn.allow_tf32}, matmul {torch.backends.cuda.matmul.allow_tf32}',
    )


def _cpu_name() -> str:
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    return platform.processor() or platform.machine()


def describe(facts: dict[str, str]) -> str:
    """One line of ``key value`` pairs."""
    return ', '.join(f'{key} {value}' for key, value in facts.items())
