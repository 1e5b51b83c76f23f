import copy
from types import SimpleNamespace

import pytest
import torch
from helpers import randomise
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules as register_det_modules
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules as register_seg_modules

from mmkerneldna.distill import DistillError, prepare_distillation
from mmkerneldna.distill.losses import cwd_loss, mse_loss, pkd_loss
from mmkerneldna.errors import CheckpointError, UsageError
from mmkerneldna.hooks import MoELossHook

IMAGE = dict(img_shape=(64, 64), ori_shape=(64, 64), pad_shape=(64, 64), scale_factor=(1.0, 1.0), batch_input_shape=(64, 64))


def resnet(**kwargs):
    return dict(type='ResNet', depth=18, base_channels=8, norm_eval=False, **kwargs)


def detector(channels=16, **kwargs):
    register_det_modules(init_default_scope=False)
    DefaultScope.get_instance(f'det-{torch.rand(1).item()}', scope_name='mmdet')
    model = get_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py').model
    model.backbone = ConfigDict(resnet(**kwargs))
    model.neck.update(in_channels=[8, 16, 32, 64], out_channels=channels)
    model.bbox_head.update(in_channels=channels, feat_channels=channels, num_classes=3)
    return model


def segmenter(classes=3, mean=0.0, **kwargs):
    register_seg_modules(init_default_scope=False)
    DefaultScope.get_instance(f'seg-{torch.rand(1).item()}', scope_name='mmseg')
    heads = [
        dict(
            type='FCNHead',
            in_channels=c,
            in_index=i,
            channels=8,
            num_convs=1,
            num_classes=classes,
            loss_decode=dict(type='CrossEntropyLoss'),
        )
        for i, c in ((3, 64), (2, 32))
    ]
    data = dict(type='SegDataPreProcessor', size=(64, 64), mean=[mean] * 3, std=[50.0] * 3, bgr_to_rgb=True)
    return ConfigDict(
        type='EncoderDecoder',
        data_preprocessor=data,
        backbone=resnet(**kwargs),
        decode_head=heads[0],
        auxiliary_head=heads[1],
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )


def det_batch():
    samples = [DetDataSample(metainfo=dict(IMAGE)) for _ in range(2)]
    for sample in samples:
        sample.gt_instances = InstanceData(bboxes=torch.tensor([[4.0, 4, 40, 40]]), labels=torch.tensor([1]))
    return torch.randn(2, 3, 64, 64), samples


def seg_batch():
    samples = [SegDataSample(metainfo=dict(IMAGE)) for _ in range(2)]
    for sample in samples:
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 3, (1, 64, 64)))
    return torch.randn(2, 3, 64, 64), samples


def trained(model, path):
    """A teacher's file and the model in it."""
    model = randomise(MODELS.build(model))
    torch.save(dict(state_dict=model.state_dict()), path)
    return model.eval()


@pytest.fixture
def make(tmp_path):
    """A student with a teacher, the plain student with the same weights, and the teacher as a model of its own."""

    def build(cfg, losses, teacher_cfg=None):
        teacher = trained(teacher_cfg or cfg, tmp_path / 'teacher.pth')
        source = dict(cfg=teacher_cfg or cfg, checkpoint=str(tmp_path / 'teacher.pth'))
        student = MODELS.build(dict(type='Distilled', teacher=source, student=cfg, losses=losses))
        plain = MODELS.build(cfg)
        plain.load_state_dict(student.state_dict())
        return student, plain, teacher

    return build


def test_a_detector_learns_the_levels(make):
    student, plain, teacher = make(detector(), [dict(type='PKD', weight=6), dict(type='MSE', weight=0.5)])
    inputs, samples = det_batch()
    losses, own = (copy.deepcopy(m).train().loss(inputs, copy.deepcopy(samples)) for m in (student, plain))
    with torch.no_grad():
        ours, theirs = plain.train().extract_feat(inputs), teacher.extract_feat(inputs)
    expected = 6 * sum(pkd_loss(a, b) for a, b in zip(ours, theirs)), 0.5 * sum(mse_loss(a, b) for a, b in zip(ours, theirs))
    assert set(losses) == {*own, 'loss_pkd_levels', 'loss_mse_levels'} and len(ours) == 5
    assert losses['loss_pkd_levels'].item() == pytest.approx(expected[0].item(), rel=1e-5)
    assert losses['loss_mse_levels'].item() == pytest.approx(expected[1].item(), rel=1e-5)
    for key, value in own.items():
        torch.testing.assert_close(losses[key], value)


