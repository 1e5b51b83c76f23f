import copy
import json
from pathlib import Path

import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules as register_det_modules
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules as register_seg_modules
from torch import nn
from torch.utils.data import DataLoader

from mmkerneldna.hooks import MoELossHook
from mmkerneldna.layers import MoEConv2d

MOE = dict(type='MoEConv2d', num_experts=3, top_k=2)
IMAGE = dict(img_shape=(64, 64), ori_shape=(64, 64), pad_shape=(64, 64), scale_factor=(1.0, 1.0), batch_input_shape=(64, 64))


def backbone(with_cp=False):
    return dict(
        type='DynamicConvs',
        conv=MOE,
        include=['layer[34].*.conv*'],
        module=dict(type='ResNet', depth=18, base_channels=8, norm_eval=False, with_cp=with_cp),
    )


def detector(config, **kwargs):
    """A detector as mmdet configures it, on a narrow backbone."""
    register_det_modules(init_default_scope=False)
    DefaultScope.get_instance(f'det-{torch.rand(1).item()}', scope_name='mmdet')
    model = get_config(f'mmdet::{config}').model
    model.backbone = ConfigDict(backbone(**kwargs))
    model.neck.in_channels = [8, 16, 32, 64]
    return MODELS.build(model)


def segmenter(**kwargs):
    register_seg_modules(init_default_scope=False)
    DefaultScope.get_instance(f'seg-{torch.rand(1).item()}', scope_name='mmseg')
    head = dict(
        type='FCNHead',
        in_channels=64,
        in_index=3,
        channels=8,
        num_convs=1,
        num_classes=3,
        loss_decode=dict(type='CrossEntropyLoss'),
    )
    return MODELS.build(
        dict(
            type='EncoderDecoder',
            data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64)),
            backbone=backbone(**kwargs),
            decode_head=head,
            train_cfg=dict(),
            test_cfg=dict(mode='whole'),
        )
    )


def det_batch():
    sample = DetDataSample(metainfo=dict(IMAGE))
    sample.gt_instances = InstanceData(bboxes=torch.tensor([[4.0, 4, 40, 40]]), labels=torch.tensor([1]))
    return dict(inputs=torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8), data_samples=sample)


def seg_batch():
    sample = SegDataSample(metainfo=dict(IMAGE))
    sample.gt_sem_seg = PixelData(data=torch.randint(0, 3, (1, 64, 64)))
    return dict(inputs=torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8), data_samples=sample)


class Batches(torch.utils.data.Dataset):
    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.make()


def train(work_dir, model, make, batch_size=1, optim=None, **hook):
    runner = Runner(
        model,
        str(work_dir),
        train_dataloader=DataLoader(Batches(make), batch_size=batch_size, collate_fn=pseudo_collate),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=optim or dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.001)),
        log_level='ERROR',
        custom_hooks=[dict(type='MoELossHook', interval=1, **hook)],
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1), checkpoint=None),
        log_processor=dict(window_size=1),
        experiment_name=f'{work_dir.name}-{id(model)}',
    )
    runner.train()
    lines = [json.loads(line) for path in Path(work_dir).rglob('vis_data/scalars.json') for line in path.open()]
    return runner, lines


def gate_gradients(model, batch, hook):
    """Gradients of the gates from the balance loss alone."""
    model = copy.deepcopy(model).train()
    hook.before_train(type('Run', (), dict(model=model)))
    data = model.data_preprocessor(dict(inputs=[batch['inputs']], data_samples=[batch['data_samples']]), training=True)
    losses = model(**data, mode='loss')
    losses['loss_moe_balance'].backward()
    gates = [m.gate for m in model.modules() if isinstance(m, MoEConv2d)]
    return losses, [gate.weight.grad for gate in gates]


CASES = [
    pytest.param(lambda **k: detector('retinanet/retinanet_r18_fpn_1x_coco.py', **k), det_batch, id='retinanet'),
    pytest.param(lambda **k: detector('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', **k), det_batch, id='faster_rcnn'),
    pytest.param(segmenter, seg_batch, id='fcn'),
]


@pytest.mark.parametrize('build, make', CASES)
def test_loss_is_trained_and_logged(tmp_path, build, make):
    model = build()
    _, lines = train(tmp_path, model, make, batch_size=2, weight=0.5)
    losses = [line for line in lines if 'loss_moe_balance' in line]
    assert len(losses) == 1
    layers = sum(isinstance(m, MoEConv2d) for m in model.modules())
    assert layers == 8
    assert losses[0]['loss_moe_balance'] == pytest.approx(0.5 * layers, rel=0.05)  # 1 per layer while it is balanced
    parts = sum(v for k, v in losses[0].items() if 'loss' in k and k != 'loss')
    assert losses[0]['loss'] == pytest.approx(parts, rel=1e-3)
    assert 0 < losses[0]['moe_share_min'] < 1 / 3 < losses[0]['moe_share_max'] < 1
    experts = [key for line in lines for key in line if key.startswith('moe/')]
    assert len(experts) == layers * 3 and any('layer3.0.conv1/expert2' in key for key in experts)
    assert 'loss' not in vars(model)  # the model has its own method back


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('build, make', CASES[::2])
def test_gradients_reach_every_gate(build, make, with_cp):
    _, gradients = gate_gradients(build(with_cp=with_cp), make(), MoELossHook())
    assert len(gradients) == 8
    assert all(g is not None and torch.isfinite(g).all() and g.any() for g in gradients)


def test_under_amp_and_a_batch_of_one(tmp_path):
    optim = dict(type='AmpOptimWrapper', dtype='bfloat16', optimizer=dict(type='SGD', lr=0.001))
    if not torch.cuda.is_available():
        optim = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.001))
        model = segmenter()
        with torch.autocast('cpu', dtype=torch.bfloat16):
            losses, gradients = gate_gradients(model, seg_batch(), MoELossHook())
        assert losses['loss_moe_balance'].dtype == torch.float32 and all(g.any() for g in gradients)
    _, lines = train(tmp_path, segmenter(), seg_batch, batch_size=1, optim=optim)
    assert [line['loss_moe_balance'] for line in lines if 'loss_moe_balance' in line] == pytest.approx([0.08] * 2, rel=0.1)


def test_refuses():
    with pytest.raises(ValueError, match='weight=-1 of MoELossHook'):
        MoELossHook(weight=-1)
    with pytest.raises(ValueError, match='found no MoEConv2d in the model'):
        MoELossHook().before_train(type('Run', (), dict(model=nn.Conv2d(1, 1, 1))))
    with pytest.raises(ValueError, match=r'needs a model with a method loss\(\).* Sequential has none'):
        MoELossHook().before_train(type('Run', (), dict(model=nn.Sequential(MoEConv2d(2, 2, 1)))))
