"""An exported file as a model: coordinates, sizes and batches, against mm's own post-processing and plain loops."""

import pytest
import torch
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmseg.structures import SegDataSample
from tiny_files import FAST, ChannelsAsLabels, TinyDetector, TinyInstances, TinySegmenter, pictures, write_file
from torch import nn
from torch.nn import functional as F

from mmkerneldna.anatomy import task_of
from mmkerneldna.deploy.exported_model import ExportedModel, file_megabytes
from mmkerneldna.deploy.exported_results import paste_masks, resize_label_map
from mmkerneldna.deploy.file_meta import FileError


def samples(kind, images, scale=1.0):
    """As a pipeline packs them for images that were resized by ``scale``."""
    found = []
    for image in images:
        shape = tuple(image.shape[1:])
        original = tuple(round(side / scale) for side in shape)
        found.append(kind(metainfo=dict(ori_shape=original, img_shape=shape, scale_factor=(scale, scale))))
    return found


def predict(model, kind, images, scale=1.0):
    return model.test_step(dict(inputs=images, data_samples=samples(kind, images, scale)))


@pytest.mark.parametrize('suffix', FAST)
def test_label_maps_of_images_of_several_sizes(suffix, tmp_path):
    """Images of one size go in together; each result belongs to its own image."""
    model = ExportedModel(str(write_file(tmp_path / f'seg{suffix}', ChannelsAsLabels())))
    assert task_of(model) == 'segmentation'
    images = [*pictures(2, (16, 24)), *pictures(1, (10, 12), seed=1), *pictures(1, (16, 24), seed=2)]
    for image, sample in zip(images, predict(model, SegDataSample, images)):
        assert torch.equal(sample.pred_sem_seg.data[0], image.argmax(0))


@pytest.mark.parametrize('suffix', FAST)
def test_a_net_agrees_with_torch(suffix, tmp_path):
    net = TinySegmenter().eval()
    model = ExportedModel(str(write_file(tmp_path / f'seg{suffix}', net)))
    images = pictures(3)
    expected = net(torch.stack(images))
    for sample, labels in zip(predict(model, SegDataSample, images), expected):
        assert (sample.pred_sem_seg.data[0] == labels).float().mean() > 0.99


def test_floats_are_rounded(tmp_path):
    model = ExportedModel(str(write_file(tmp_path / 'seg.onnx', ChannelsAsLabels())))
    (image,) = pictures(1)
    (sample,) = predict(model, SegDataSample, [image.float() + 0.3])
    assert torch.equal(sample.pred_sem_seg.data[0], image.argmax(0))


@pytest.mark.parametrize('count', [1, 2, 5])
def test_a_fixed_batch_is_filled_up(count, tmp_path):
    model = ExportedModel(str(write_file(tmp_path / 'seg.onnx', ChannelsAsLabels(), size=(16, 24), batch=2)))
    images = pictures(count)
    for image, sample in zip(images, predict(model, SegDataSample, images)):
        assert torch.equal(sample.pred_sem_seg.data[0], image.argmax(0))


def test_another_size_than_the_file_was_made_for(tmp_path):
    model = ExportedModel(str(write_file(tmp_path / 'seg.onnx', ChannelsAsLabels(), size=(16, 24))))
    with pytest.raises(FileError, match=r'this file takes \(N, 3, 16, 24\) uint8'):
        predict(model, SegDataSample, pictures(1, (16, 32)))


def test_raw_outputs_and_training_are_refused(tmp_path):
    with pytest.raises(FileError, match='raw outputs of a part of a model: export the whole model by --end2end'):
        ExportedModel(str(write_file(tmp_path / 'raw.onnx', ChannelsAsLabels(), 'raw')))
    model = ExportedModel(str(write_file(tmp_path / 'seg.onnx', ChannelsAsLabels())))
    with pytest.raises(FileError, match="can only predict .* not 'loss'"):
        model(pictures(1), samples(SegDataSample, pictures(1)), mode='loss')


@pytest.mark.parametrize('scale', [1.0, 0.5])
def test_boxes_in_the_original_image(scale, tmp_path):
    model = ExportedModel(str(write_file(tmp_path / 'det.onnx', TinyDetector(), 'detection')))
    assert task_of(model) == 'detection'
    images = pictures(2)
    for image, sample in zip(images, predict(model, DetDataSample, images, scale)):
        found = sample.pred_instances
        assert found.labels.tolist() == [2, 0]  # the empty place is gone
        height, width = (side / scale for side in image.shape[1:])
        assert torch.allclose(found.bboxes, torch.tensor([[0, 0, width / 2, height / 2], [0, 0, width, height]]))
        assert torch.allclose(found.scores, image[0].float().mean() / 255 * torch.tensor([1.0, 0.5]), atol=1e-5)


