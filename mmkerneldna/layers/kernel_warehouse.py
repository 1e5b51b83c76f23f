"""KernelWarehouse: kernels assembled from the cells of a warehouse that the layers of a stage share.

KernelWarehouse: Rethinking the Design of Dynamic Convolution, Li and Yao, ICML 2024, https://arxiv.org/abs/2308.08361

Letters: N batch, C_in / C_out channels, g groups, k kernel side, m mixtures of a kernel, n cells of a warehouse, c_in / c_out
channels of a cell.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from .drop_in import PaddingMode, at_least_fp32, copy_geometry
from .expert_conv import hidden_channels, pad_for_mode
from .kernel_warehouse_plan import LayerCells, PerWarehouse, Shape, WarehousePlan, group_convs, plan_warehouse, value_for
from .mixture import bank_conv2d
from .pooled_norm import build_pooled_norm, pooled_norm
from .static_start import StaticStart, kernel_shape

#: added to the sum of the logits' magnitudes (the authors' code)
NORM_EPS = 1e-3


def contrasting_attention(logits: Tensor, assignment: Tensor, temperature: float) -> Tensor:
    """``(1 - t) z / sum|z| + t beta``: linear normalisation, mixed with the initial assignment (paper, section 3.4).

    The last logit belongs to a cell of zeros: it takes part in the norm, and its attention is dropped.

    Args:
        logits: z, (N, m, n + 1).
        assignment: (m,), the cell a mixture starts from, n for the zero cell; beta is its one-hot form.
        temperature: t, 1 at the beginning and 0 after warm-up.

    Returns:
        (N, m, n), of either sign.
    """
    attention = (logits / (logits.abs().sum(-1, keepdim=True) + NORM_EPS))[..., :-1]
    if temperature == 0:
        return attention
    beta = F.one_hot(assignment, logits.shape[-1])[:, :-1].to(attention.dtype)
    return (1 - temperature) * attention + temperature * beta


def place_mixtures(mixed: Tensor, cell_shape: Sequence[int], splits: tuple[int, int, int, int]) -> Tensor:
    """Put mixtures of cells in their places in the kernels.

    Args:
        mixed: (N * m, c_out * c_in), the m of a sample in the order of ``splits``.
        cell_shape: (c_out, c_in).
        splits: numbers of mixtures along (k, k, C_out, C_in/g).

    Returns:
        (N, C_out, C_in/g, k, k).
    """
    (height, width, outs, ins), (c_out, c_in) = splits, cell_shape
    mixed = mixed.view(-1, height, width, outs, ins, c_out, c_in)
    return mixed.permute(0, 3, 5, 4, 6, 1, 2).reshape(len(mixed), outs * c_out, ins * c_in, height, width)


class CellAttention(nn.Module):
    """Pool -> linear -> norm -> ReLU -> linear: n + 1 logits for each of m mixtures.

    With ``nonlocal_basis_ratio`` below 1 the logits of other layers' cells are combinations of fewer basis values, which
    keeps the attention small where a warehouse has many cells (the paper's ResNet-50 at a budget of 1/2).
    """

    def __init__(
        self, channels: int, place: LayerCells, num_cells: int, hidden: int, nonlocal_basis_ratio: float, norm_cfg: dict | None
    ) -> None:
        super().__init__()
        mixtures = place.num_mixtures
        self.start, self.owned = place.start, place.owned
        self.shape = (mixtures, num_cells + 1)
        self.fc1 = nn.Linear(channels, hidden, bias=False)
        self.norm = build_pooled_norm(norm_cfg, hidden)
        self.fc3 = self.basis_bias = None
        if nonlocal_basis_ratio >= 1:
            self.fc2 = nn.Linear(hidden, mixtures * (num_cells + 1))
        else:
            others = num_cells - place.owned
            basis = max(int(others * nonlocal_basis_ratio), 16)
            self.fc2 = nn.Linear(hidden, mixtures * (place.owned + basis + 1), bias=False)
            self.fc3 = nn.Linear(basis, others, bias=False)
            self.basis_bias = nn.Parameter(torch.zeros(mixtures * (num_cells + 1)))
        # Not a buffer of the checkpoint: it follows from the plan.
        self.register_buffer('assignment', torch.tensor(place.assignment), persistent=False)

    def init_weights(self) -> None:
        """Kaiming-normal (fan out) weights and zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
        for bias in (self.fc2.bias, self.basis_bias):
            if bias is not None:
                nn.init.zeros_(bias)

    def make_neutral(self) -> None:
        """The logits are the initial assignment, for every input."""
        nn.init.zeros_(self.fc2.weight)
        bias = self.fc2.bias if self.fc3 is None else self.basis_bias
        assert bias is not None
        bias.copy_(F.one_hot(self.assignment, self.shape[1]).flatten())

    def forward(self, x: Tensor, temperature: float) -> Tensor:
        """(N, C_in, H, W) -> attention (N, m, n), in fp32 under autocast."""
        hidden = self.fc1(F.adaptive_avg_pool2d(x, 1).flatten(1))
        hidden = F.relu(pooled_norm(self.norm, hidden[:, :, None, None], self.training)).flatten(1)
        logits = self.fc2(hidden) if self.fc3 is None else self._expand(self.fc2(hidden))
        logits = at_least_fp32(logits).view(len(x), *self.shape)
        return contrasting_attention(logits, self.assignment, temperature)

    def _expand(self, values: Tensor) -> Tensor:
        values = values.view(len(values), self.shape[0], self.fc2.out_features // self.shape[0])
        own, basis, zero = values.split([self.owned, values.shape[-1] - self.owned - 1, 1], dim=-1)
        assert self.fc3 is not None and self.basis_bias is not None
        others = self.fc3(basis)
        logits = torch.cat([others[..., : self.start], own, others[..., self.start :], zero], dim=-1)
        return logits.flatten(1) + self.basis_bias


class Warehouse(nn.Module):
    """The cells of one warehouse, (n, c_out, c_in)."""

    def __init__(self, plan: WarehousePlan) -> None:
        super().__init__()
        self.cells = nn.Parameter(torch.empty(plan.num_cells, *plan.cell_shape))


@MODELS.register_module()
class KWConv2d(StaticStart, nn.Module):
    """Convolution whose kernel is assembled, per sample, from the cells of a warehouse.

    As ``conv_cfg`` it has a warehouse of its own. Under ``DynamicConvs`` the layers of a stage share one, see
    :func:`.kernel_warehouse_plan.group_convs`; the options of the paper's nets are in
    :data:`.kernel_warehouse_plan.PRESETS`. A shared warehouse is a submodule of the *last* layer that draws on it, so that
    it is in the state dict once, and freezing the first stages of a net leaves the cells of a live layer trainable.

    With a budget of 1 or more the kernel of a static checkpoint goes into the cells its mixtures start from, and the logits
    point at these cells: the layer then computes what the static one did at the temperature it has, and at any other to one
    part in a thousand. With a smaller budget no setting of the cells is a given kernel.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as in ``nn.Conv2d``.
        budget (float): b, parameters of the warehouse over those of the kernels: 1, 2, 4, ... or 0.5, 0.25, ...
        cell_in_ratio, cell_out_ratio (float): channels of a cell over the greatest common divisor of the layers' channels.
            The paper takes 1 for budgets of 1 and more, else 0.5.
        reduction (int): ``in_channels`` over the hidden width of the attention, which is at least 16. Defaults to 16.
        norm_cfg (dict, optional): norm of the hidden features: BN (the paper), SyncBN, LN, GN or None. BN also trains at
            a batch of one, see :mod:`.pooled_norm`.
        temperature (float): the initial one, 0 to 1. Defaults to 0, the trained state; training from scratch starts at 1,
            with ``TemperatureHook(start=1, end=0, length=20)``.

    Raises:
        ValueError: a budget, ratio, reduction or temperature out of range, or channels that don't divide into cells.
    """

    #: before the first iteration, after the warm-up; see :class:`.TemperatureHook`
    temperature_schedule = (1.0, 0.0)

    # Every convolution but the stem; in bottleneck ResNets those that read the stem's output stay static as well.
    paper_patterns = {
        'ResNet': ['layer*'],
        **{f'ResNet-{depth}': ['re:layer(?!1\\.0\\.(conv1|downsample)).*'] for depth in (50, 101, 152)},
        'MobileNetV2': ['conv1.*', 'layer*', 'conv2.*'],
    }

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = 'zeros',
        budget: float = 1,
        cell_in_ratio: float = 1,
        cell_out_ratio: float = 1,
        reduction: int = 16,
        norm_cfg: dict | None = dict(type='BN'),
        temperature: float = 0.0,
    ) -> None:
        super().__init__()
        self._set_geometry(
            nn.Conv2d(
                in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device='meta'
            )
        )
        plan = plan_warehouse({'this layer': self.kernel_shape}, budget, cell_in_ratio, cell_out_ratio)
        self._draw_on(Warehouse(plan), plan, plan.layers['this layer'], True, reduction, norm_cfg, temperature)

    @classmethod
    def build_swapped(
        cls,
        convs: Mapping[str, nn.Conv2d],
        budget: PerWarehouse = 1,
        cell_in_ratio: PerWarehouse = 1,
        cell_out_ratio: PerWarehouse = 1,
        sharing: str = 'stage',
        **attention_cfg,
    ) -> dict[str, 'KWConv2d']:
        """Layers for ``convs`` that share warehouses.

        Args:
            convs: {path: conv} in forward order.
            budget, cell_in_ratio, cell_out_ratio: a number, or {pattern of warehouse names: number}.
            sharing: ``'stage'``, ``'role'`` or ``'layer'``, see :func:`.kernel_warehouse_plan.group_convs`.
            attention_cfg: ``reduction``, ``norm_cfg``, ``temperature``, and ``nonlocal_basis_ratio``, see
                :class:`CellAttention`.

        Raises:
            ValueError: as the constructor, with the name of the warehouse.
        """
        layers: dict[str, KWConv2d] = {}
        for name, paths in group_convs(convs, sharing).items():
            shapes = {path: kernel_shape(convs[path]) for path in paths}
            options = dict(budget=budget, cell_in_ratio=cell_in_ratio, cell_out_ratio=cell_out_ratio)
            try:
                plan = plan_warehouse(shapes, **{key: value_for(v, name, key) for key, v in options.items()})
                layers.update(cls._build_group({path: convs[path] for path in paths}, plan, attention_cfg))
            except ValueError as error:
                raise ValueError(f'warehouse {name!r} of {len(paths)} layers ({paths[0]}, ...): {error}') from error
        return {path: layers[path] for path in convs}

    @classmethod
    def _build_group(cls, convs, plan: WarehousePlan, attention_cfg) -> dict[str, 'KWConv2d']:
        warehouse, last, layers = Warehouse(plan), list(convs)[-1], {}
        for path, conv in convs.items():
            layer = layers[path] = cls.__new__(cls)
            nn.Module.__init__(layer)
            layer._set_geometry(conv)
            layer._draw_on(warehouse, plan, plan.layers[path], owns=path == last, **attention_cfg)
        return layers

    def _set_geometry(self, conv: nn.Conv2d) -> None:
        copy_geometry(self, conv)
        self.bias = None if conv.bias is None else nn.Parameter(torch.zeros(conv.out_channels))

    def _draw_on(
        self,
        warehouse: Warehouse,
        plan: WarehousePlan,
        place: LayerCells,
        owns: bool,
        reduction: int = 16,
        norm_cfg: dict | None = dict(type='BN'),
        temperature: float = 0.0,
        nonlocal_basis_ratio: float = 1,
    ) -> None:
        self.place = place
        self.temperature = temperature
        hidden = hidden_channels(self.in_channels, reduction, default=16, min_channels=16)
        self.attention = CellAttention(self.in_channels, place, plan.num_cells, hidden, nonlocal_basis_ratio, norm_cfg)
        self.warehouse = warehouse if owns else None
        self._shared = (warehouse,)  # in a tuple: a reference, not a second submodule
        self.init_weights()

    @property
    def kernel_shape(self) -> Shape:
        """(C_out, C_in/g, k, k)."""
        return kernel_shape(self)

    @property
    def cells(self) -> nn.Parameter:
        """The cells of the layer's warehouse, (n, c_out, c_in), its own or shared."""
        return self._shared[0].cells

    @property
    def temperature(self) -> float:
        """Share of the initial assignment in the attention, 0 to 1."""
        return self._temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        if not 0 <= value <= 1:
            raise ValueError(
                f'temperature={value} of a KWConv2d must lie between 0 (trained) and 1 (the initial assignment alone)'
            )
        self._temperature = float(value)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Kaiming-normal (fan out) for the layer's own cells, as the authors' code, and its attention."""
        own = self.cells[self.place.start : self.place.start + self.place.owned]
        nn.init.kaiming_normal_(own.flatten(0, 1), mode='fan_out', nonlinearity='relu')
        self.attention.init_weights()
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def no_static_start(self) -> str | None:
        """Mixtures without a cell of their own to start from, at a budget below 1."""
        homeless = sum(cell >= len(self.cells) for cell in self.place.assignment)
        if not homeless:
            return None
        return (
            f'{homeless} of its {self.place.num_mixtures} mixtures have no cell of their own: with a budget below 1 no '
            'setting of the cells is a given kernel'
        )

    def seed(self, kernel: Tensor, bias: Tensor | None) -> dict[str, Tensor | None]:
        """See :class:`.static_start.StaticStart`."""
        self.attention.make_neutral()
        start = self.temperature + (1 - self.temperature) / (1 + NORM_EPS)  # attention to the cell assigned
        c_out, c_in = self.cells.shape[1:]
        pieces = (kernel / start).unflatten(1, (-1, c_in)).unflatten(0, (-1, c_out))  # (outs, c_out, ins, c_in, k, k)
        pieces = pieces.permute(4, 5, 0, 2, 1, 3).reshape(-1, c_out, c_in)
        self.cells[self.attention.assignment] = pieces.to(self.cells)
        return dict(bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        attention = self.attention(x, self.temperature)
        x, padding = pad_for_mode(self, x)
        cell_shape, splits = self.cells.shape[1:], self.place.splits
        return bank_conv2d(
            x,
            attention,
            self.cells.flatten(1),
            lambda mixed: place_mixtures(mixed, cell_shape, splits),
            self.kernel_shape,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
        )

    def extra_repr(self) -> str:
        return (
            f'{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, '
            f'groups={self.groups}, mixtures={self.place.num_mixtures}, cells={tuple(self.cells.shape)}'
            f'{"" if self.warehouse is not None else ", shared warehouse"}'
        )
