"""How much of what a block puts out comes through the branch that a conv is in.

An error in a branch that adds little to its shortcut is worth little: this weight makes late and early layers comparable.
"""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .dense import block_of, stage_of
from .growth import last_norm
from .run import Call, tensors

TINY = 1e-12


def branch_of(net: nn.Module, path: str) -> str | None:
    """Path of the module that ends the branch of the conv at ``path``: the shortcut's projection, or the last norm of the
    residual branch; None where the block is not a residual one."""
    block = block_of(path)
    if path.startswith(f'{block}.downsample.'):
        return f'{block}.downsample'
    norm = last_norm(net.get_submodule(block))
    return None if norm is None else f'{block}.{norm}'


def first_map(calls: Sequence[Call]) -> Tensor | None:
    """The first (N, C, H, W) tensor that the first call puts out, if there is one."""
    return next((t for _, output in calls[:1] for t in tensors(output) if t.dim() == 4), None)


def spread(output: Tensor) -> float:
    """Variance of a map channel by channel, summed: what the shift of a norm behind it can't take away."""
    return float(output.double().transpose(0, 1).flatten(1).var(dim=1).sum())


def shares_by_norms(net: nn.Module, paths: Iterable[str]) -> dict[str, float]:
    """Without images: gamma² of the branch's norm over that of all branches that the stage has added up so far.

    Returns:
        dict: path -> share; 1 where the block is not a residual one.
    """
    shares = {}
    for path in paths:
        branch = branch_of(net, path)
        own = None if branch is None else _gain(net.get_submodule(branch))
        shares[path] = 1.0 if own is None else own / max(_gathered(net, path), TINY)
    return shares


def _gathered(net: nn.Module, path: str) -> float:
    """Sum of gamma² from where the shortcut begins, at a norm or a projection, up to the block of ``path``."""
    blocks, total = _blocks_up_to(net, block_of(path)), 0.0
    for block in reversed(blocks):
        module = net.get_submodule(block)
        norm, projection = last_norm(module), getattr(module, 'downsample', None)
        if norm is None:
            return total + (_gain(module) or 0.0)
        total += _gain(module.get_submodule(norm)) or 0.0
        if projection is not None:
            return total + (_gain(projection) or 0.0)
    return total + (_gain_before(net, blocks[0]) or 0.0)


def _gain_before(net: nn.Module, path: str) -> float | None:
    """Mean gamma² of the norm that is defined last before ``path``."""
    names = [name for name, _ in net.named_modules()]
    return _gain(
        nn.ModuleList(net.get_submodule(name) for name in names[1 : names.index(path)] if _is_norm(net.get_submodule(name)))
    )


def _blocks_up_to(net: nn.Module, block: str) -> list[str]:
    stage, number = stage_of(block), block.rpartition('.')[2]
    return [f'{stage}.{i}' for i in range(int(number) + 1)] if number.isdigit() else [block]


def _gain(module: nn.Module) -> float | None:
    """Mean gamma² of the last norm in ``module``."""
    gains: list[Tensor] = [m.weight for m in module.modules() if _is_norm(m)]
    return float(gains[-1].detach().double().square().mean()) if gains else None


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.weight is not None
