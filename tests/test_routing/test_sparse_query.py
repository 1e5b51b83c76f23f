import copy

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from torch import nn

from mmkerneldna.deploy import deploy
from mmkerneldna.errors import UsageError
from mmkerneldna.routing import decisions, keep_gates, set_keep
from mmkerneldna.routing.query_gate import query_targets
from mmkerneldna.routing.tile_towers import work_share
from mmkerneldna.sharing import share_kernels

TEST = ConfigDict(nms_pre=1000, min_bbox_size=0, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
ASSIGNER = dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1)
TRAIN = ConfigDict(assigner=ASSIGNER, sampler=dict(type='PseudoSampler'), allowed_border=-1, pos_weight=-1, debug=False)
STRIDES = [4, 8, 16, 32]
ANCHORS = dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=1, ratios=[0.5, 1.0], strides=STRIDES)
RETINA = dict(type='SparseQueryRetinaHead', anchor_generator=ANCHORS)
FCOS = dict(
    type='SparseQueryFCOSHead',
    strides=STRIDES,
    regress_ranges=((-1, 32), (32, 64), (64, 128), (128, 1e8)),
    norm_cfg=None,
    norm_on_bbox=True,
    centerness_on_reg=True,
)

GFL = dict(
    type='SparseQueryGFLHead',
    anchor_generator=dict(
        type='AnchorGenerator', octave_base_scale=8, scales_per_octave=1, ratios=[1.0], center_offset=0.5, strides=STRIDES
    ),
    loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0),
    loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
    reg_max=4,
    norm_cfg=None,
    train_cfg=ConfigDict(assigner=dict(type='ATSSAssigner', topk=9), allowed_border=-1, pos_weight=-1, debug=False),
)


