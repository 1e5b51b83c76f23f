"""Corrected biases of int8 files: means of layers against those of the float file, taken by the runtime on the whole file."""

import numpy as np
import onnx
import pytest
import torch
from tiny_files import CLASSES, TinySegmenter, arrays, write_file
from torch import nn
from torch.nn import functional as F

from mmkerneldna.deploy import quantise_onnx, quantise_openvino
from mmkerneldna.deploy.bias_correction import correct_biases
from mmkerneldna.deploy.onnx_values import Pieces, layer_outputs_onnx
from mmkerneldna.deploy.quantise import CHEAP, cheap_last_layers, quantise
from mmkerneldna.deploy.runners import FileRunner


class Heads(nn.Module):
    """A body, one head on two levels, and rows of numbers through matrix products: what detectors have."""

    outputs = ('labels_map',)

    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1)
        self.head = nn.Conv2d(16, len(CLASSES), 1)
        self.fc1, self.fc2 = nn.Linear(16, 8), nn.Linear(8, len(CLASSES))
        generator = torch.Generator().manual_seed(3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.4, generator=generator)

    def forward(self, images):
        fine = F.relu(self.body(F.relu(self.stem((images.float() - 127.5) / 64))))
        coarse = F.max_pool2d(fine, 2)
        rows = self.fc2(F.relu(self.fc1(fine.flatten(2).transpose(1, 2).flatten(0, 1)))).mean(0)
        logits = self.head(fine) + F.interpolate(self.head(coarse), scale_factor=2.0) + rows[:, None, None]
        return F.interpolate(logits, scale_factor=2.0).argmax(1)


BATCHES = [image[None] for image in arrays(12)]


def per_channel(values):
    return values.mean((0, 2, 3) if values.ndim == 4 else 0, dtype=np.float64)


def means(path, layers, batches=BATCHES):
    """Of each layer per channel, on the whole file."""
    outputs = [layer_outputs_onnx(path, layers, batch) for batch in batches]
    return {name: np.mean([per_channel(output[name]) for output in outputs], axis=0) for name in layers}


@pytest.fixture(scope='module', params=[TinySegmenter, Heads])
def pair(request, tmp_path_factory):
    """A float file, its int8 file before biases are corrected, and the names of its layers."""
    folder = tmp_path_factory.mktemp('biases')
    path, out = write_file(folder / 'float.onnx', request.param(), size=(16, 24), batch=1), folder / 'int8.onnx'
    selection = quantise_onnx.read_selection(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantise_onnx, 'correct_biases', lambda *args: None)
        last = cheap_last_layers(path, 'onnx', selection, BATCHES[0])
        quantise_onnx.quantise_onnx(path, out, BATCHES, selection.without(last))
    return path, out, selection.layers


def test_means_are_the_float_files(pair):
    path, out, layers = pair
    wanted, before = means(path, layers), means(out, layers)
    correct_biases(path, out, layers, BATCHES)
    after = means(out, layers)
    for name in layers:
        size = np.abs(wanted[name]).max()
        assert np.abs(after[name] - wanted[name]).max() < 2e-4 * size, name
    shifts = {name: np.abs(before[name] - wanted[name]).max() / np.abs(wanted[name]).max() for name in layers}
    assert sum(shift > 2e-3 for shift in shifts.values()) >= len(layers) / 2  # there was something to correct
    onnx.checker.check_model(onnx.load(str(out)))


def test_layers_that_share_a_bias_get_one_each(pair):
    _, out, layers = pair
    shared = [name for name in layers if '/head' in name]
    model = onnx.load(str(out))
    biases = [node.input[2] for node in model.graph.node if node.name in shared]
    assert len(set(biases)) == len(biases) == len(shared)
    kernels = [tensor for tensor in model.graph.initializer if list(tensor.dims) == [len(CLASSES), 16, 1, 1]]
    assert len(kernels) <= 2  # the kernel stays one: in int8, and in float where one of them is float


def test_pieces_are_the_whole(tmp_path):
    path = write_file(tmp_path / 'float.onnx', Heads(), size=(16, 24), batch=1)
    model, layers = onnx.load(str(path)), quantise_onnx.read_selection(path).layers
    names = {node.name: node.output[0] for node in model.graph.node}
    wanted, pieces = [layer_outputs_onnx(path, layers, batch) for batch in BATCHES[:3]], Pieces(model, BATCHES[:3])
    for layer in layers:
        for found, outputs in zip(pieces.run(names[layer]), wanted, strict=True):
            np.testing.assert_allclose(found, outputs[layer], rtol=1e-5, atol=1e-5)
    # what no later node takes is gone: left are the layer's own output and what the sum of the logits waits for
    assert all(len(values) <= 4 for values in pieces.values)


