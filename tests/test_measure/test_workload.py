"""The calls that are measured do what they say."""

from pathlib import Path

import pytest
import torch
from mmdet.models.backbones import ResNet
from mmengine.config import Config

from mmkerneldna.anatomy import task_of
from mmkerneldna.backbones import KDNAResNet
from mmkerneldna.measure.benchmark import build_from_config
from mmkerneldna.measure.synthetic import detection_batch, synthetic_images
from mmkerneldna.measure.workload import Workload, inference_call, tensor_call, train_call

ROOT = Path(__file__).resolve().parents[2]
DETECTOR = 'configs/shapes/faster-rcnn_kdna-r18_fpn_shapes.py'
SEGMENTER = 'configs/shapes/upernet_kdna-r18_shapes.py'
SMALL = Workload(batch=2, size=(64, 96))


@pytest.fixture(scope='module', params=[DETECTOR, SEGMENTER])
def model(request):
    return build_from_config(Config.fromfile(ROOT / request.param))


def test_task(model):
    assert task_of(model) == {'FasterRCNN': 'detection', 'EncoderDecoder': 'segmentation'}[type(model).__name__]
    assert task_of(torch.nn.Conv2d(3, 3, 1)) == 'backbone'


def test_inference_runs_to_the_results(model):
    model.eval()
    results = inference_call(model, SMALL)()
    assert len(results) == 2
    for result in results:
        assert result.ori_shape == (64, 96)
        assert 'pred_instances' in result or result.pred_sem_seg.shape == (64, 96)


def test_inference_on_given_data(model):
    data = detection_batch(1, (32, 64), False) if task_of(model) == 'detection' else None
    model.eval()
    assert len(inference_call(model, Workload(1, (32, 64)), data)()) == 1


def test_training_step_moves_weights_and_clears_gradients(model):
    model.train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    call = train_call(model, SMALL)
    call(), call()
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert any('backbone' in name for name in moved) and any('head' in name for name in moved)
    assert all(p.grad is None and p.isfinite().all() for p in model.parameters())


def test_segmenter_trains_at_the_stated_size(model):
    if task_of(model) != 'segmentation':
        pytest.skip('only mmseg pads to the crop size of the config')
    sizes = []
    hook = model.backbone.register_forward_hook(lambda net, inputs, output: sizes.append(tuple(inputs[0].shape)))
    model.train()
    train_call(model, SMALL)()
    hook.remove()
    assert sizes == [(2, 3, 64, 96)]


def test_backbone_trains():
    net = KDNAResNet(depth=18)
    net.train()
    weight = net.layer1[0].conv1.weight
    before = weight.detach().clone()
    train_call(net, SMALL)()
    assert not torch.equal(weight, before)


def test_network_alone_leaves_post_processing_out(model):
    model.eval()
    outputs = tensor_call(model, SMALL)()
    assert isinstance(outputs, (tuple, torch.Tensor)) and not hasattr(outputs[0], 'pred_instances')


def test_images_are_the_same_every_time_and_leave_the_random_state():
    state = torch.get_rng_state()
    assert torch.equal(torch.stack(synthetic_images(2, (5, 7))), torch.stack(synthetic_images(2, (5, 7))))
    assert torch.equal(torch.get_rng_state(), state)


def test_masks_fill_their_boxes():
    sample = detection_batch(1, (60, 80), with_mask=True)['data_samples'][0].gt_instances
    assert len(sample) == 8
    for box, mask in zip(sample.bboxes.round().long().tolist(), sample.masks.masks):
        ys, xs = mask.nonzero()
        assert (xs.min(), ys.min(), xs.max(), ys.max()) == (box[0], box[1], min(box[2], 79), min(box[3], 59))


def test_autocast_and_memory_format_reach_the_network():
    net = ResNet(depth=18)
    net.eval()
    workload = Workload(1, (64, 64), dtype=torch.bfloat16, channels_last=True)
    features = inference_call(workload.place(net), workload)()
    assert workload.precision == 'bf16' and features[0].dtype == torch.bfloat16
    assert features[0].is_contiguous(memory_format=torch.channels_last)