@pytest.mark.parametrize('strides', [(1, 2, 2, 2), (1, 2, 1, 1)])
def test_a_segmenter_learns_the_logits(make, strides):
    """Also of a teacher with larger maps; the auxiliary head is its own affair."""
    student, plain, teacher = make(segmenter(), [dict(type='CWD', weight=3, tau=2)], segmenter(strides=strides))
    inputs, samples = seg_batch()
    losses = copy.deepcopy(student).train().loss(inputs, samples)
    assert {'decode.loss_ce', 'aux.loss_ce', 'loss_cwd_logits'} <= set(losses)
    with torch.no_grad():
        torch.manual_seed(0)
        plain.train().decode_head.dropout.eval()
        ours, theirs = (m.decode_head.forward(m.extract_feat(inputs)) for m in (plain, teacher))
        ours = torch.nn.functional.interpolate(ours, theirs.shape[2:], mode='bilinear', align_corners=False)
    student.train().decode_head.dropout.eval()
    value = student.loss(inputs, samples)['loss_cwd_logits'].item()
    assert value == pytest.approx(3 * cwd_loss(ours, theirs, 2).item(), rel=1e-4)


@pytest.mark.parametrize(
    'cfg, batch, losses', [(detector, det_batch, [dict(type='PKD')]), (segmenter, seg_batch, [dict(type='CWD')])]
)
def test_only_the_student_is_there_and_learns(make, cfg, batch, losses):
    student, plain, _ = make(cfg(), losses)
    prepare_distillation(student)
    teacher = student.loss.teacher.model
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    assert list(student.state_dict()) == list(plain.state_dict()) and type(student) is type(plain)
    assert [n for n, _ in student.named_modules()] == [n for n, _ in plain.named_modules()]
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
    first = student.backbone.conv1.weight.clone()
    for _ in range(2):
        values = student.train()(*batch(), mode='loss')
        student.parse_losses(values)[0].backward()
        optimizer.step()
    assert not torch.equal(first, student.backbone.conv1.weight)
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_distillation_alone_has_gradients_and_weight_0_has_none(make):
    student, plain, _ = make(segmenter(), [dict(type='CWD', weight=0)])
    batch = seg_batch()
    for model in (student, plain):
        torch.manual_seed(1)
        model.train().parse_losses(model(*batch, mode='loss'))[0].backward()
    for ours, theirs in zip(student.parameters(), plain.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=0)
    student, _, _ = make(segmenter(), [dict(type='CWD')])
    student.train()(*batch, mode='loss')['loss_cwd_logits'].backward()
    assert student.backbone.conv1.weight.grad.abs().sum() > 0 and student.decode_head.conv_seg.weight.grad.abs().sum() > 0
    assert student.auxiliary_head.conv_seg.weight.grad is None


def test_a_copy_learns_from_the_same_teacher_by_itself(make):
    student, _, _ = make(detector(), [dict(type='PKD')])
    inputs, samples = det_batch()
    twin = copy.deepcopy(student)
    assert twin.loss.student is twin and twin.loss.teacher is student.loss.teacher
    before = student.eval().loss(inputs, samples)['loss_pkd_levels'].item()
    randomise(twin.eval())
    assert abs(twin.loss(inputs, samples)['loss_pkd_levels'].item() - before) > 1e-3
    assert student.loss(inputs, samples)['loss_pkd_levels'].item() == before
    assert 'extract_feat' not in vars(student)


def test_predictions_and_autocast(make):
    student, plain, _ = make(segmenter(), [dict(type='CWD')])
    inputs, samples = seg_batch()
    ours, theirs = (m.eval()(inputs, mode='tensor') for m in (student, plain))
    assert torch.equal(ours, theirs)
    with torch.autocast('cpu', torch.bfloat16):
        loss = student.train()(inputs, samples, mode='loss')['loss_cwd_logits']
    assert loss.dtype == torch.float32 and loss.isfinite()


def test_a_balance_loss_goes_and_leaves_the_distillation(make):
    cfg = segmenter()
    cfg.backbone = ConfigDict(
        type='DynamicConvs',
        conv=dict(type='MoEConv2d', num_experts=2, top_k=1),
        include=['layer4.*.conv*'],
        module=cfg.backbone,
    )
    student, _, _ = make(cfg, [dict(type='CWD')], segmenter())
    hook = MoELossHook()
    hook.before_train(SimpleNamespace(model=student))
    assert {'loss_moe_balance', 'loss_cwd_logits'} <= set(student.train().loss(*seg_batch()))
    hook.after_train(None)
    assert 'loss_cwd_logits' in student.loss(*seg_batch())


