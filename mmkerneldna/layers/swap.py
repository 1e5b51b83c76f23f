"""Replace convolutions of any module by another registered kind, by path.

    backbone=dict(type='DynamicConvs', conv=dict(type='ODConv2d', num_experts=4),
                  module=dict(type='ResNet', depth=18, ...), exclude=['layer1.*'])
"""
import difflib
import fnmatch
import re
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import nn

from .._registry import build_inner
from ..errors import KernelDNAError
from ..modules import count_parameters, is_plain_conv, replace


class SwapError(KernelDNAError, ValueError):
    """A swap that can't be done; the module is as it was."""


def swap_convs(module: nn.Module,
               conv_cfg: Dict[str, Any],
               include: Optional[Sequence[str]] = None,
               exclude: Sequence[str] = ()) -> nn.Module:
    """Replace the convolutions of ``module`` whose path matches, in place, all or nothing.

    A pattern is a glob over the whole path (``'layer3.*.conv2'``; ``*`` also matches dots), or a regular expression for
    the whole path behind ``re:`` (``'re:layer[34]\\.\\d+\\.conv2'``).

    The new layers take the geometry, bias, device, dtype and mode of the old ones, not their weights: n experts that
    start alike would learn alike. To keep a trained net, load its static weights *after* the swap: a static kernel
    seeds every expert (see :class:`.expert_conv.ExpertConv2d`). With ``init_cfg=dict(type='Pretrained', ...)`` in the
    inner config that is what happens, for a runner initialises the weights of the swapped net.

    A layer class may define ``build_swapped(convs, **cfg)``, a classmethod from {path: conv} to {path: new layer}, when
    its layers depend on one another (shared warehouses), and ``paper_patterns``, {net: patterns}.

    Args:
        module: any built module.
        conv_cfg: ``type``, a registered layer with the arguments of Conv2d, and its own arguments.
        include: patterns. None takes the convolutions that the layer's paper replaced in this net.
        exclude: patterns of convolutions to leave alone.

    Returns:
        ``module`` itself.

    Raises:
        SwapError: a pattern matches nothing, nothing is left to swap, no paper patterns for this net, or a convolution
            that can't be swapped; the message names every such path and why.
    """
    cls, options = _layer_class(conv_cfg)
    paths = match_convs(module, cls, include, exclude)
    convs = {path: module.get_submodule(path) for path in paths}
    _refuse(_not_plain(module, convs), cls)
    swapped = _build(cls, convs, options)
    for path, new in swapped.items():
        replace(module, convs[path], new.to(convs[path].weight).train(convs[path].training))
    print_log(describe_swap(cls.__name__, convs, swapped), logger='current')
    _warn_frozen(convs)
    return module


def match_convs(module: nn.Module, cls: type, include: Optional[Sequence[str]], exclude: Sequence[str]) -> List[str]:
    """Paths of the convolutions that ``include`` and ``exclude`` select, in order of definition.

    Raises:
        SwapError: as :func:`swap_convs`.
    """
    candidates = [path for path, m in module.named_modules() if isinstance(m, nn.modules.conv._ConvNd) and path]
    # A net's paper patterns cover its variants, so not every one has to match; what a user writes has to.
    patterns = paper_patterns(module, cls) if include is None else _as_list(include, 'include')
    exclude = _as_list(exclude, 'exclude')
    for pattern in (*(patterns if include is not None else ()), *exclude):
        if not _matching(candidates, pattern):
            near = difflib.get_close_matches(pattern.removeprefix('re:'), candidates, n=3, cutoff=0.0)
            raise SwapError(f'{cls.__name__}: pattern {pattern!r} matches no convolution of {type(module).__name__}; '
                            f"nearest paths: {', '.join(near) or 'it has none'}")
    left_out = {path for pattern in exclude for path in _matching(candidates, pattern)}
    chosen = {path for pattern in patterns for path in _matching(candidates, pattern)} - left_out
    if not chosen:
        raise SwapError(f'{cls.__name__}: include={list(patterns)} without exclude={exclude} leaves no convolution of '
                        f'{type(module).__name__}; its first paths: {", ".join(candidates[:5]) or "none"}')
    return [path for path in candidates if path in chosen]


def paper_patterns(module: nn.Module, cls: type) -> List[str]:
    """The patterns of ``cls`` for this net: by class name and depth, then by class name, base classes included.

    Raises:
        SwapError: there are none.
    """
    table = getattr(cls, 'paper_patterns', {})
    for name in (base.__name__ for base in type(module).__mro__):
        for key in (f"{name}-{getattr(module, 'depth', None)}", name):
            if key in table:
                return list(table[key])
    raise SwapError(f'{cls.__name__} has no paper patterns for {type(module).__name__} (only for '
                    f"{', '.join(sorted(table)) or 'no net'}): set include, e.g. include=['*']")


