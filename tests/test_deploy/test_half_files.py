"""ONNX files with kernels in fp16: half the bytes, and what a net with rounded kernels computes."""

import numpy as np
import pytest
import torch
from test_shared import whole
from tiny_files import TinySegmenter, arrays, write_file

from mmkerneldna.deploy.end2end import EndToEnd, export_whole
from mmkerneldna.deploy.export_error import ExportError
from mmkerneldna.deploy.file_meta import read_meta
from mmkerneldna.deploy.half import write_half
from mmkerneldna.deploy.runners import FileRunner


@pytest.fixture
def onnx():
    pytest.importorskip('onnxruntime')
    return pytest.importorskip('onnx')


@torch.no_grad()
def test_kernels_are_rounded_and_nothing_else(onnx, tmp_path):
    net, images = TinySegmenter(64), np.stack(arrays(4, seed=5))
    path, half = write_file(tmp_path / 'net.onnx', net), tmp_path / 'half.onnx'
    write_half(path, half, 'fp16')
    assert half.stat().st_size < 0.55 * path.stat().st_size
    meta = read_meta(half)
    assert (meta.dtype, meta.classes, meta.outputs) == ('fp16', read_meta(path).classes, ['labels_map'])
    onnx.checker.check_model(onnx.load(str(half)))
    for parameter in net.parameters():
        if parameter.dim() == 4:
            parameter.copy_(parameter.half())
    expected = net(torch.from_numpy(images)).numpy()
    assert (FileRunner(half)(images)['labels_map'] == expected).mean() > 0.9999


def test_a_whole_segmenter_with_shared_kernels(onnx, tmp_path):
    sizes = {}
    for dtype in ('fp32', 'fp16'):
        path = tmp_path / f'{dtype}.onnx'
        meta, agreement = export_whole(whole('fcn'), EndToEnd(path, 'onnx', (32, 48), 'none', dtype=dtype, shared=True))
        assert meta.dtype == dtype and agreement.pixels > 0.99
        sizes[dtype] = path.stat().st_size
    assert sizes['fp16'] < 0.6 * sizes['fp32']


def test_what_fp16_can_not_hold(onnx, tmp_path):
    net = TinySegmenter()
    torch.nn.init.constant_(net.body.weight, 1e5)
    with pytest.raises(ExportError, match=r'body\.weight has a weight of 1e\+05, too large for fp16'):
        write_half(write_file(tmp_path / 'net.onnx', net), tmp_path / 'half.onnx', 'fp16')
    with pytest.raises(ExportError, match="dtype='bf16' of a file for onnx"):
        write_half(tmp_path / 'net.onnx', tmp_path / 'half.onnx', 'bf16')
    assert not (tmp_path / 'half.onnx').exists()
