"""Exported segmenters against mmseg's own predictions."""

import numpy as np
import pytest
import torch
from mmseg.structures import SegDataSample
from test_deploy_models import small_model
from torch import nn

from mmkerneldna.deploy.end2end import EndToEnd, export_whole
from mmkerneldna.deploy.end2end.export import generated_images
from mmkerneldna.deploy.export_error import ExportError
from mmkerneldna.deploy.file_meta import read_meta
from mmkerneldna.deploy.runners import FileRunner

SUFFIXES = dict(onnx='.onnx', openvino='.xml', pt2='.pt2')


def segmenter(name, **test_cfg):
    model = small_model(name)
    nn.init.normal_(model.decode_head.conv_seg.weight)
    if test_cfg:
        model.data_preprocessor.test_cfg = test_cfg
    return model


@torch.no_grad()
def maps(model, images):
    """Label maps as mmseg predicts them."""
    shape = images.shape[2:]
    samples = [SegDataSample(metainfo=dict(ori_shape=shape, img_shape=shape, pad_shape=shape)) for _ in images]
    found = model.test_step(dict(inputs=list(torch.from_numpy(images)), data_samples=samples))
    return np.stack([sample.pred_sem_seg.data[0].numpy() for sample in found])


@pytest.mark.parametrize(
    'name, file_format, dynamic, test_cfg',
    [
        ('upernet', 'onnx', 'both', {}),
        ('upernet', 'openvino', 'both', dict(size_divisor=32)),
        ('fcn', 'onnx', 'none', dict(size_divisor=32)),
        ('fcn', 'onnx', 'both', dict(size=(128, 128))),
        ('fcn', 'openvino', 'batch', {}),
    ],
)
def test_maps_are_those_of_mmseg(name, file_format, dynamic, test_cfg, tmp_path):
    model, path = segmenter(name, **test_cfg), tmp_path / f'net{SUFFIXES[file_format]}'
    meta, agreement = export_whole(model, EndToEnd(path, file_format, (72, 100), dynamic, 'x', ['a', 'b', 'c', 'd']))
    assert agreement.pixels > 0.999 and meta == read_meta(path)
    assert (meta.task, meta.outputs, meta.classes) == ('segmentation', ['labels_map'], ['a', 'b', 'c', 'd'])
    assert meta.size == (None if dynamic == 'both' else [72, 100]) and meta.batch == (1 if dynamic == 'none' else None)
    run = FileRunner(path)
    for size, count in [((72, 100), 1), ((72, 100), 3), ((90, 67), 2)][: dict(none=1, batch=2, both=3)[dynamic]]:
        images = np.stack(generated_images(size, count))
        expected = maps(model, images)
        assert len(np.unique(expected)) > 1
        assert (run(images)['labels_map'] == expected).mean() > 0.999


def test_a_file_that_disagrees_leaves_nothing(tmp_path, monkeypatch):
    model = segmenter('fcn')
    other = segmenter('fcn')
    nn.init.normal_(other.decode_head.conv_seg.weight)
    monkeypatch.setattr('mmkerneldna.deploy.end2end.export.lean_copy', lambda _, shared: other)
    with pytest.raises(ExportError, match='does not agree with torch, no file is left'):
        export_whole(model, EndToEnd(tmp_path / 'net.xml', 'openvino', (72, 100), 'none'))
    assert not list(tmp_path.iterdir())


def test_windows_are_refused(tmp_path):
    model = segmenter('fcn')
    model.test_cfg = dict(mode='slide', crop_size=(32, 32), stride=(16, 16))
    with pytest.raises(ExportError, match=r"test_cfg.mode='slide'.*--cfg-options model.test_cfg.mode=whole"):
        export_whole(model, EndToEnd(tmp_path / 'net.onnx', 'onnx'))
