"""Build the inner module of a registered function (``KernelDNA``, ``DynamicConvs``)."""

from mmengine.registry import MODELS, DefaultScope
from torch import nn


def build_inner(module: dict, injected: dict) -> nn.Module:
    """Build ``module`` with the keyword arguments its owner injected into the function around it.

    mmdet and mmseg write ``train_cfg``, ``test_cfg``, ``num_classes``, ... into the config of a head just before they
    build it. Around a head those land on the function, so they go on to the head; what the config states wins.

    Args:
        module (dict): config with a ``type``.
        injected (dict): keyword arguments to pass on.

    Raises:
        TypeError: ``module`` is not a config.
        KeyError: the type is registered nowhere.
    """
    if not isinstance(module, dict) or 'type' not in module:
        raise TypeError(f"module must be a config dict with a 'type', got {module!r}")
    cfg = {**injected, **module}
    return _registry_of(cfg['type']).build(cfg)


def _registry_of(name):
    """The root registry follows the default scope; without one, the first child that knows the type is taken."""
    if DefaultScope.get_current_instance() is not None or not isinstance(name, str) or '.' in name:
        return MODELS
    if name in MODELS.module_dict:
        return MODELS
    return next((child for child in MODELS.children.values() if child.get(name) is not None), MODELS)