def test_an_uneven_scale(tmp_path):
    """mmdet's scale factor is (w, h)."""
    model = ExportedModel(str(write_file(tmp_path / 'det.onnx', TinyDetector(), 'detection')))
    (image,) = pictures(1, (16, 24))
    sample = DetDataSample(metainfo=dict(ori_shape=(8, 48), img_shape=(16, 24), scale_factor=(0.5, 2.0)))
    (sample,) = model.test_step(dict(inputs=[image], data_samples=[sample]))
    assert sample.pred_instances.bboxes[1].tolist() == [0, 0, 48, 8]


@pytest.mark.parametrize('threshold', [None, 0.2])
def test_masks_are_pasted(threshold, tmp_path):
    path = write_file(tmp_path / 'ins.onnx', TinyInstances(), 'instance', mask_threshold=threshold)
    (sample,) = predict(ExportedModel(str(path)), DetDataSample, pictures(1, (16, 24)), scale=0.5)
    masks = sample.pred_instances.masks
    assert masks.shape == (2, 32, 48) and masks.dtype == torch.bool
    inside = masks[1, 4:-4]  # towards the edge of a box its mask fades
    assert inside[:, 4:20].all() and not inside[:, 44:].any()
    assert inside[:, 30].all() == (threshold == 0.2)


def test_masks_as_mmdet_pastes_them():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 1, 28, 28, generator=generator)
    corner = torch.rand(5, 2, generator=generator) * 40
    boxes = torch.cat([corner, corner + 5 + torch.rand(5, 2, generator=generator) * 50], 1)
    head = FCNMaskHead(num_convs=0, in_channels=1, num_classes=1, class_agnostic=True)
    meta = dict(ori_shape=(60, 70), scale_factor=(1.0, 1.0))
    config = ConfigDict(mask_thr_binary=0.5)
    expected = head._predict_by_feat_single(logits, boxes.clone(), torch.zeros(5).long(), meta, config, rescale=True)
    assert torch.equal(paste_masks(logits[:, 0].sigmoid(), boxes, (30, 35), (60, 70)), expected)


def test_masks_of_whole_images_are_resized():
    masks = torch.zeros(2, 6, 8)
    masks[0, :, :4] = 1
    pasted = paste_masks(masks, torch.zeros(2, 4), (6, 8), (12, 16))
    assert pasted[0, :, :8].all() and not pasted[0, :, 8:].any() and not pasted[1].any()
    assert paste_masks(masks[:0], torch.zeros(0, 4), (6, 8), (12, 16)).shape == (0, 12, 16)


@pytest.mark.parametrize('size', [(30, 41), (5, 7)])
def test_label_maps_are_resized_by_area(size):
    labels = torch.randint(0, 6, (12, 17), generator=torch.Generator().manual_seed(0))
    labels = torch.where(labels == 5, 255, labels)
    planes = F.one_hot(labels, 256).permute(2, 0, 1)[None].float()
    shares = F.interpolate(planes, size, mode='bilinear', align_corners=False)[0]
    resized = resize_label_map(labels, size)
    assert torch.equal(shares.gather(0, resized[None])[0], shares.max(0).values)
    assert torch.equal(resize_label_map(labels, (12, 17)), labels)


def test_size_of_a_file_with_its_weights(tmp_path):
    path = write_file(tmp_path / 'seg.xml', TinySegmenter())
    beside = path.with_suffix('.bin')
    assert file_megabytes(path) == (path.stat().st_size + beside.stat().st_size) / 1e6
    onnx = path.with_suffix('.onnx')
    assert file_megabytes(onnx) == onnx.stat().st_size / 1e6


def test_what_the_original_costs(tmp_path):
    """Parameters and GMACs are those of the model that was exported: a backbone of one 1x1 convolution, a head of another."""
    path = str(write_file(tmp_path / 'seg.onnx', TinySegmenter()))
    assert ExportedModel(path).complexity_row((16, 24)) == {}
    head = dict(type='FCNHead', in_channels=64, channels=4, num_convs=0, concat_input=False, num_classes=3, in_index=0)
    backbone = dict(type='ResNet', depth=18, num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,))
    original = dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor'),
        backbone=backbone,
        decode_head=dict(head, channels=64),
        test_cfg=dict(mode='whole'),
    )
    row = ExportedModel(path, original=original, scope='mmseg').complexity_row((32, 32))
    stage = 64 * 64 * 9 * 4 + 8 * 64
    assert round(row['unique_params_m'] * 1e6) == 64 * 3 * 49 + 128 + stage + 64 * 3 + 3
    pixels = 8 * 8
    assert round(row['gmacs'] * 1e9) == 4 * pixels * 64 * 3 * 49 + pixels * (64 * 64 * 9 * 4 + 64 * 3)


def test_a_model_without_parameters_is_one(tmp_path):
    model = ExportedModel(str(write_file(tmp_path / 'seg.onnx', ChannelsAsLabels())))
    assert isinstance(model, nn.Module) and not list(model.parameters())