BAD_CONFIGS = {
    'no losses': (dict(losses=[]), 'must be a list such as'),
    'unknown type': (dict(losses=[dict(type='KD')]), 'type must be one of PKD, CWD, MSE'),
    'unknown option': (dict(losses=[dict(type='PKD', tau=3)]), 'PKD takes type, on, weight, not tau'),
    'unknown maps': (dict(losses=[dict(type='PKD', on='boxes')]), "on='boxes' must be one of 'levels', 'logits'"),
    'negative weight': (dict(losses=[dict(type='PKD', weight=-1)]), 'weight=-1 must be a non-negative number'),
    'no temperature': (dict(losses=[dict(type='CWD', tau=0)]), 'tau=0 must be a positive number'),
    'twice': (dict(losses=[dict(type='PKD'), dict(type='PKD')]), 'loss_pkd_levels is there twice'),
    'no checkpoint': (dict(teacher=dict(cfg='a.py')), 'needs its config and its weights'),
    'another word': (dict(teacher=dict(config='a.py', checkpoint='a.pth')), 'must be dict'),
    'a backbone': (dict(student=resnet()), 'the student must be a detector or a segmenter, ResNet is not'),
}


@pytest.mark.parametrize('case', BAD_CONFIGS)
def test_a_config_that_can_not_be_used(case):
    change, message = BAD_CONFIGS[case]
    cfg = dict(type='Distilled', teacher=dict(cfg='a.py', checkpoint='a.pth'), student=segmenter(), losses=[dict(type='CWD')])
    with pytest.raises(DistillError, match=message):
        MODELS.build({**cfg, **change})


@pytest.mark.parametrize(
    'teacher, losses, message',
    [
        (
            lambda: segmenter(mean=9.0),
            [dict(type='CWD')],
            'student mean 0, 0, 0 std 50, 50, 50, channels reversed; teacher mean 9',
        ),
        (lambda: segmenter(classes=4), [dict(type='CWD')], 'student predicts 3 classes and the teacher 4'),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_before_training(make, teacher, losses, message):
    student, _, _ = make(segmenter(), losses, teacher())
    with pytest.raises(DistillError, match=message):
        prepare_distillation(student)


def test_logits_of_a_detector(make):
    student, _, _ = make(detector(), [dict(type='CWD')])
    with pytest.raises(DistillError, match='RetinaNet has no logits map'):
        prepare_distillation(student)


@pytest.mark.parametrize(
    'cfg, other, losses, message',
    [
        (
            detector,
            lambda: detector(channels=8),
            [dict(type='PKD')],
            'level 0 has 16 channels in the student and 8 in the teacher',
        ),
        (
            segmenter,
            lambda: segmenter(strides=(1, 2, 1, 1)),
            [dict(type='MSE')],
            'level 2 is 4x4 in the student and 8x8 in the teacher',
        ),
        (segmenter, lambda: segmenter(out_indices=(2, 3)), [dict(type='MSE')], 'the student has 4 levels, the teacher 2'),
    ],
)
def test_maps_that_do_not_fit(make, cfg, other, losses, message):
    batch = det_batch() if cfg is detector else seg_batch()
    student, _, _ = make(cfg(), losses, other())
    with pytest.raises(DistillError, match=message):
        student.loss(*batch)
    assert 'extract_feat' not in vars(student)


@pytest.mark.parametrize(
    'source, kind, message',
    [
        (dict(cfg='/nonexistent/a.py', checkpoint='a.pth'), UsageError, '/nonexistent/a.py does not exist'),
        (
            dict(cfg='mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py', checkpoint='/nonexistent/a.pth'),
            CheckpointError,
            '/nonexistent/a.pth does not exist',
        ),
        (dict(cfg=dict(optimizer=1), checkpoint='a.pth'), DistillError, 'the config of the teacher has no model'),
    ],
)
def test_a_teacher_is_looked_for_when_a_training_starts(source, kind, message):
    student = MODELS.build(dict(type='Distilled', teacher=source, student=segmenter(), losses=[dict(type='CWD')]))
    student.eval()(seg_batch()[0], mode='tensor')  # a test needs none
    with pytest.raises(kind, match=message):
        prepare_distillation(student)


def test_a_checkpoint_of_another_net(make, tmp_path):
    student, _, _ = make(segmenter(), [dict(type='CWD')])
    torch.save(dict(state_dict=dict(a=torch.ones(1))), tmp_path / 'teacher.pth')
    with pytest.raises(CheckpointError, match='of the teacher does not fit EncoderDecoder'):
        prepare_distillation(student)
