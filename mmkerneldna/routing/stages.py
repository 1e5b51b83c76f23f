"""Put gates between the residual blocks of any ResNet-like backbone, without changing a block or a parameter's name."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from mmengine.model import Sequential
from torch import Tensor, nn

from ..errors import UsageError
from ..modules import replace
from .gates import GateBank, KeepGate
from .keep import keep_gates

#: Where the gates of a backbone are. Not in its stages: upstream freezes these, and puts them into evaluation mode, as a whole.
BANK = 'routing_gates'


class Unit(NamedTuple):
    """Blocks of a stage that follow one another under one gate, or under none.

    Attributes:
        gate (KeepGate | None): decides on them.
        names (tuple[str, ...]): of the blocks in their stage.
    """

    gate: KeepGate | None
    names: tuple[str, ...]


class GatedStage(Sequential):
    """The blocks of a stage under their own names, some of them behind gates.

    ``y = keep * block(x) + (1 - keep) * x`` for each block of a unit. Training computes both, whatever the gate says, and so
    does what is traced, compiled or differentiated; a subclass says how to compute less in inference. The gates are those of
    the backbone's bank, held by reference.

    Args:
        stage (nn.Sequential): gives the blocks.
        units: all blocks of the stage, in order.
    """

    def __init__(self, stage: nn.Sequential, units: Sequence[Unit]) -> None:
        super().__init__(OrderedDict(stage.named_children()))  # type: ignore[arg-type]  # as torch's
        self._units = tuple(units)  # in a tuple: references, not submodules
        self.training = stage.training

    @property
    def asks(self) -> bool:
        """Whether a gate of this stage is asked in inference; none is at a keep rate of 1."""
        return any(gate is not None and not gate.always_open for gate, _ in self._units)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        for gate, names in self._units:
            blocks: list[Any] = [self._modules[name] for name in names]
            x = run_all(blocks, x) if gate is None else self._gated(gate, blocks, x)
        return x

    def _gated(self, gate: KeepGate, blocks: Sequence[nn.Module], x: Tensor) -> Tensor:
        if gate.training:
            return self._all_mixed(gate, blocks, x, gate.draw(x))
        keep = gate.decide(x)
        if keep is None:
            return run_all(blocks, x)
        if torch.jit.is_tracing() or torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad):
            return self._all_mixed(gate, blocks, x, keep)
        return self.compute(gate, blocks, x, keep)

    def _all_mixed(self, gate: KeepGate, blocks: Sequence[nn.Module], x: Tensor, mask: Tensor) -> Tensor:
        mask = self.on_map(gate, mask, x)
        for block in blocks:
            x = mixed(x, block(x), mask)
        return x

    def on_map(self, gate: KeepGate, mask: Tensor, x: Tensor) -> Tensor:
        """The mask of a gate at the size of the map ``x``, or one that broadcasts to it."""
        return mask

    def compute(self, gate: KeepGate, blocks: Sequence[nn.Module], x: Tensor, keep: Tensor) -> Tensor:
        """The blocks where ``keep`` (N, 1, h, w) says so, and ``x`` elsewhere; without gradients."""
        raise NotImplementedError


def run_all(blocks: Sequence[nn.Module], x: Tensor) -> Tensor:
    """One block after the other."""
    for block in blocks:
        x = block(x)
    return x


def mixed(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """``y`` where the mask is 1, ``x`` where it is 0; exactly so."""
    if mask.dtype == torch.bool:
        return torch.where(mask, y, x)
    mask = mask.to(y.dtype)
    return y * mask + x * (1 - mask)


def identity_shortcut(block: nn.Module) -> bool | None:
    """Whether a residual block adds its input itself, so that it can be left out; None if it is no residual block we know."""
    for flag in ('with_res_shortcut', 'use_res_connect'):  # inverted residuals of mmdet, of mmseg
        if hasattr(block, flag):
            return bool(getattr(block, flag))
    if hasattr(block, 'downsample') and hasattr(block, 'conv1'):  # ResNets and what is made of their blocks
        return block.downsample is None
    if hasattr(block, 'depthwise_conv') and hasattr(block, 'pointwise_conv1'):  # ConvNeXt of mmpretrain
        return True
    return None


def find_stages(backbone: nn.Module) -> dict[str, nn.Sequential]:
    """{path: stage}: the sequences of residual blocks among the children of a backbone, or in a list of these, in order."""
    lists = (
        (f'{name}.{i}', m) for name, c in backbone.named_children() if isinstance(c, nn.ModuleList) for i, m in enumerate(c)
    )
    candidates = [*backbone.named_children(), *lists]
    return {
        path: module
        for path, module in candidates
        if isinstance(module, nn.Sequential) and any(identity_shortcut(b) is not None for b in module.children())
    }


def skippable(stage: nn.Sequential) -> dict[str, str]:
    """{name of a block: why it must always run, '' if it need not}."""
    reasons = {}
    for index, (name, block) in enumerate(stage.named_children()):
        shortcut = identity_shortcut(block)
        if shortcut is None:
            reasons[name] = f'a {type(block).__name__} is not a residual block'
        elif index == 0:
            reasons[name] = 'it is the first block of its stage'
        else:
            reasons[name] = '' if shortcut else 'its shortcut is not the identity'
    return reasons


def choose_blocks(
    backbone: nn.Module, stages: Sequence[int] | None, blocks: Sequence[str] | None, more: Callable[[nn.Module], str]
) -> dict[str, list[str]]:
    """{path of a stage: names of the blocks to put behind gates}.

    Args:
        backbone (nn.Module): any ResNet-like net.
        stages: numbers of the stages, from 0; None for all.
        blocks: paths of blocks; None for all that can be skipped.
        more: a further reason, of a block, to let it always run; '' if there is none.

    Raises:
        UsageError: no stages, a stage or a block that does not exist or must always run; or nothing is left.
    """
    found = _numbered(backbone, stages)
    reasons = {
        f'{path}.{name}': reason or more(stage.get_submodule(name))
        for path, stage in found.items()
        for name, reason in skippable(stage).items()
    }
    wanted = [block for block, reason in reasons.items() if not reason] if blocks is None else list(blocks)
    for block in wanted:
        if block not in reasons:
            raise UsageError(f'{type(backbone).__name__} has no block {block} in its stages; they are {", ".join(reasons)}')
        if reasons[block]:
            raise UsageError(f'{block} must always run: {reasons[block]}; leave it out')
    if not wanted:
        why = '; '.join(f'{block}: {reason}' for block, reason in reasons.items())
        raise UsageError(f'{type(backbone).__name__} has no block that could be left out ({why})')
    chosen = {path: [name for name, _ in stage.named_children() if f'{path}.{name}' in wanted] for path, stage in found.items()}
    return {path: names for path, names in chosen.items() if names}


def _numbered(backbone: nn.Module, numbers: Sequence[int] | None) -> dict[str, nn.Sequential]:
    found = find_stages(backbone)
    if keep_gates(backbone):
        raise UsageError(f'the blocks of this {type(backbone).__name__} are behind gates already')
    if not found:
        raise UsageError(f'{type(backbone).__name__} has no stages of residual blocks')
    if numbers is None:
        return found
    bad = [number for number in numbers if number not in range(len(found))]
    if bad or not numbers:
        raise UsageError(
            f'stages={list(numbers)}: {type(backbone).__name__} has stages 0 to {len(found) - 1} ({", ".join(found)})'
        )
    paths = list(found)
    return {paths[number]: found[paths[number]] for number in sorted(set(numbers))}


def install(
    backbone: nn.Module,
    chosen: dict[str, list[str]],
    make_gate: Callable[[int, int], KeepGate],
    make_stage: Callable[[nn.Sequential, Sequence[Unit]], GatedStage],
    longest: int | None,
    full: float,
) -> nn.Module:
    """Replace stages by gated ones, in place.

    Args:
        backbone (nn.Module): any ResNet-like net.
        chosen: from :func:`choose_blocks`.
        make_gate: from the number of channels and the number of blocks behind the gate.
        make_stage: from a stage and its units.
        longest: blocks behind one gate at most; None for all that follow one another.
        full: part of the training images, in [0, 1), for which everything is computed.

    Raises:
        UsageError: ``full`` is none.
    """
    if not 0 <= full < 1:
        raise UsageError(f'full={full} must lie in [0, 1): the part of the training images for which all is computed')
    bank = GateBank()
    for path, names in chosen.items():
        stage: Any = backbone.get_submodule(path)
        units = []
        for gated, unit in _runs(stage, names, longest):
            gate = make_gate(_channels(stage.get_submodule(unit[0])), len(unit)) if gated else None
            if gate is not None:
                bank[f'{path}_{unit[0]}'.replace('.', '_')] = gate
            units.append(Unit(gate, unit))
        replace(backbone, stage, make_stage(stage, units))
    setattr(backbone, BANK, bank.train(backbone.training))
    backbone.routing_full = full  # type: ignore[assignment]  # a number, not a part
    backbone.register_forward_pre_hook(_draw_full)
    return backbone


def _runs(stage: nn.Sequential, names: Sequence[str], longest: int | None) -> Iterator[tuple[bool, tuple[str, ...]]]:
    """(behind a gate, names of blocks) in order."""
    run: list[str] = []
    for name, _ in stage.named_children():
        gated = name in names
        if run and (gated != (run[0] in names) or (gated and len(run) == longest)):
            yield run[0] in names, tuple(run)
            run = []
        run.append(name)
    yield run[0] in names, tuple(run)


def _channels(block: nn.Module) -> int:
    """Of the input, read off the first convolution that is called: the first that is registered, in all blocks we know."""
    return next(m.in_channels for m in block.modules() if isinstance(m, nn.Conv2d) or hasattr(m, 'kernel_size'))


def _draw_full(backbone: Any, args: tuple) -> None:
    """Before a training step: the images for which all gates are open, so that the net stays right at a keep rate of 1."""
    if backbone.training and args and isinstance(args[0], Tensor):
        full = torch.rand(len(args[0]), device=args[0].device) < backbone.routing_full
        for gate in getattr(backbone, BANK).values():
            gate.full = full
