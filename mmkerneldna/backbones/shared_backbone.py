"""Freezing in a net whose kernels are shared: stages freeze, adapters don't, and a kernel follows its owner."""

from collections.abc import Iterator, Sequence

from torch import nn

from ..layers import ChildConv2d
from ..sharing import SharingPlan, SharingPlanError, share_kernels


def child_convs(module: nn.Module) -> Iterator[tuple[str, ChildConv2d]]:
    """(path, child conv) of every child in ``module``."""
    return ((path, m) for path, m in module.named_modules() if isinstance(m, ChildConv2d))


def check_frozen_parents(plan: SharingPlan, frozen: Sequence[str]) -> None:
    """Refuse a plan in which a live stage borrows from a frozen one.

    Args:
        plan (SharingPlan): paths relative to the backbone.
        frozen (Sequence[str]): names of the frozen stages, e.g. ``['layer1']``.

    Raises:
        SharingPlanError: names the pair and the ways out.
    """
    for child, parent in plan.children.items():
        if parent.split('.')[0] in frozen and child.split('.')[0] not in frozen:
            raise SharingPlanError(
                f"plan '{plan.name}': {child} would borrow a kernel that frozen_stages freezes ({parent}); lower "
                'frozen_stages, share within a stage, or say allow_frozen_parent=True'
            )


def thaw_adapters(module: nn.Module, frozen: Sequence[str], freeze_adapters: bool, norm_eval: bool) -> None:
    """Put right what freezing whole stages does to shared kernels.

    A borrowed kernel is frozen if and only if its owner's stage is (a child's own, if its parent is
    gone), and gates and modulations of frozen stages stay
    trainable (gate norms in training mode too, unless ``norm_eval``) unless ``freeze_adapters``.
    """
    stages: dict[int, str] = {id(m): path.split('.')[0] for path, m in module.named_modules() if isinstance(m, nn.Conv2d)}
    for path, child in child_convs(module):
        if path.split('.')[0] not in frozen:
            continue
        if child.tied and stages.get(id(child.parent), path.split('.')[0]) not in frozen:
            child.weight.requires_grad = True
        if not freeze_adapters:
            for parameter in child.adapter_parameters():
                parameter.requires_grad = True
            child.gate.train(module.training and not norm_eval)


class SharedKernelBackbone(nn.Module):
    """What an upstream backbone with ``layer1``, ``layer2``, ... needs to share kernels; goes before it in the bases."""

    freeze_adapters = False

    def _share(self, plan: SharingPlan | None, freeze_adapters: bool, allow_frozen_parent: bool, **options) -> None:
        """Apply ``plan``, None for none, with the options of :func:`mmkerneldna.sharing.share_kernels`, and freeze again what
        upstream's constructor froze before."""
        self.freeze_adapters = freeze_adapters
        if plan is not None:
            if not allow_frozen_parent:
                check_frozen_parents(plan, self._frozen_names())
            share_kernels(self, plan, **options)
        self._freeze_stages()

    def _frozen_names(self) -> list[str]:
        return [f'layer{i}' for i in range(1, self.frozen_stages + 1)]

    def _freeze_stages(self) -> None:
        super()._freeze_stages()  # type: ignore[misc]  # of upstream's backbone, the next of the bases
        thaw_adapters(self, self._frozen_names(), self.freeze_adapters, self.norm_eval)

    def train(self, mode: bool = True):
        """As upstream's, but returns the module, as ``nn.Module.train`` does."""
        super().train(mode)
        return self
