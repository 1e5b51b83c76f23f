"""Which convolutions of a net a layer takes: by pattern, by its paper, or by one rule for every other net."""

import difflib
import fnmatch
import re
from collections.abc import Iterable, Sequence

from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..errors import KernelDNAError
from ..modules import is_plain_conv

IMAGE_CHANNELS = 4  # grey, RGB, with depth: a convolution of no more input channels reads the image


class SwapError(KernelDNAError, ValueError):
    """A swap that can't be done; the module is as it was."""


def net_names(module: nn.Module) -> list[str]:
    """Names under which tables know this net: class and depth, then class; its own first, then those of its bases.

    Example:
        >>> net_names(ResNetV1c(18))[:4]
        ['ResNetV1c-18', 'ResNetV1c', 'ResNet-18', 'ResNet']
    """
    depth = getattr(module, 'depth', None)
    return [name for base in type(module).__mro__ for name in (f'{base.__name__}-{depth}', base.__name__)]


def paper_patterns(module: nn.Module, cls: type) -> list[str] | None:
    """The patterns of ``cls`` for this net, None where its paper has none."""
    table = getattr(cls, 'paper_patterns', {})
    return next((list(table[name]) for name in net_names(module) if name in table), None)


def match_convs(module: nn.Module, cls: type, include: Sequence[str] | None, exclude: Sequence[str]) -> list[str]:
    """Paths of the convolutions that ``cls`` takes in ``module``, in order of definition.

    Args:
        module: any built module.
        cls: the layer.
        include: globs over the whole path, or regular expressions behind ``re:``. None takes what the layer's paper
            replaced in this net, or :func:`spatial_convs` where its paper has no such net.
        exclude: patterns of convolutions to leave alone.

    Raises:
        SwapError: a pattern matches nothing, or nothing is left to swap.
    """
    every = [path for path, m in module.named_modules() if isinstance(m, _ConvNd) and path]
    include, exclude = None if include is None else _as_list(include, 'include'), _as_list(exclude, 'exclude')
    # A net's paper patterns cover its variants, so not every one has to match; what a user writes has to.
    for pattern in (*(include or ()), *exclude):
        if not matching(every, pattern):
            near = difflib.get_close_matches(pattern.removeprefix('re:'), every, n=3, cutoff=0.0)
            raise SwapError(
                f'{cls.__name__}: pattern {pattern!r} matches no convolution of {type(module).__name__}; '
                f'nearest paths: {", ".join(near) or "it has none"}'
            )
    chosen = _default_convs(module, cls) if include is None else any_matching(every, include)
    left = set(chosen) - any_matching(every, exclude)
    if not left:
        raise SwapError(
            f'{cls.__name__}: include={include} without exclude={exclude} leaves no convolution of '
            f'{type(module).__name__}; its first paths: {", ".join(every[:5]) or "none"}'
        )
    return [path for path in every if path in left]


def _default_convs(module: nn.Module, cls: type) -> Iterable[str]:
    patterns = paper_patterns(module, cls)
    if patterns is None:
        return spatial_convs(module)
    inner = set(inner_convs(module))
    return any_matching([path for path, m in module.named_modules() if isinstance(m, _ConvNd) and path not in inner], patterns)


def spatial_convs(module: nn.Module) -> list[str]:
    """The rule for nets of which a layer's paper says nothing: convolutions of more than one tap, behind the stem.

    The stem is what reads the image, and everything below a name that begins with ``stem``. Only plain convolutions
    that own their kernel are taken. Where none is spatial (a net of 1x1 convolutions), those behind the stem are taken.

    Raises:
        SwapError: there are none at all; the message says what the net has.
    """
    behind = {path: conv for path, conv in free_convs(module).items() if not _in_stem(path, conv)}
    spatial = [path for path, conv in behind.items() if max(conv.kernel_size) > 1]
    if not behind:
        raise SwapError(f'{type(module).__name__} has no convolution to swap behind its stem: {describe_convs(module)}')
    return spatial or list(behind)


def free_convs(module: nn.Module) -> dict[str, nn.Conv2d]:
    """{path: conv} of the plain convolutions with a kernel of their own that work on a map of features.

    Those inside another convolution and those of a channel attention, which see one pixel, are none.
    """
    owners: dict[int, int] = {}
    for m in module.modules():
        if isinstance(m, _ConvNd):
            owners[id(m.weight)] = owners.get(id(m.weight), 0) + 1
    others = {*inner_convs(module), *_attention_convs(module)}
    return {
        path: m
        for path, m in module.named_modules()
        if is_plain_conv(m) and path and path not in others and owners[id(m.weight)] == 1
    }


def inner_convs(module: nn.Module) -> list[str]:
    """Convolutions inside another one: the offsets of a deformable convolution, which start at zero, and the like."""
    outer = [path for path, m in module.named_modules() if path and (isinstance(m, _ConvNd) or hasattr(m, 'deform_groups'))]
    return [
        f'{path}.{name}'
        for path in outer
        for name, m in module.get_submodule(path).named_modules()
        if name and isinstance(m, _ConvNd)
    ]


def _attention_convs(module: nn.Module) -> list[str]:
    """Convolutions beside a global pool, in a ConvModule or bare: of squeeze and excitation and its relatives."""
    pooled = {
        path.rpartition('.')[0]
        for path, m in module.named_modules()
        if isinstance(m, nn.AdaptiveAvgPool2d) and m.output_size in (1, (1, 1))
    } - {''}
    return [
        path
        for path, m in module.named_modules()
        if isinstance(m, nn.Conv2d) and pooled & {path.rpartition('.')[0], path.rpartition('.')[0].rpartition('.')[0]}
    ]


def describe_convs(module: nn.Module) -> str:
    """Which kinds of convolutions a net has, for a message: ``12 ConvWS2d, 1 Conv2d``."""
    counts: dict[str, int] = {}
    for m in module.modules():
        if isinstance(m, _ConvNd) or hasattr(m, 'deform_groups'):
            counts[type(m).__name__] = counts.get(type(m).__name__, 0) + 1
    return ', '.join(f'{count} {name}' for name, count in counts.items()) or 'it has none'


def matching(paths: Iterable[str], pattern: str) -> list[str]:
    """The paths that a glob, or a regular expression behind ``re:``, matches as a whole."""
    if pattern.startswith('re:'):
        return [path for path in paths if re.fullmatch(pattern[3:], path)]
    return [path for path in paths if fnmatch.fnmatchcase(path, pattern)]


def any_matching(paths: Iterable[str], patterns: Iterable[str]) -> set[str]:
    """The paths that one of the patterns matches."""
    return {path for pattern in patterns for path in matching(paths, pattern)}


def _in_stem(path: str, conv: nn.Conv2d) -> bool:
    return conv.in_channels <= IMAGE_CHANNELS or any(part.startswith('stem') for part in path.split('.'))


def _as_list(patterns: Sequence[str], name: str) -> list[str]:
    if isinstance(patterns, str):
        raise SwapError(f'{name}={patterns!r} must be a list of patterns: [{patterns!r}]')
    return list(patterns)