def build_head(cfg, query=None, **options):
    cfg = dict(
        num_classes=3,
        in_channels=8,
        feat_channels=8,
        stacked_convs=2,
        test_cfg=copy.deepcopy(TEST),
        **{'train_cfg': TRAIN, **cfg},
        **options,
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        head = MODELS.build(dict(cfg, query=dict(tile=8, **(query or {}))))
    for conv in (m for m in head.modules() if isinstance(m, nn.Conv2d)):
        nn.init.normal_(conv.weight, std=0.2)
        if conv.bias is not None:
            nn.init.normal_(conv.bias, std=0.3)
    for norm in (m for m in head.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return head.eval()


def features(height=40, width=56, batch=2):
    """Of an image of these sides: a level may end with half a cell."""
    sizes = [(-(-height // s), -(-width // s)) for s in STRIDES]
    return tuple(torch.randn(batch, 8, *size) for size in sizes)


def samples(batch=2, height=160, width=224, boxes=((4.0, 4, 16, 12), (40, 40, 120, 100))):
    meta = dict(img_shape=(height, width), ori_shape=(height, width), pad_shape=(height, width), scale_factor=(1.0, 1.0))
    out = [DetDataSample(metainfo=dict(meta, batch_input_shape=(height, width))) for _ in range(batch)]
    for sample in out:
        sample.gt_instances = InstanceData(bboxes=torch.tensor(boxes), labels=torch.zeros(len(boxes), dtype=torch.long))
    return out


def masks(kind, shape):
    if kind == 'all':
        return torch.ones(shape, dtype=torch.bool)
    mask = torch.zeros(shape, dtype=torch.bool)
    if kind == 'one':
        mask[-1, -1, -1] = True
    if kind == 'some':  # a corner, an inner tile, none in the second image but one at the border
        mask[0, 0, 0] = mask[0, 1, 2] = mask[-1, 2, 0] = True
    return mask


BN = dict(norm_cfg=dict(type='BN'))
HEADS = [
    pytest.param(RETINA, id='retina'),
    pytest.param(dict(RETINA, **BN), id='retina-bn'),
    pytest.param(dict(FCOS), id='fcos'),
    pytest.param(dict(FCOS, **BN), id='fcos-bn'),
    pytest.param(dict(GFL, **BN), id='gfl-bn'),
]


@pytest.mark.parametrize('cfg', HEADS)
@pytest.mark.parametrize('kind', ['none', 'one', 'some', 'all'])
@pytest.mark.parametrize('size, batch', [((160, 224), 2), ((150, 190), 1)])
@torch.no_grad()
def test_sparse_is_dense_at_the_queried_positions(cfg, kind, size, batch):
    head, x = build_head(cfg), features(*size, batch)
    height, width = x[0].shape[2:]
    kept = masks(kind, (batch, -(-height // 8), -(-width // 8)))
    dense = [levels[0] for levels in head(x)]
    rows, columns = (torch.arange(side) // 8 for side in (height, width))
    paddings = [m.padding for m in head.modules() if isinstance(m, nn.Conv2d)]
    for i, (positions, values) in enumerate(head.sparse_level(x[0], kept)):
        expected = kept[i][rows][:, columns].flatten().nonzero()[:, 0]
        assert torch.equal(positions.sort().values, expected)
        for sparse, whole in zip(values, dense):
            difference = (sparse - whole[i].flatten(1)[:, positions]).abs()
            assert not len(positions) or difference.max() <= 1e-5 * whole.abs().max()
    assert [m.padding for m in head.modules() if isinstance(m, nn.Conv2d)] == paddings


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('cfg', HEADS[::2])  # one of each, and none kept in the second image
def test_predicts_what_a_dense_head_finds_there(cfg, channels_last):
    """A head that sees minus infinity at every position that is not queried."""
    head, x = build_head(cfg, dict(threshold=0.5)), features(160, 224)
    if channels_last:
        x = tuple(level.contiguous(memory_format=torch.channels_last) for level in x)
    with torch.no_grad():
        head.query_gate.score.bias.zero_()
        gate = head.query_gate.logits(x[1])
        head.query_gate.set_threshold(gate.flatten().kthvalue(int(0.7 * gate.numel())).values.item())
        kept = head.query_gate.decide(x[1])[:, 0]
        assert 0.2 < kept.float().mean() < 0.4
        outputs = [list(levels) for levels in head(x)]
        height, width = x[0].shape[2:]
        hidden = ~kept[:, torch.arange(height) // 8][:, :, torch.arange(width) // 8]
        outputs[0][0] = outputs[0][0].masked_fill(hidden[:, None], -torch.inf)
        head.test_cfg.score_thr = 0.3
        metas = [sample.metainfo for sample in samples()]
        expected = head.predict_by_feat(*outputs, batch_img_metas=metas)
        actual = head.predict(x, samples())
    for ours, theirs in zip(actual, expected):
        assert len(ours) == len(theirs) > 0
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.bboxes.sum(0), theirs.bboxes.sum(0), rtol=1e-3, atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize('cfg', HEADS[::2])
def test_keep_moves_from_everything_to_nothing(cfg):
    head, x = build_head(cfg), features(160, 224)
    head.test_cfg.score_thr = 0.3
    outputs, metas = [list(levels) for levels in head(x)], [s.metainfo for s in samples()]
    dense = head.predict_by_feat(*outputs, batch_img_metas=metas)
    outputs[0][0] = torch.full_like(outputs[0][0], -torch.inf)
    coarser = head.predict_by_feat(*outputs, batch_img_metas=metas)
    for threshold, expected in ((-torch.inf, dense), (1e6, coarser)):
        head.query_gate.set_threshold(threshold)
        for ours, theirs in zip(head.predict(x, samples()), expected):
            assert len(ours) and torch.equal(ours.scores, theirs.scores) and torch.equal(ours.bboxes, theirs.bboxes)


def test_gfl_trains_and_takes_mmdets_config():
    head, x = build_head(GFL).train(), features(160, 224)
    losses = head.loss(x, samples())
    assert set(losses) == {'loss_cls', 'loss_bbox', 'loss_dfl', 'loss_query'}
    sum(sum(loss) if isinstance(loss, list) else loss for loss in losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    cfg = get_config('mmdet::gfl/gfl_r50_fpn_1x_coco.py').model
    cfg.bbox_head.type, cfg.bbox_head.anchor_generator.strides = 'SparseQueryGFLHead', [4, 8, 16, 32, 64]
    with DefaultScope.overwrite_default_scope('mmdet'):
        with pytest.raises(UsageError, match='its towers need all of it.*GN'):  # mmdet's default
            MODELS.build(cfg.bbox_head)
        assert MODELS.build(dict(cfg.bbox_head, norm_cfg=dict(type='BN'))).query_gate.stride == 8


def test_trains_on_small_boxes():
    head, x = build_head(RETINA).train(), tuple(level.requires_grad_() for level in features(160, 224))
    losses = head.loss(x, samples())
    assert set(losses) == {'loss_cls', 'loss_bbox', 'loss_query'}
    gate = head.query_gate
    logits = gate.cell_logits(x[1])
    targets = torch.stack([query_targets(torch.tensor([[4.0, 4, 16, 12]]), logits.shape[2:], 8, 32.0)] * 2)[:, None]
    p = logits.sigmoid()
    focal = torch.where(targets, -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log())
    torch.testing.assert_close(losses['loss_query'], focal.sum() / targets.sum())
    losses['loss_query'].backward()
    assert all(p.grad.any() for p in gate.parameters()) and x[1].grad.any() and head.retina_cls.weight.grad is None


def test_learns_where_small_boxes_are():
    """Bright spots of two positions: after some steps the gate keeps their tiles and few others."""
    gate = build_head(RETINA).query_gate.train()
    gate.init_weights()
    optimizer = torch.optim.Adam(gate.parameters(), 0.01)

    def batch():
        x, centres = 0.3 * torch.randn(2, 8, 20, 28), torch.stack([torch.randint(0, 28, (2,)), torch.randint(0, 20, (2,))], 1)
        for i, (column, row) in enumerate(centres.tolist()):
            x[i, 0, row, column] += 4
        middle = (centres + 0.5) * 8.0
        return x, list(torch.cat([middle - 5, middle + 5], 1).split(1))

    for _ in range(60):
        x, boxes = batch()
        loss = gate.query_loss(x, boxes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    gate.eval()
    hits, kept = [], []
    for _ in range(10):
        x, boxes = batch()
        tiles = gate.decide(x)[:, 0]
        kept.append(tiles.float().mean().item())
        for i, box in enumerate(boxes):
            column, row = ((box[0, :2] + 5) // 32).long().tolist()
            hits.append(tiles[i, row, column].item())
    assert sum(hits) / len(hits) >= 0.9 and sum(kept) / len(kept) < 0.35


def test_targets():
    boxes = torch.tensor([[10.0, 18, 14, 22], [0, 0, 31, 31], [0, 0, 40, 40], [5, 5, 5, 5]])
    targets = query_targets(boxes, (6, 5), 8, 31.5)
    expected = torch.zeros(6, 5, dtype=torch.bool)
    for x, y in ((12, 20), (15.5, 15.5), (5, 5)):  # the third box is not small
        for row in range(6):
            for column in range(5):
                expected[row, column] |= (column * 8 + 4 - x) ** 2 + (row * 8 + 4 - y) ** 2 <= 64
    assert torch.equal(targets, expected)
    assert not query_targets(torch.zeros(0, 4), (3, 3), 8, 32).any()


def detector(**head):
    cfg = dict(
        type='RetinaNet',
        data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32),
        backbone=dict(type='ResNet', depth=18, base_channels=8, norm_eval=False),
        neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=8, start_level=0, num_outs=4),
        bbox_head=dict(RETINA, num_classes=3, in_channels=8, feat_channels=8, stacked_convs=2, query=dict(tile=8), **head),
        train_cfg=TRAIN,
        test_cfg=copy.deepcopy(TEST),
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(ConfigDict(cfg))
        model.init_weights()
    return model.eval()


def images(batch=2, height=96, width=160):
    return dict(
        inputs=[torch.randint(0, 255, (3, height, width), dtype=torch.uint8) for _ in range(batch)],
        data_samples=samples(batch, height, width),
    )


def test_keep_is_set_after_training_and_survives_saving():
    model = detector()
    assert list(keep_gates(model)) == ['bbox_head.query_gate']
    data = [images(2), images(1)]
    reached = set_keep(model, 0.25, data)
    assert 0.15 < reached < 0.35
    with decisions(model) as seen, torch.no_grad():
        for batch in data:
            model.test_step(batch)
        assert seen.rate() == pytest.approx(reached)
    other = detector()
    other.load_state_dict(model.state_dict())
    assert other.bbox_head.query_gate.threshold == model.bbox_head.query_gate.threshold != 0
    assert set_keep(model, 1) == 1.0 and model.bbox_head.query_gate.always_open


def test_deployed_it_queries_the_same():
    model, data = detector(), images(2)
    nn.init.normal_(model.bbox_head.retina_cls.weight, std=0.1)  # else nothing has a score
    set_keep(model, 0.4, [data])
    fast = deploy(model)
    with torch.no_grad():
        ours, theirs = (net.test_step(copy.deepcopy(data)) for net in (fast, model))
    for one, other in zip(ours, theirs):
        assert len(one.pred_instances) == len(other.pred_instances) > 0
        torch.testing.assert_close(one.pred_instances.scores, other.pred_instances.scores, rtol=1e-3, atol=1e-5)


def test_half_precision_and_training_step():
    model = detector().train()
    data = model.data_preprocessor(images(2), True)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss, logged = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    assert loss.isfinite() and 'loss_query' in logged
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.bbox_head.parameters())
    model.eval()
    set_keep(model, 0.5, [images(2)])
    with torch.autocast('cpu', dtype=torch.bfloat16), torch.no_grad():
        assert len(model.test_step(images(2))) == 2


def test_shared_kernels_in_the_towers_are_computed_densely():
    """A child's gate looks at the whole map; the outputs are those of the dense head all the same."""
    head = build_head(RETINA)
    share_kernels(head, {'cls_convs.0.conv': 'cls_convs.1.conv'})
    x = features(160, 224)
    kept = masks('some', (2, 5, 7))
    with torch.no_grad():
        whole = head(x)[0][0]
        positions, (scores, _) = head.sparse_level(x[0], kept)[0]
    assert len(positions) == 128 and torch.equal(scores, whole[0].flatten(1)[:, positions])


def test_work_of_tiles():
    assert work_share(0.5, 4, 2) == pytest.approx(0.5 * (36 + 16) / 2 / 16)
    assert work_share(1, 16, 0) == 1


@pytest.mark.parametrize(
    'query, options, message',
    [
        (dict(level=0), {}, 'query level=0: the head has levels 0 to 3'),
        (dict(level=4), {}, 'query level=4'),
        (dict(threshold=1.0), {}, 'threshold=1.0 must lie between 0 and 1'),
        (dict(small=0), {}, 'small=0'),
        (dict(tiles=8), {}, r"\['tiles'\] are no settings of it"),
        ({}, dict(norm_cfg=dict(type='GN', num_groups=2)), 'its towers need all of it.*GN'),
        ({}, dict(conv_cfg=dict(type='MoEConv2d')), 'its towers need all of it'),
    ],
)
def test_refuses(query, options, message):
    with pytest.raises(UsageError, match=message):
        build_head(RETINA, query, **options)


def test_refuses_a_tile_that_cells_do_not_divide():
    cfg = dict(num_classes=3, in_channels=8, **RETINA)
    with DefaultScope.overwrite_default_scope('mmdet'), pytest.raises(UsageError, match='tile=6 must be a multiple of 4'):
        MODELS.build(dict(cfg, query=dict(level=2, tile=6)))
    with pytest.raises(UsageError, match=r'keep=0 must lie in \(0, 1\]'):
        set_keep(detector(), 0)
