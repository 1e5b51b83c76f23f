"""Reconstruction without labels: each changed block learns to put out what the dense one does.

Teacher forcing: a block gets the dense net's input, so it is not asked to make up for what happened before it. First the
blocks, then the stages, in the end the whole; all changed units of a kind train together, for they share kernels. Norms stay
in evaluation mode (in training mode, with twice the rate, it diverges); AdamW, the rate falling to zero.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mmengine.logging import print_log
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from .dense import stage_of
from .run import Call, Images, Run, recorded, tensors
from .source import DeriveError

PHASES = ('blocks', 'stages', 'whole')


def _log(line: str) -> None:
    print_log(line, logger='current')


@dataclass
class Reconstruction:
    """Settings of :func:`reconstruct`.

    Attributes:
        steps (int): in all; a batch each.
        lr (float): at the start, falling to zero.
        weight_decay (float): of AdamW.
        shares (tuple): part of the steps that blocks, stages and the whole get.
        patience (int): steps of a phase after which it ends if the loss did not fall by a hundredth.
        seed (int): for what the images draw at random.
        amp (bool): autocast to bf16.
        state_file (str, optional): written every ``save_every`` steps; a run that finds its own goes on from it.
        save_every (int): steps.
        progress (bool): show a bar, on stderr.
        say (callable): is told where a run goes on; writes it to the log.
    """

    steps: int = 60
    lr: float = 5e-4
    weight_decay: float = 0.0
    shares: tuple[float, float, float] = (0.4, 0.3, 0.3)
    patience: int = 100
    seed: int = 0
    amp: bool = False
    state_file: str | None = None
    save_every: int = 20
    progress: bool = False
    say: Callable[[str], None] = _log

    def __post_init__(self) -> None:
        if self.steps < 1 or self.lr <= 0 or self.patience < 1 or self.save_every < 1:
            raise DeriveError(
                f'reconstruction needs steps, patience and save_every of 1 or more and a positive lr, got '
                f'{self.steps}, {self.patience}, {self.save_every} and {self.lr}'
            )

    def phase(self, step: int) -> int:
        """Index in ``PHASES`` of a step."""
        return next((i for i, end in enumerate(self.ends()) if step < end), len(PHASES) - 1)

    def ends(self) -> list[int]:
        """Step at which each phase ends."""
        total, ends = sum(self.shares), []
        for i in range(len(self.shares)):
            ends.append(round(self.steps * sum(self.shares[: i + 1]) / total))
        return ends


@dataclass
class _State:
    step: int = 0
    taken: int = 0  # batches, for the place in the images
    history: list[float] = field(default_factory=list)
    best: float = float('inf')
    waited: int = 0


def units_of(blocks: Sequence[str], callable_paths: set) -> list[list[str]]:
    """Modules that train on their own in each phase; '' is the whole net.

    A path that no run calls (a list of blocks, the branch of a head) gives way to the next module around it.
    """

    def climb(path: str) -> str:
        while path and path not in callable_paths:
            path = path.rpartition('.')[0]
        return path

    inner = list(dict.fromkeys(filter(None, map(climb, blocks)))) or ['']
    outer = list(dict.fromkeys(filter(None, (climb(stage_of(block)) or climb(block) for block in blocks)))) or ['']
    return [inner, outer, ['']]


def reconstruct(
    target: nn.Module,
    twin: nn.Module,
    blocks: Sequence[str],
    run: Run,
    images: Images,
    settings: Reconstruction,
    callable_paths: set,
) -> list[float]:
    """Train the changed units of ``target``, in place.

    Args:
        target (nn.Module): in evaluation mode.
        twin (nn.Module): the dense reference.
        blocks (Sequence[str]): paths of the changed blocks, in forward order.
        run (Run): how to call both.
        images (Images): unlabelled.
        settings (Reconstruction): see there.
        callable_paths (set): from :func:`.run.called`.

    Returns:
        list[float]: loss of each step: squared error over the output's power, mean over the units.

    Raises:
        DeriveError: the loss is not finite, or the state file is of another run.
    """
    units = units_of(blocks, callable_paths)
    trained = _parameters(target, blocks if units[1] == [''] else units[1])
    torch.manual_seed(settings.seed)
    with _trainable(target, trained):
        optimizer = torch.optim.AdamW(trained, lr=settings.lr, weight_decay=settings.weight_decay)
        state = _resume(settings, target, optimizer, blocks)
        stream = images.endless()
        for _ in range(state.taken):
            next(stream)
        steps = range(state.step, settings.steps)
        for step in track(steps, 'reconstruct', console=Console(stderr=True), disable=not settings.progress):
            if step < state.step:  # an ended phase is left out
                continue
            _set_rate(optimizer, settings, step)
            loss = _step(target, twin, units[settings.phase(step)], run, next(stream), optimizer, settings.amp)
            _advance(state, step, loss, settings)
            if settings.state_file and (state.step % settings.save_every == 0 or state.step >= settings.steps):
                _save(settings, target, optimizer, blocks, state)
    return state.history


def _step(target, twin, units, run, batch, optimizer, amp: bool) -> float:
    device = next(target.parameters()).device
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=amp):
        if units == ['']:
            with torch.no_grad():
                goal = run(twin, batch)
            losses = [relative_loss(run(target, batch), goal)]
        else:
            with torch.no_grad(), recorded(twin, units) as calls:
                run(twin, batch)
            losses = [_unit_loss(target.get_submodule(path), call) for path in units for call in calls[path]]
    loss = torch.stack(losses).mean()
    if not torch.isfinite(loss):
        raise DeriveError(
            f'reconstruction diverged: the loss is {loss.item()}; take a smaller learning rate than '
            f'{optimizer.param_groups[0]["initial_lr"]}'
        )
    loss.backward()
    optimizer.step()
    return loss.item()


def _unit_loss(unit: nn.Module, call: Call) -> Tensor:
    args, goal = call
    return relative_loss(tensors(unit(*args)), tensors(goal))


def relative_loss(outputs: Sequence[Tensor], goals: Sequence[Tensor]) -> Tensor:
    """Mean over the tensors of squared error / power of the goal."""
    terms = [
        (out.float() - goal.float()).square().mean() / goal.float().square().mean().clamp_min(1e-12)
        for out, goal in zip(outputs, goals)
    ]
    return torch.stack(terms).mean()


def _parameters(target: nn.Module, paths: Sequence[str]) -> list[nn.Parameter]:
    found = {id(p): p for path in paths for p in target.get_submodule(path).parameters()}
    return list(found.values())


@contextmanager
def _trainable(target: nn.Module, trained: Sequence[nn.Parameter]) -> Iterator[None]:
    """Gradients for these parameters alone, whatever is frozen; afterwards as before."""
    before = [(p, p.requires_grad, p.grad) for p in target.parameters()]
    target.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter, needed, grad in before:
            parameter.requires_grad_(needed)
            parameter.grad = grad


def _set_rate(optimizer, settings: Reconstruction, step: int) -> None:
    for group in optimizer.param_groups:
        group.setdefault('initial_lr', settings.lr)
        group['lr'] = settings.lr * (1 - step / settings.steps)


def _advance(state: _State, step: int, loss: float, settings: Reconstruction) -> None:
    """Count the step; leave a phase that no longer gains, and the counters of an ended one behind."""
    phase, end = settings.phase(step), settings.ends()[settings.phase(step)]
    state.history.append(loss)
    state.step, state.taken = step + 1, state.taken + 1
    state.waited = 0 if loss < 0.99 * state.best else state.waited + 1
    state.best = min(state.best, loss)
    if state.waited >= settings.patience:
        _log(f'reconstruction: {PHASES[phase]} gain no more after {state.step} steps')
        state.step = end
    if state.step >= end:
        state.best, state.waited = float('inf'), 0


def _fingerprint(settings: Reconstruction, target: nn.Module, blocks: Sequence[str]) -> str:
    shape = [(name, tuple(p.shape)) for name, p in target.named_parameters()]
    return hashlib.sha256(
        repr((settings.steps, settings.lr, settings.shares, settings.seed, list(blocks), shape)).encode()
    ).hexdigest()


def _save(settings, target, optimizer, blocks, state: _State) -> None:
    path = Path(settings.state_file)
    held = dict(
        fingerprint=_fingerprint(settings, target, blocks),
        state=vars(state),
        model=target.state_dict(),
        optimizer=optimizer.state_dict(),
        random=torch.get_rng_state(),
    )
    torch.save(held, path.with_suffix('.tmp'))
    os.replace(path.with_suffix('.tmp'), path)


def _resume(settings, target, optimizer, blocks) -> _State:
    path = settings.state_file
    if not path or not os.path.exists(path):
        return _State()
    held: dict = torch.load(path, map_location='cpu', weights_only=True)
    if held.get('fingerprint') != _fingerprint(settings, target, blocks):
        raise DeriveError(
            f'{path} is the state of another reconstruction (other steps, rate, seed, plan or net); delete it or '
            'name another file'
        )
    target.load_state_dict(held['model'])
    optimizer.load_state_dict(held['optimizer'])
    torch.set_rng_state(held['random'])
    settings.say(f'reconstruction goes on after step {held["state"]["step"]} of {settings.steps}: {path}')
    return _State(**held['state'])
