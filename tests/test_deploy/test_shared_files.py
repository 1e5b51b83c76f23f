"""Files of nets whose children keep their parent's kernel: it is in them once, and they compute the same.

Of pt2, whose compiler takes its time, see test_end2end_pt2.py.
"""

import pytest
import torch
from helpers import assert_same, times_in
from test_shared import half_resnet18, whole
from tiny_files import arrays
from torch import nn

from mmkerneldna.deploy import deploy, lean_copy
from mmkerneldna.deploy.end2end import EndToEnd, export_whole
from mmkerneldna.deploy.export import export
from mmkerneldna.deploy.quantise import quantise


def unique_bytes(model):
    return sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize(
    'file_format, suffix, weights', [('onnx', '.onnx', '.onnx'), ('openvino', '.xml', '.bin'), ('torchscript', '.ts', '.ts')]
)
def test_exported_files_hold_a_kernel_once(tmp_path, file_format, suffix, weights):
    if file_format != 'torchscript':
        pytest.importorskip(file_format)
    lean, path = lean_copy(half_resnet18(), shared=True), tmp_path / f'net{suffix}'
    assert unique_bytes(lean) < 0.55 * unique_bytes(lean_copy(half_resnet18()))
    export(lean, path, file_format, size=(32, 64), dynamic='none')  # compares it with torch
    assert path.with_suffix(weights).stat().st_size == pytest.approx(unique_bytes(lean), rel=0.1)
    if file_format == 'onnx':
        onnx = pytest.importorskip('onnx')
        kernels = [entry for entry in onnx.load(str(path)).graph.initializer if list(entry.dims) == [64, 64, 3, 3]]
        assert len(kernels) == 1


def test_a_whole_segmenter_in_a_file(tmp_path):
    pytest.importorskip('onnxruntime')
    model, path = whole('fcn'), tmp_path / 'net.onnx'
    export_whole(model, EndToEnd(path, 'onnx', (32, 48), 'none', shared=True))  # compares it with torch
    del model.auxiliary_head  # not in the file
    assert path.stat().st_size == pytest.approx(unique_bytes(model), rel=0.1)


@pytest.mark.parametrize('file_format, suffix', [('onnx', '.onnx'), ('openvino', '.xml')])
def test_int8_files_hold_a_kernel_once(tmp_path, file_format, suffix):
    """Scales of an int8 kernel are per filter, as a child's factors are: it stays the parent's."""
    if file_format == 'openvino':
        pytest.importorskip('nncf')
    onnx, float_file, out = pytest.importorskip('onnx'), tmp_path / f'net{suffix}', tmp_path / f'int8{suffix}'
    model = whole('fcn')
    export_whole(model, EndToEnd(float_file, file_format, (32, 48), 'none', shared=True))
    assert quantise(float_file, out, arrays(10, (32, 48))).layers > 25
    del model.auxiliary_head
    if file_format == 'openvino':  # weights lie in a file of their own
        assert out.with_suffix('.bin').stat().st_size < 0.3 * unique_bytes(model)
        return
    tensors = onnx.load(str(out)).graph.initializer
    assert sum(len(tensor.raw_data) for tensor in tensors) < 0.35 * unique_bytes(model)
    kernels = [tensor for tensor in tensors if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4]
    shared = {id(m.weight) for m in model.modules() if isinstance(m, nn.Conv2d)}
    assert len(kernels) <= len(shared)


@pytest.mark.parametrize('shared', [False, True])
@torch.no_grad()
def test_a_trace_of_a_deployed_net(tmp_path, shared):
    """What deploy() returns, packed and fused, traced by the user."""
    net, x, path = half_resnet18(), torch.randn(2, 3, 64, 96), tmp_path / 'net.ts'
    deployed = deploy(net, shared=shared)
    torch.jit.trace(deployed, x).save(str(path))
    assert_same(torch.jit.load(str(path))(x), net(x))
    for stage in (deployed.layer3, deployed.layer4):
        assert times_in(path, stage[1].conv2.weight) == 1
        for child in (stage[0].conv2, stage[1].conv1):
            conv = child.conv.conv if shared else child.conv
            assert (conv.weight is stage[1].conv2.weight) == shared and times_in(path, conv.weight) == 1
