"""Exported files against torch, and a package that runs without this one."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from mmkerneldna.deploy import lean_copy
from mmkerneldna.deploy.export import Exportable, check_file, export
from mmkerneldna.deploy.export_error import ExportError
from mmkerneldna.deploy.traceable import MatrixAdaptivePool
from mmkerneldna.sharing import share_kernels


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(3)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        y = self.conv2(self.conv1(x)) + x
        return y, self.pool(y)


@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    model = share_kernels(Net(), {'conv1': 'conv2'}).eval()
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(model.conv1.filter_scale, 0, 0.3)
    return lean_copy(model)


@pytest.mark.parametrize('dynamic, count', [('both', 4), ('batch', 2), ('none', 1)])
@pytest.mark.parametrize('file_format', ['onnx', 'openvino', 'torchscript'])
def test_files_agree_with_torch(net, tmp_path, file_format, dynamic, count):
    if file_format == 'onnx':
        pytest.importorskip('onnxruntime', reason='needs onnxruntime')
    suffix = {'onnx': '.onnx', 'openvino': '.xml', 'torchscript': '.ts'}[file_format]
    facts = export(net, tmp_path / f'net{suffix}', file_format, size=(64, 96), dynamic=dynamic)
    assert len(facts['checked']) == count and max(facts['checked'].values()) < 1e-4
    if file_format == 'onnx':
        import onnx

        assert facts['opset'] == onnx.load(str(tmp_path / 'net.onnx')).opset_import[0].version == 18
        assert facts['inputs'] == {
            'images': {'both': '(N, 3, H, W)', 'batch': '(N, 3, 64, 96)', 'none': '(1, 3, 64, 96)'}[dynamic]
        }


def test_package_runs_without_this_one(net, tmp_path):
    path, data = tmp_path / 'net.pt2', tmp_path / 'data.pt'
    export(net, path, 'pt2', size=(64, 64))
    images = torch.randn(3, 3, 96, 160)
    torch.save((images, list(net(images))), data)
    code = f"""
import sys
class Blocked:
    def find_spec(self, name, *args):
        if name.split('.')[0] in ('mmkerneldna', 'mmengine', 'mmcv', 'mmdet', 'mmseg'):
            raise ImportError(name + ' is blocked')
sys.meta_path.insert(0, Blocked())
import torch
images, expected = torch.load({str(data)!r})
outputs = torch._inductor.aoti_load_package({str(path)!r})(images)
for output, target in zip(outputs, expected, strict=True):
    torch.testing.assert_close(output, target, rtol=1e-4, atol=1e-5)
"""
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ))
    assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.parametrize('bins', [(1, 1), (2, 3), (6, 6)])
@pytest.mark.parametrize('size', [(6, 7), (5, 13), (3, 2)])
def test_matrix_pool_is_adaptive_pool(bins, size):
    x = torch.randn(2, 3, *size)
    torch.testing.assert_close(MatrixAdaptivePool(bins)(x), nn.AdaptiveAvgPool2d(bins)(x))


def test_a_wrong_file_is_an_error(net):
    part = Exportable(net, 'backbone')
    with pytest.raises(ExportError, match='deviates'):
        check_file(part, lambda images: [o * 1.01 for o in part(images)], [(1, 64, 64)])
    with pytest.raises(ExportError, match='returns'):
        check_file(part, lambda images: part(images)[:1], [(1, 64, 64)])


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(file_format='tflite'), "'tflite'"),
        (dict(file_format='onnx', scope='model'), "scope='model'"),
        (dict(file_format='onnx', dynamic='size'), "dynamic='size'"),
    ],
)
def test_impossible_exports(net, tmp_path, arguments, message):
    with pytest.raises(ExportError, match=message):
        export(net, tmp_path / 'net.onnx', **arguments)
