"""Replace convolutions of any module by another registered kind, by path.

backbone=dict(type='DynamicConvs', conv='odconv4x', module=dict(type='ResNet', depth=18, ...), exclude=['layer1.*'])
backbone=dict(type='DynamicConvs', conv=dict(type='ODConv2d', num_experts=2), module=...)
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import nn

from .._registry import build_inner
from ..modules import conv_arguments, count_parameters, is_plain_conv, replace
from ..variants import get_variant
from .match import SwapError, match_convs, net_names

ConvLike = str | dict[str, Any]


def swap_convs(
    module: nn.Module, conv_cfg: ConvLike, include: Sequence[str] | None = None, exclude: Sequence[str] = ()
) -> nn.Module:
    """Replace the convolutions of ``module`` whose path matches, in place, all or nothing.

    A pattern is a glob over the whole path (``'layer3.*.conv2'``; ``*`` also matches dots), or a regular expression for
    the whole path behind ``re:`` (``'re:layer[34]\\.\\d+\\.conv2'``).

    The new layers take the geometry, bias, device, dtype and mode of the old ones, not their weights. To keep a trained net,
    load its static weights *after* the swap: a layer that finds a static kernel in its place starts as that convolution (see
    :mod:`.static_start`). With ``init_cfg=dict(type='Pretrained', ...)`` in the inner config that is what happens, for a
    runner initialises the weights of the swapped net.

    A layer class may define ``build_swapped(convs, **cfg)``, a classmethod from {path: conv} to {path: new layer}, when
    its layers depend on one another (shared warehouses), and ``paper_patterns``, {net: patterns}.

    Args:
        module: any built module.
        conv_cfg: ``type``, a registered layer with the arguments of Conv2d, and its own arguments; or the name of a
            variant (:data:`mmkerneldna.variants.VARIANTS`), which has the settings for this net.
        include: patterns. None takes the convolutions that the layer's paper replaced in this net; in any other net the
            spatial ones behind the stem (:func:`.match.spatial_convs`). What the layer can't replace of those stays as it
            is, which the log says.
        exclude: patterns of convolutions to leave alone.

    Returns:
        ``module`` itself.

    Raises:
        SwapError: a pattern matches nothing, nothing is left to swap, or a convolution that ``include`` names can't be
            swapped; the message names every such path and why.
        UsageError: no variant has this name.
    """
    cls, options = _layer_class(conv_cfg, module)
    patterns = options.pop('include', None) if include is None else include
    convs: dict[str, Any] = {path: module.get_submodule(path) for path in match_convs(module, cls, patterns, exclude)}
    reasons = _not_plain(module, convs)
    swapped = _build(cls, {path: conv for path, conv in convs.items() if path not in reasons}, options, reasons)
    if reasons and (include is not None or not swapped):
        raise SwapError(
            f'{cls.__name__} cannot replace {len(reasons)} of the {len(convs)} convolutions that match; exclude '
            f'or change them:\n{_lines(reasons)}'
        )
    convs = {path: convs[path] for path in swapped}
    for path, new in swapped.items():
        replace(module, convs[path], new.to(convs[path].weight).train(convs[path].training))
    print_log(describe_swap(cls.__name__, convs, swapped), logger='current')
    if reasons:
        print_log(f'{len(reasons)} convolutions stay as they are:\n{_lines(reasons)}', logger='current', level=30)
    _warn_frozen(convs)
    return module


def describe_swap(name: str, old: Mapping[str, nn.Module], new: Mapping[str, nn.Module]) -> str:
    """A table of what was swapped, one line per convolution.

    ::

        1 convolution -> ODConv2d, 0.04 M -> 0.15 M parameters
          layer1.0.conv1   64 -> 64   3x3  stride 1  groups 1     36,864 ->    152,797
    """
    rows = [
        (
            path,
            f'{c.in_channels} -> {c.out_channels}',
            'x'.join(map(str, c.kernel_size)),
            f'stride {c.stride[0]}',
            f'groups {c.groups}',
            f'{count_parameters(c):,}',
            '->',
            f'{count_parameters(new[path]):,}',
        )
        for path, c in old.items()
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    total = [sum(map(count_parameters, layers.values())) / 1e6 for layers in (old, new)]
    aligned = ['<'] * 5 + ['>'] * 3  # numbers of parameters to the right
    lines = ['  ' + '  '.join(f'{c:{a}{w}}' for c, a, w in zip(row, aligned, widths)) for row in rows]
    noun = 'convolution' if len(rows) == 1 else 'convolutions'
    return '\n'.join([f'{len(rows)} {noun} -> {name}, {total[0]:.2f} M -> {total[1]:.2f} M parameters', *lines])


@MODELS.register_module(name='DynamicConvs')
def build_dynamic_convs(
    module: dict, conv: ConvLike, include: Sequence[str] | None = None, exclude: Sequence[str] = (), **injected
) -> nn.Module:
    """Build a module from a config and swap its convolutions; returns the inner module: no wrapper, no key prefix.

    What mmdet or mmseg inject into a head's config (``train_cfg``, ``test_cfg``, ...) goes on to the inner module.

    Args:
        module: config of the inner module.
        conv, include, exclude: as in :func:`swap_convs`.

    Returns:
        The inner module.
    """
    return swap_convs(build_inner(module, injected), conv, include, exclude)


def _layer_class(conv_cfg: ConvLike, module: nn.Module) -> tuple[type, dict[str, Any]]:
    if isinstance(conv_cfg, str):
        variant = get_variant(conv_cfg)
        if variant.conv is None:
            raise SwapError(f'conv={conv_cfg!r} replaces no convolution: {variant.summary}')
        conv_cfg = variant.settings(net_names(module))
    if not isinstance(conv_cfg, dict) or 'type' not in conv_cfg:
        raise SwapError(f"conv must be the name of a variant, or a config dict with a 'type', got {conv_cfg!r}")
    options = dict(conv_cfg)
    kind = options.pop('type')
    cls = kind if isinstance(kind, type) else MODELS.get(kind)
    if cls is None:
        raise SwapError(f'conv type {kind!r} is registered nowhere; is its module among custom_imports?')
    return cls, options


def _build(cls: type, convs: dict[str, nn.Conv2d], options: dict[str, Any], reasons: dict[str, str]) -> dict[str, nn.Module]:
    """The new layers; what the layer refuses to replace goes into ``reasons``."""
    if hasattr(cls, 'build_swapped'):
        return cls.build_swapped(convs, **options)
    swapped = {}
    for path, conv in convs.items():
        try:
            swapped[path] = cls(*conv_arguments(conv).values(), **options)
        except ValueError as error:
            reasons[path] = str(error)
    return swapped


def _not_plain(module: nn.Module, convs: dict[str, nn.Module]) -> dict[str, str]:
    owners: dict[int, list[str]] = {}
    for path, m in module.named_modules():
        if isinstance(m, nn.modules.conv._ConvNd):
            owners.setdefault(id(m.weight), []).append(path)
    reasons = {}
    for path, conv in convs.items():
        others = [p for p in owners[id(conv.weight)] if p != path]
        if not is_plain_conv(conv):
            reasons[path] = f'it is a {type(conv).__name__}, not a plain Conv2d'
        elif others:
            reasons[path] = f'its kernel is also that of {", ".join(others)}'
    return reasons


def _lines(reasons: dict[str, str]) -> str:
    return '\n'.join(f'  {path}: {reason}' for path, reason in reasons.items())


def _warn_frozen(convs: dict[str, nn.Conv2d]) -> None:
    frozen = [path for path, conv in convs.items() if not conv.weight.requires_grad]
    if frozen:
        print_log(
            f'{len(frozen)} swapped convolutions lie in frozen stages ({frozen[0]}, ...): their attention will '
            'not train either. Lower frozen_stages, or exclude them from the swap',
            logger='current',
            level=30,
        )