@pytest.mark.parametrize('kind', ['onnx', 'openvino'])
def test_last_layers_are_kept_float_by_their_cost(tmp_path, kind):
    if kind == 'openvino':
        pytest.importorskip('openvino')
    path = write_file(tmp_path / dict(onnx='float.onnx', openvino='float.xml')[kind], Heads(), size=(16, 24), batch=1)
    selection = dict(onnx=quantise_onnx, openvino=quantise_openvino)[kind].read_selection(path)
    # onnxruntime has a ReLU behind a product as a part of it, OpenVINO's product hands on float numbers
    assert sorted(name.split('/')[1] for name in selection.last) == ['fc1'] * (kind == 'openvino') + ['fc2', 'head', 'head_1']
    fine, coarse = 8 * 12, 4 * 6
    costs = dict(
        stem=fine * 16 * 27, body=fine * 16 * 144, fc1=fine * 16 * 8, fc2=fine * 24, head=fine * 48, head_1=coarse * 48
    )
    share = {name: cost / sum(costs.values()) for name, cost in costs.items()}
    assert share['head_1'] + share['fc2'] < CHEAP < share['head_1'] + share['fc2'] + share['head']
    last = cheap_last_layers(path, kind, selection, BATCHES[0])
    assert [name.split('/')[1] for name in last] == ['head_1', 'fc2']


class WideHead(nn.Module):
    """One output of the last layer is a hundred times as large as those that decide: sizes of boxes beside shifts."""

    outputs = ('labels_map',)

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.body, self.head = nn.Conv2d(3, 64, 3, 2, 1), nn.Conv2d(64, len(CLASSES) + 1, 1)
        self.deep = nn.Conv2d(64, 64, 3, 1, 1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.1, generator=generator)
        with torch.no_grad():
            self.head.weight[-1] *= 100

    def forward(self, images):
        logits = self.head(F.relu(self.deep(F.relu(self.body((images.float() - 127.5) / 64)))))
        return F.interpolate(logits[:, : len(CLASSES)], scale_factor=2.0).argmax(1)


def agreement(path, out, count=8):
    images = arrays(count, seed=5)
    return np.mean([FileRunner(path)(i[None])['labels_map'] == FileRunner(out)(i[None])['labels_map'] for i in images])


def test_small_outputs_beside_large_ones(tmp_path, monkeypatch):
    path = write_file(tmp_path / 'float.onnx', WideHead(), size=(16, 24), batch=1)
    report = quantise(path, tmp_path / 'int8.onnx', arrays(12))
    assert report.last_float == ['/head/Conv'] and report.layers == 2
    assert 'small ones whose outputs are results: 1' in str(report)
    monkeypatch.setattr('mmkerneldna.deploy.quantise.CHEAP', 0.0)
    quantise(path, tmp_path / 'all.onnx', arrays(12))
    assert agreement(path, tmp_path / 'int8.onnx') > 0.97 > 0.8 > agreement(path, tmp_path / 'all.onnx')


def test_ranges_are_the_mean_of_the_images(tmp_path):
    """One bright image does not make everybody's steps coarse: the scale behind a layer against its outputs, image by image."""
    path, out = write_file(tmp_path / 'float.onnx', WideHead(), size=(16, 24), batch=1), tmp_path / 'int8.onnx'
    images = [(image // 8).astype(np.uint8) for image in arrays(11)] + arrays(1, seed=9)
    quantise(path, out, images)
    outputs = [layer_outputs_onnx(path, ['/body/Conv'], image[None])['/body/Conv'] for image in images]
    model = onnx.load(str(out))
    body = next(node for node in model.graph.node if node.name == '/body/Conv')
    reader = next(node for node in model.graph.node if node.op_type == 'QuantizeLinear' and node.input[0] == body.output[0])
    scale = next(onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == reader.input[1])
    assert scale == pytest.approx(np.mean([output.max() for output in outputs]) / 255, rel=1e-3)


class Proposals(nn.Module):
    """Rows of the bright positions only go through a product: none in a dark image."""

    outputs = ('labels_map',)

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.fc = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 8)

    def forward(self, images):
        x = F.relu(self.body((images.float() - 127.5) / 64))
        rows = x.flatten(2)[0].t()[images[0, 0, ::2, ::2].float().flatten() > 100]
        return F.interpolate(x + self.fc(rows).sum(0)[None, :, None, None], scale_factor=2.0).argmax(1)


def test_images_without_boxes(tmp_path):
    path, out = write_file(tmp_path / 'float.onnx', Proposals(), size=(16, 24), batch=1), tmp_path / 'int8.onnx'
    images = [*arrays(11), np.zeros((3, 16, 24), np.uint8)]
    assert not layer_outputs_onnx(path, ['/fc/Gemm'], images[-1][None])['/fc/Gemm'].size
    assert quantise(path, out, images).layers == 2
    scales = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(str(out)).graph.initializer]
    assert all(np.isfinite(scale).all() for scale in scales)
    found, wanted = (means(file, ['/fc/Gemm'], [image[None] for image in images[:11]])['/fc/Gemm'] for file in (out, path))
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    assert agreement(path, out) > 0.9
