"""Dense heads that compute their finest level only where a coarse level asks for it.

QueryDet: Cascaded Sparse Query for Accelerating High-Resolution Small Object Detection, Yang et al., CVPR 2022,
https://arxiv.org/abs/2103.09136. There features outside of the queries are left out of the convolutions too; here what is
computed equals the dense head, so a model is trained dense and its queries thinned out afterwards.

Letters: N batch, C channels, H W the finest level, M tiles of T x T positions.
"""

from typing import Any

import torch
from mmdet.models.dense_heads import FCOSHead, GFLHead, RetinaHead
from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..errors import UsageError
from ..layers.drop_in import at_least_fp32
from .query_gate import QueryGate
from .tile_towers import Tiles, conv_of, halo_of, run_on_tiles, work_share
from .tiles import on_positions

QUERY = dict(level=1, tile=16, small=32.0, threshold=0.1, convs=1)


class SparseQuery(nn.Module):
    """Before a dense head of mmdet in the bases of one that computes its level 0 sparsely in inference.

    ``forward`` and ``loss`` are dense on all levels (so are exported files, which take level 0 where it is queried, and the
    GMACs that are counted of ``forward``);
    ``predict`` computes level 0 on the tiles that the :class:`.query_gate.QueryGate` keeps, and takes detections from nowhere
    else on that level. :func:`.keep.set_keep` sets how many; at keep 1 it is the dense head.

    Args:
        query (dict): ``level``, the level that asks (1); ``tile``, T in positions of level 0 (16); ``small`` (32),
            ``threshold`` (0.1), ``convs`` (1) as in :class:`.query_gate.QueryGate`.
        args, kwargs: of the dense head. The anchor generator (or ``strides``) must begin at the finest level, and the FPN
            yield it: ``neck=dict(start_level=0, num_outs=6)``.

    Raises:
        UsageError: an unknown key of ``query``, a level that does not exist, a tile that the cells of that level do not
            divide, or towers that need the whole map (GroupNorm, a dynamic convolution).
    """

    predictors: tuple[str, ...] = ()  # in the order of what forward_single returns
    # what the dense head has
    in_channels: int
    norm_cfg: Any
    test_cfg: Any
    prior_generator: Any
    forward_single: Any
    cls_convs: nn.ModuleList
    reg_convs: nn.ModuleList
    scales: nn.ModuleList
    strides: Any
    _predict_by_feat_single: Any

    def __init__(self, *args, query: dict | None = None, **kwargs) -> None:
        unknown = sorted(set(query or {}) - set(QUERY))
        if unknown:
            raise UsageError(f'query={query}: {unknown} are no settings of it; it has {sorted(QUERY)}')
        super().__init__(*args, **kwargs)
        settings: dict[str, Any] = {**QUERY, **(query or {})}
        level, self.tile = settings.pop('level'), settings.pop('tile')
        self.query_level, stride, cells = level, *self._query_geometry(level)
        self.query_gate = QueryGate(self.in_channels, cells, stride, **settings)
        self._said = False  # that the towers need the whole map
        if halo_of(*self._layers()) is None:
            raise UsageError(
                f'{type(self).__name__} computes tiles of a map, and its towers need all of it: give it plain convolutions '
                f'with norm_cfg=None or BN, not norm_cfg={self.norm_cfg}'
            )

    def _query_geometry(self, level: int) -> tuple[int, int]:
        """Stride of the level that asks, and its cells per side of a tile."""
        strides = [s[0] if isinstance(s, tuple) else s for s in self.prior_generator.strides]
        if isinstance(level, bool) or not isinstance(level, int) or not 0 < level < len(strides):
            raise UsageError(f'query level={level!r}: the head has levels 0 to {len(strides) - 1}, and level 0 is asked about')
        ratio = strides[level] // strides[0]
        if not isinstance(self.tile, int) or self.tile < ratio or self.tile % ratio or strides[level] % strides[0]:
            raise UsageError(
                f'query tile={self.tile!r} must be a multiple of {ratio}: a cell of level {level}, of stride {strides[level]}, '
                f'covers {ratio} positions of level 0, of stride {strides[0]}, per side'
            )
        return strides[level], self.tile // ratio

    def loss(self, x: tuple[Tensor, ...], batch_data_samples: list) -> dict[str, Any]:
        """The losses of the dense head, and ``loss_query``."""
        head: Any = super()
        losses = head.loss(x, batch_data_samples)
        boxes = [sample.gt_instances.bboxes for sample in batch_data_samples]
        boxes = [getattr(box, 'tensor', box) for box in boxes]
        losses['loss_query'] = self.query_gate.query_loss(x[self.query_level], boxes)
        return losses

    def ask_gates(self, x: tuple[Tensor, ...]) -> None:
        """Have the gate decide, and nothing more: what :func:`.keep.set_keep` needs."""
        self.query_gate.decide(x[self.query_level])

    @torch.no_grad()
    def predict(self, x: tuple[Tensor, ...], batch_data_samples: list, rescale: bool = False) -> list:
        """Detections of each image, as the dense head returns them."""
        kept = None if self.training else self.query_gate.decide(x[self.query_level])
        if kept is None:
            head: Any = super()
            return head.predict(x, batch_data_samples, rescale=rescale)
        sparse = self.sparse_level(x[0], kept[:, 0])
        dense = [self.forward_single(x[i], *self._extras(i)) for i in range(1, len(x))]
        priors = [self._dense_priors(x[i], i) for i in range(1, len(x))]
        return [
            self._predict_image(i, sparse, dense, priors, x[0], sample.metainfo, rescale)
            for i, sample in enumerate(batch_data_samples)
        ]

    def queried(self, x: tuple[Tensor, ...]) -> Tensor | None:
        """Where :meth:`predict` computes level 0, (N, 1, H, W) of bool; None for everywhere."""
        kept = self.query_gate.decide(x[self.query_level])
        return None if kept is None else on_positions(kept, self.tile, x[0].shape[2:])

    def sparse_level(self, x: Tensor, kept: Tensor) -> list[tuple[Tensor, tuple[Tensor, ...]]]:
        """Level 0 where it is kept.

        Args:
            x: (N, C, H, W).
            kept: (N, ceil(H / T), ceil(W / T)) of bool.

        Returns:
            For each image the positions y W + x that were computed, (P,), and the outputs there, (K, P) each.
        """
        halo, kept = self._halo(), kept[:, : -(-x.shape[2] // self.tile), : -(-x.shape[3] // self.tile)]
        tiles = Tiles(kept, self.tile, halo or 0, x.shape[2:])
        share = len(tiles) / max(kept.numel(), 1)
        if halo is None or work_share(share, self.tile, halo) >= 1:
            maps = self.forward_single(x, *self._extras(0))
            return [
                (tiles.positions[own], tuple(y[i].flatten(1)[:, tiles.positions[own]] for y in maps))
                for i, own in enumerate(self._own(tiles, len(x)))
            ]
        return self._on_tiles(x, tiles)

    def _on_tiles(self, x: Tensor, tiles: Tiles) -> list[tuple[Tensor, tuple[Tensor, ...]]]:
        if not len(tiles):
            nothing = tuple(x.new_zeros(conv_of(predictor).out_channels, 0) for predictor in self._layers()[1])
            return [(tiles.positions.new_zeros(0), nothing)] * len(x)
        outputs = run_on_tiles(lambda cut: self.forward_single(cut, *self._extras(0)), x, tiles, *self._layers())
        flat = [y.flatten(2).transpose(0, 1) for y in outputs]  # (K, M, T T)
        return [(tiles.positions[own], tuple(y[:, own] for y in flat)) for own in self._own(tiles, len(x))]

    @staticmethod
    def _own(tiles: Tiles, images: int) -> list[Tensor]:
        """Which positions of which tiles belong to each image and lie inside of it, (M, T T) of bool each."""
        return [tiles.inside & (tiles.image == i)[:, None] for i in range(images)]

    def _predict_image(self, i: int, sparse, dense, priors, finest: Tensor, meta: dict, rescale: bool):
        """One image: level 0 stands as a map of one row, perhaps an empty one, which the post-processing takes as any other."""
        positions, values = sparse[i]
        outputs = [tuple(y[:, None] for y in values), *(tuple(y[i] for y in level) for level in dense)]
        priors = [self._sparse_priors(positions, finest), *priors]
        # NMS takes no half precision
        columns: list[Any] = [[at_least_fp32(y) for y in column] for column in zip(*outputs)]
        scores, boxes, *factors = columns
        return self._predict_by_feat_single(
            cls_score_list=scores,
            bbox_pred_list=boxes,
            score_factor_list=factors[0] if factors else [None] * len(scores),
            mlvl_priors=priors,
            img_meta=meta,
            cfg=self.test_cfg,
            rescale=rescale,
            with_nms=True,
        )

    def _sparse_priors(self, positions: Tensor, finest: Tensor) -> Tensor:
        generator = self.prior_generator
        each = generator.num_base_priors[0]
        numbers = (positions[:, None] * each + torch.arange(each, device=positions.device)).flatten()
        return generator.sparse_priors(numbers, tuple(finest.shape[2:]), 0, torch.float32, finest.device)

    def _dense_priors(self, x: Tensor, level: int) -> Tensor:
        return self.prior_generator.single_level_grid_priors(tuple(x.shape[2:]), level, dtype=torch.float32, device=x.device)

    def _halo(self) -> int | None:
        """None where towers came to need the whole map, as shared kernels do with their gates: then it is computed whole."""
        halo = halo_of(*self._layers())
        if halo is None and not self._said:
            print_log('towers that need the whole map: level 0 is computed densely, queries save nothing', 'current', 30)
            self._said = True
        return halo

    def _layers(self) -> tuple[list, list]:
        towers = [list(self.cls_convs), list(self.reg_convs)]
        return towers, [getattr(self, name) for name in self.predictors]

    def _extras(self, level: int) -> tuple:
        """What ``forward_single`` takes besides the map of a level."""
        return ()


@MODELS.register_module()
class SparseQueryRetinaHead(SparseQuery, RetinaHead):
    """RetinaNet's head with a sparse finest level; see :class:`SparseQuery`."""

    predictors = ('retina_cls', 'retina_reg')


@MODELS.register_module()
class SparseQueryFCOSHead(SparseQuery, FCOSHead):
    """FCOS's head with a sparse finest level; see :class:`SparseQuery`. Its towers need ``norm_cfg=None`` or BN."""

    predictors = ('conv_cls', 'conv_reg', 'conv_centerness')

    def _extras(self, level: int) -> tuple:
        return self.scales[level], self.strides[level]


@MODELS.register_module()
class SparseQueryGFLHead(SparseQuery, GFLHead):
    """GFL's head with a sparse finest level; see :class:`SparseQuery`. Its towers need ``norm_cfg=None`` or BN."""

    predictors = ('gfl_cls', 'gfl_reg')

    def _extras(self, level: int) -> tuple:
        return (self.scales[level],)
