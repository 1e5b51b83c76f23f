"""Command-line flags that several tools share."""

import argparse
import math
import os
from collections.abc import Callable, Sequence

import torch
from mmengine.config import DictAction

from ..deploy.backends import BACKENDS
from ..errors import UsageError
from ..measure.input_size import parse_size
from ..variants import VARIANTS
from .settings import SEED, Number


def number(low: float, high: float = math.inf, whole: bool = True) -> Callable[[str], float]:
    """A type for argparse: numbers from ``low`` to ``high``."""
    return _as_type(Number(low, high, whole))


def _as_type(wanted: Number) -> Callable[[str], float]:

    def parse(text: str) -> float:
        try:
            value = int(text) if wanted.whole else float(text)
        except ValueError:
            value = None
        if value is None or not wanted.accepts(value):
            raise argparse.ArgumentTypeError(f'{text!r} is not {wanted}')
        return value

    return parse


seed = _as_type(SEED)


def device(text: str) -> str:
    """A type for argparse: a device that torch has here."""
    try:
        torch.zeros(1, device=text).item()
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0].split('. ')[0]
        raise argparse.ArgumentTypeError(f'{text!r} cannot be used here ({reason})') from None
    return text


def add_device_argument(parser: argparse.ArgumentParser, **kwargs) -> None:
    """``--device``, by default the GPU where there is one."""
    parser.add_argument('--device', type=device, default='cuda' if torch.cuda.is_available() else 'cpu', **kwargs)


def add_deploy_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """``--deploy --compile --cuda-graph --backend --shared``; ``what`` completes the help of the first one."""
    parser.add_argument('--deploy', action='store_true', help=f'{what} the deployed model: children baked, norms folded')
    parser.add_argument(
        '--compile',
        nargs='?',
        const=True,
        default=False,
        choices=['dynamic'],
        help='with --deploy: torch.compile at fixed sizes, or for any size',
    )
    parser.add_argument('--cuda-graph', action='store_true', help='with --deploy: replay CUDA graphs')
    parser.add_argument(
        '--backend',
        choices=BACKENDS,
        default='torch',
        help='with --deploy: what computes backbone, neck and dense heads on a CPU; auto measures and takes the fastest',
    )
    add_shared_argument(parser, 'with --deploy: ')


def add_shared_argument(parser: argparse.ArgumentParser, when: str = '') -> None:
    """``--shared``; ``when`` begins its help."""
    parser.add_argument(
        '--shared',
        action='store_true',
        help=f'{when}children without spatial scale and residual keep the kernel of their parent instead of a copy',
    )


def add_length_arguments(parser: argparse.ArgumentParser) -> None:
    """``--max-epochs``, ``--max-iters``; see :func:`.shorten.scale_schedule`."""
    parser.add_argument(
        '--max-epochs',
        type=int,
        metavar='N',
        help='train N epochs: warm-up, decays, evaluations and checkpoints keep their share of the run',
    )
    parser.add_argument('--max-iters', type=int, metavar='N', help='the same for a config that counts iterations')


def add_unsafe_argument(parser: argparse.ArgumentParser) -> None:
    """``--unsafe-checkpoint``, for :func:`mmkerneldna.checkpoints.loading.install_safe_loading` and ``read_checkpoint``."""
    parser.add_argument(
        '--unsafe-checkpoint',
        action='store_true',
        help='read files that hold more than weights; that can run code: only for files you trust',
    )


def add_cfg_options_argument(parser: argparse.ArgumentParser, what: str = 'the config') -> None:
    """``--cfg-options KEY=VALUE ...`` as mmengine's tools have it; ``what`` completes its help."""
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help=f'override {what}')


def add_verbose_argument(parser: argparse.ArgumentParser) -> None:
    """``--verbose``: the tools look for it before they import anything, see tools/_before_imports.py."""
    parser.add_argument('--verbose', action='store_true', help='all output of all packages, as mmengine prints it')


def add_variant_argument(parser: argparse.ArgumentParser, **options) -> None:
    """``--variant NAME``; ``options`` are more of argparse's."""
    parser.add_argument(
        '--variant',
        metavar='NAME',
        help=f'change the backbone of the config, which may be any of mmdet or mmseg: {", ".join(VARIANTS)}',
        **options,
    )


def image_size(text: str) -> tuple[int, int]:
    """The type of every ``--size``: ``N`` or ``HxW`` to H, W."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def deploy_options(args: argparse.Namespace) -> dict | None:
    """``compile``, ``cuda_graph``, ``backend`` and ``shared`` for :func:`mmkerneldna.deploy.deploy`; None without ``--deploy``.

    Raises:
        UsageError: one of them without ``--deploy``: it would change nothing.
    """
    if args.deploy:
        return dict(compile=args.compile, cuda_graph=args.cuda_graph, backend=args.backend, shared=args.shared)
    given_flags = (
        ('--compile', args.compile),
        ('--cuda-graph', args.cuda_graph),
        ('--backend', args.backend != 'torch'),
        ('--shared', args.shared),
    )
    for flag, given in given_flags:
        if given:
            raise UsageError(f'{flag} is an option of the deployed model: add --deploy, or leave it out')
    return None


def parse_run_arguments(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Add what training and testing have in common, parse, and tell the launcher's rank to mmengine."""
    add_variant_argument(parser)
    parser.add_argument(
        '--corrupt-images', choices=['fatal', 'skip'], default='fatal', help='what to do about images that do not decode'
    )
    add_unsafe_argument(parser)
    add_cfg_options_argument(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    add_verbose_argument(parser)
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args
