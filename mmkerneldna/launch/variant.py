"""A variant of the table for any config: ``--variant NAME``."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging import ERROR
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger, print_log
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import nn

from ..anatomy import trained_model
from ..backbones import KDNAResNet
from ..errors import KernelDNAError, UsageError, explain
from ..hooks import RoutingLossHook, TemperatureHook
from ..hooks.temperature_hook import layers_with_temperature
from ..layers.routed import routed_layers
from ..variants import get_variant

Part = tuple[Any, Any]  # a dict or list of the model's config, and the key of a part of the model in it
RESNETS = {'ResNet': {}, 'ResNetV1c': dict(deep_stem=True), 'ResNetV1d': dict(deep_stem=True, avg_down=True)}
NOTHING_FROZEN = {'EfficientNet': 0}  # frozen_stages of a net in which it is not -1
SWAPS = {'DynamicConvs': ('conv', 'include', 'exclude'), 'KernelDNA': ('plan', 'gate_cfg')}


def use_variant(cfg: Config, name: str | None) -> None:
    """Turn the model of a config into a variant, in place, or leave it as it was.

    The backbone is changed; where it has no convolution that can be, as a transformer, the neck. The changed part is built
    once, so that what can't be done is said here. The layers start from random attention, so a rival's frozen stages thaw.

    Args:
        cfg: any config with a model.
        name: of the table; None and ``'static'`` change nothing.

    Raises:
        UsageError: no such variant; the model has no backbone, or is a variant already; nothing in it can be changed,
            with the reason for each part.
    """
    if name is None:
        return
    get_variant(name)
    if name != 'static':
        _change(cfg, name)
    cfg.variant = name


def _change(cfg: Config, name: str) -> None:
    change = find_change(cfg, name)
    if change.skipped:
        print_log(
            f'variant {name} changes the {_type_name(change.place[change.key])}, not the backbone ({change.skipped[0]})',
            logger='current',
        )
    _take(cfg, change)


@dataclass(frozen=True)
class Change:
    """What a variant makes of a model.

    Attributes:
        place, key: ``place[key]`` is the config of the part that is changed: the backbone, or a neck.
        changed (dict): its config as the variant.
        module (nn.Module): the changed part, built.
        skipped (list[str]): the parts before it that can't be changed, and why.
    """

    place: Any
    key: Any
    changed: dict[str, Any]
    module: nn.Module
    skipped: list[str]


def find_change(cfg: Config, name: str) -> Change:
    """The first part of the model that the variant can change, built; the config stays as it is.

    Raises:
        UsageError: as :func:`use_variant`.
    """
    skipped: list[str] = []
    for place, key in _parts(cfg.model):
        changed = vary(place[key], name)
        try:
            with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')), _silence():
                return Change(place, key, changed, MODELS.build(changed), skipped)
        except KernelDNAError as error:
            skipped.append(f'{_type_name(place[key])}: {error}')
        except (AssertionError, ImportError, KeyError, TypeError, ValueError) as error:
            text = explain(error) or f'{type(error).__name__}: {" ".join(str(error).split())}'
            raise UsageError(f'variant {name}: the {_type_name(place[key])} of this config cannot be built: {text}') from error
    raise UsageError(f'variant {name} finds nothing to change in this model. ' + ' '.join(skipped))


def vary(part: dict[str, Any], name: str) -> dict[str, Any]:
    """The config of a backbone or neck as a variant.

    ``kdna`` makes of a ResNet or a MobileNetV2 the paper's net, and shares kernels by the automatic policy in any other.

    Raises:
        UsageError: it is a variant already.
    """
    kind, variant = _type_name(part), get_variant(name)
    if kind in (*SWAPS, 'KDNAResNet', 'KDNAMobileNetV2'):
        raise UsageError(f'variant {name}: the config has a {kind} already; name the static config')
    if variant.conv is not None:
        nothing = NOTHING_FROZEN.get(kind, -1)
        thawed = dict(frozen_stages=nothing) if part.get('frozen_stages', nothing) > nothing else {}
        return dict(type='DynamicConvs', conv=name, module=dict(part, **thawed))
    if kind in RESNETS and part.get('depth') in KDNAResNet.arch_settings and not (part.get('dcn') or part.get('conv_cfg')):
        return dict(part, type='KDNAResNet', **RESNETS[kind])
    if kind == 'MobileNetV2':
        return dict(part, type='KDNAMobileNetV2')
    return dict(type='KernelDNA', module=dict(part))


def inside_swap(options: dict[str, Any], cfg: Config) -> dict[str, Any]:
    """Options for a part of the model, moved to its inner module where a variant was put around it.

    ``model.backbone.norm_eval=False`` reaches the net whether or not it is a variant.
    """
    return {_inner_key(key, cfg): value for key, value in options.items()}


def add_layer_hooks(runner: Runner) -> None:
    """Give a training the hooks that the layers of its model call for, unless the config has one of the kind."""
    wanted = [(TemperatureHook, layers_with_temperature(runner.model)), (RoutingLossHook, routed_layers(runner.model))]
    for kind, layers in wanted:
        if layers and not any(isinstance(hook, kind) for hook in runner.hooks):
            runner.register_hook(kind())


def model_with_backbone(node: dict[str, Any]) -> dict[str, Any] | None:
    """The part of a model's config that has the backbone: the model, or the detector in a tracker or a teacher."""
    node = trained_model(node)
    if isinstance(node.get('backbone'), dict):
        return node
    inner = (model_with_backbone(child) for child in node.values() if isinstance(child, dict))
    return next((found for found in inner if found is not None), None)


def _parts(model: dict[str, Any]) -> list[Part]:
    """The backbone, then the necks beside it; a tracker or a semi-supervised detector has them a level deeper."""
    place = model_with_backbone(model)
    if place is None:
        raise UsageError(f'{_type_name(model)} has no backbone to turn into a variant')
    neck = place.get('neck')
    necks = [(neck, i) for i in range(len(neck))] if isinstance(neck, list) else [(place, 'neck')] if neck else []
    return [(place, 'backbone'), *necks]


def _take(cfg: Config, change: Change) -> None:
    change.place[change.key] = ConfigDict(change.changed)
    settings = cfg.get('custom_imports', dict(imports=[], allow_failed_imports=False))
    names = [settings['imports']] if isinstance(settings['imports'], str) else settings['imports']  # mmengine takes both
    if 'mmkerneldna' not in names:
        cfg.custom_imports = dict(settings, imports=[*names, 'mmkerneldna'])


def _inner_key(key: str, cfg: Config) -> str:
    node, parts = cfg, key.split('.')
    for i, part in enumerate(parts):
        kind = node.get('type') if isinstance(node, dict) else None
        kept = SWAPS.get(kind) if isinstance(kind, str) else None
        if kept and part not in (*kept, 'type', 'module', '_delete_'):
            return '.'.join([*parts[:i], 'module', *parts[i:]])
        node = node.get(part) if isinstance(node, (dict, Config)) else None
    return key


def _type_name(part: dict[str, Any]) -> str:
    kind = part.get('type', 'model')
    return kind.rpartition('.')[2] if isinstance(kind, str) else kind.__name__


@contextmanager
def _silence() -> Iterator[None]:
    """What a trial build logs is logged again when the model is built."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
