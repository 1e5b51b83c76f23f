"""What becomes of gates where a net is written into a file, or traced for another runtime."""

from mmengine.logging import print_log
from torch import nn

from ..anatomy import is_whole
from ..layers.expert_gate import ExpertGate
from ..routing.keep import asks
from ..routing.sparse_query import SparseQuery
from ..routing.stages import GatedStage


def computed_whole(module: nn.Module) -> dict[str, str]:
    """{path: what is computed there in a file, or another runtime, though the layer leaves it out in torch}.

    The outputs are the same: decisions choose of what was computed.
    """
    found = {}
    for path, part in module.named_modules():
        if isinstance(part, GatedStage) and part.asks:
            found[path] = 'all blocks'
        elif isinstance(part, SparseQuery) and asks(part):
            found[path] = 'all of level 0'
        elif isinstance(part, ExpertGate) and part.top_k < part.num_experts:
            found[path] = f'all {part.num_experts} experts'
    return found


def kept_in_torch(model: nn.Module) -> str:
    """Which parts stay in torch beside another runtime, as their gates leave something out there; '' for none."""
    children = dict(model.named_children()) if is_whole(model) else {f'this {type(model).__name__}': model}
    parts = [name for name, part in children.items() if asks(part)]
    return f'the gates of {" and ".join(parts)} save time in torch alone (set_keep(model, 1) opens them)' if parts else ''


def say_what_is_whole(module: nn.Module, where: str) -> None:
    """One line of the log that names those layers, if there are any."""
    found = computed_whole(module)
    if found:
        layers = ', '.join(f'{path.removeprefix("model.")} ({what})' for path, what in found.items())
        print_log(f'{where} computes what gates leave out in torch, with the same outputs: {layers}', logger='current')
