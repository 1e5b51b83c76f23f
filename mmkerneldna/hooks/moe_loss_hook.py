"""The balance loss of mixture-of-experts convolutions, handed to the losses of any detector or segmenter."""

from mmengine.registry import HOOKS

from ..layers.expert_gate import ExpertGate
from .routing_loss_hook import RoutingLossHook


@HOOKS.register_module()
class MoELossHook(RoutingLossHook):
    """:class:`RoutingLossHook` for a model with ``MoEConv2d`` layers: adds ``loss_moe_balance``.

    Args:
        weight (float): of the loss, which is summed over layers and 1 per layer when balanced. Defaults to 0.01 (Switch
            Transformers).
        interval (int): iterations between logs. Defaults to 50.

    Raises:
        ValueError: as :class:`RoutingLossHook`; when training starts: no ``MoEConv2d`` in the model.
    """

    wanted = ExpertGate
    advice = (
        'MoEConv2d in the model: swap some in, for instance with '
        "backbone=dict(type='DynamicConvs', conv=dict(type='MoEConv2d'), module=...), or remove the hook"
    )

    def __init__(self, weight: float = ExpertGate.loss_weight, interval: int = 50) -> None:
        if weight < 0:
            raise ValueError(f'weight={weight} of {type(self).__name__} must not be negative')
        super().__init__({ExpertGate.loss_name: weight}, interval)