def describe_swap(name: str, old: Dict[str, nn.Module], new: Dict[str, nn.Module]) -> str:
    """A table of what was swapped, one line per convolution.

    ::

        1 convolution -> ODConv2d, 0.04 M -> 0.15 M parameters
          layer1.0.conv1   64 -> 64   3x3  stride 1  groups 1     36,864 ->    152,797
    """
    rows = [(path, f'{c.in_channels} -> {c.out_channels}', 'x'.join(map(str, c.kernel_size)), f'stride {c.stride[0]}',
             f'groups {c.groups}', f'{count_parameters(c):,}', '->', f'{count_parameters(new[path]):,}') for path, c in old.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    total = [sum(map(count_parameters, layers.values())) / 1e6 for layers in (old, new)]
    aligned = ['<'] * 5 + ['>'] * 3  # numbers of parameters to the right
    lines = ['  ' + '  '.join(f'{c:{a}{w}}' for c, a, w in zip(row, aligned, widths)) for row in rows]
    noun = 'convolution' if len(rows) == 1 else 'convolutions'
    return '\n'.join([f'{len(rows)} {noun} -> {name}, {total[0]:.2f} M -> {total[1]:.2f} M parameters', *lines])


@MODELS.register_module(name='DynamicConvs')
def build_dynamic_convs(module: dict,
                        conv: dict,
                        include: Optional[Sequence[str]] = None,
                        exclude: Sequence[str] = (),
                        **injected) -> nn.Module:
    """Build a module from a config and swap its convolutions; returns the inner module: no wrapper, no key prefix.

    What mmdet or mmseg inject into a head's config (``train_cfg``, ``test_cfg``, ...) goes on to the inner module.

    Args:
        module: config of the inner module.
        conv, include, exclude: as in :func:`swap_convs`.

    Returns:
        The inner module.
    """
    return swap_convs(build_inner(module, injected), conv, include, exclude)


def _layer_class(conv_cfg: Dict[str, Any]) -> Tuple[type, Dict[str, Any]]:
    if not isinstance(conv_cfg, dict) or 'type' not in conv_cfg:
        raise SwapError(f"conv must be a config dict with a 'type', got {conv_cfg!r}")
    options = dict(conv_cfg)
    kind = options.pop('type')
    cls = kind if isinstance(kind, type) else MODELS.get(kind)
    if cls is None:
        raise SwapError(f'conv type {kind!r} is registered nowhere; is its module among custom_imports?')
    return cls, options


def _build(cls: type, convs: Dict[str, nn.Conv2d], options: Dict[str, Any]) -> Dict[str, nn.Module]:
    if hasattr(cls, 'build_swapped'):
        return cls.build_swapped(convs, **options)
    swapped, reasons = {}, {}
    for path, conv in convs.items():
        try:
            swapped[path] = cls(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,
                                conv.dilation, conv.groups, conv.bias is not None, conv.padding_mode, **options)
        except ValueError as error:
            reasons[path] = str(error)
    _refuse(reasons, cls)
    return swapped


def _not_plain(module: nn.Module, convs: Dict[str, nn.Module]) -> Dict[str, str]:
    owners: Dict[int, List[str]] = {}
    for path, m in module.named_modules():
        if isinstance(m, nn.modules.conv._ConvNd):
            owners.setdefault(id(m.weight), []).append(path)
    reasons = {}
    for path, conv in convs.items():
        others = [p for p in owners[id(conv.weight)] if p != path]
        if not is_plain_conv(conv):
            reasons[path] = f'it is a {type(conv).__name__}, not a plain Conv2d'
        elif others:
            reasons[path] = f"its kernel is also that of {', '.join(others)}"
    return reasons


def _refuse(reasons: Dict[str, str], cls: type) -> None:
    if reasons:
        lines = '\n'.join(f'  {path}: {reason}' for path, reason in reasons.items())
        raise SwapError(f'{cls.__name__} cannot replace {len(reasons)} of the convolutions that match; exclude or '
                        f'change them:\n{lines}')


def _warn_frozen(convs: Dict[str, nn.Conv2d]) -> None:
    frozen = [path for path, conv in convs.items() if not conv.weight.requires_grad]
    if frozen:
        print_log(f'{len(frozen)} swapped convolutions lie in frozen stages ({frozen[0]}, ...): their attention will '
                  'not train either. Lower frozen_stages, or exclude them from the swap', logger='current', level=30)


def _matching(paths: Iterable[str], pattern: str) -> List[str]:
    if pattern.startswith('re:'):
        return [path for path in paths if re.fullmatch(pattern[3:], path)]
    return [path for path in paths if fnmatch.fnmatchcase(path, pattern)]


def _as_list(patterns: Sequence[str], name: str) -> List[str]:
    if isinstance(patterns, str):
        raise SwapError(f'{name}={patterns!r} must be a list of patterns: [{patterns!r}]')
    return list(patterns)
