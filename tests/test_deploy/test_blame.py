"""An operator that a format lacks is named with its layer."""

import pytest
import torch
from torch import nn

from mmkerneldna.deploy.blame import layer_that_calls
from mmkerneldna.deploy.export import export
from mmkerneldna.deploy.export_error import ExportError


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.i0(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.blocks = nn.Sequential(nn.ReLU(), Bessel())

    def forward(self, x):
        return self.blocks(self.stem(x)).relu()


@pytest.mark.parametrize('file_format, suffix', [('onnx', '.onnx'), ('openvino', '.xml')])
def test_the_message_has_operator_and_layer(file_format, suffix, tmp_path):
    with pytest.raises(ExportError, match=rf"{file_format} has no operator 'aten::i0', which model.blocks.1 \(Bessel\)"):
        export(Net().eval(), tmp_path / f'net{suffix}', file_format, size=(32, 32), dynamic='none')
    assert not list(tmp_path.iterdir())


def test_layers_are_found_by_functions_and_kernels():
    net, example = Net().eval(), torch.zeros(1, 3, 8, 8)
    assert layer_that_calls(net, example, 'aten::convolution') == 'stem'
    assert layer_that_calls(net, example, 'aten::relu') == 'blocks.0'
    assert layer_that_calls(net, example, 'aten::grid_sampler') is None
