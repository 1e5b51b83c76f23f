"""Top-k, NMS and RoIAlign of exported graphs, as ONNX nodes and in plain torch, against mmcv's."""

import io

import mmcv.ops
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder, DistancePointBBoxCoder
from torch import nn

from mmkerneldna.deploy.end2end.boxes import check_coder, decode
from mmkerneldna.deploy.end2end.operators import OnnxOperators, register_symbolics
from mmkerneldna.deploy.end2end.plain import PlainOperators
from mmkerneldna.deploy.export_error import ExportError
from mmkerneldna.deploy.writers import OPSET

OPERATORS = [OnnxOperators, PlainOperators]


@pytest.fixture
def python_loops(monkeypatch):
    """``torch.while_loop`` outside of a compiler compiles first, for half a minute; tests/test_deploy/test_end2end_pt2.py has
    the compiled ones."""

    def loop(goes_on, turn, state):
        while goes_on(*state):
            state = turn(*state)
        return state

    monkeypatch.setattr(torch, 'while_loop', loop)


def random_boxes(count, extent, generator):
    centres, sizes = torch.rand(count, 2, generator=generator) * extent, torch.rand(count, 2, generator=generator) * extent / 2
    return torch.cat([centres - sizes / 2, centres + sizes / 2], 1)


@pytest.mark.parametrize('operators', OPERATORS)
@pytest.mark.parametrize('limit', [3, 100])
def test_nms_is_that_of_mmcv(operators, limit, python_loops):
    generator = torch.Generator().manual_seed(limit)
    boxes = torch.stack([random_boxes(60, 100, generator) for _ in range(3)])
    scores = torch.rand(3, 60, generator=generator)
    scores[scores < 0.2] = 0  # no candidates
    scores[2] = 0
    kept = operators.keep(boxes, scores, 0.4, limit)
    for group in range(3):
        there = (scores[group] > 0).nonzero().squeeze(1)
        expected = there[mmcv.ops.nms(boxes[group][there], scores[group][there], 0.4)[1]][:limit] if len(there) else there
        assert kept[group].nonzero().squeeze(1).tolist() == sorted(expected.tolist())
    assert (limit < 60) == (int(kept[0].sum()) == 3)


@pytest.mark.parametrize('operators', OPERATORS)
def test_top_of_rows_longer_and_shorter_than_what_is_asked(operators):
    values = torch.rand(2, 7, generator=torch.Generator().manual_seed(0))
    for count in (4, 7, 9):
        best, places = operators.top(values, count)
        expected = values.sort(1, descending=True)[0][:, :count]
        length = expected.shape[1]
        torch.testing.assert_close(best[:, :length], expected)
        torch.testing.assert_close(values.gather(1, places[:, :length]), expected)
        assert not best[:, length:].any() and not places[:, length:].any()


@pytest.mark.parametrize('operators', OPERATORS)
@pytest.mark.parametrize('ratio, aligned', [(0, True), (2, True), (0, False)])
def test_roi_align_is_that_of_mmcv(operators, ratio, aligned, python_loops):
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(2, 5, 64 // 2**i, 48 // 2**i, generator=generator) for i in range(3)]
    boxes = random_boxes(40, 256, generator)
    boxes[0] = 0  # an empty place
    boxes[1] = torch.tensor([-60.0, -50.0, 400.0, 300.0])  # far over the border
    images, levels = torch.randint(2, (40,), generator=generator), torch.randint(3, (40,), generator=generator)
    layers = [mmcv.ops.RoIAlign((3, 4), 1 / 4 / 2**i, ratio, aligned=aligned) for i in range(3)]
    rows, order = operators.roi_align(maps, levels, images, boxes, layers)
    assert sorted(order.tolist()) == list(range(40))
    for row, region in zip(rows, order.tolist()):
        roi = torch.cat([images[region, None].float(), boxes[region]])[None]
        torch.testing.assert_close(row, layers[levels[region]](maps[levels[region]], roi)[0], rtol=1e-4, atol=1e-4)


class AllThree(nn.Module):
    """The three operators in one graph."""

    layers = [mmcv.ops.RoIAlign(7, 1 / 4, 0, aligned=True), mmcv.ops.RoIAlign(7, 1 / 8, 0, aligned=True)]

    def forward(self, fine, coarse, boxes, scores, levels):
        best, places = OnnxOperators.top(scores, 50)
        kept = OnnxOperators.keep(boxes, scores, 0.5, 20)
        rows, order = OnnxOperators.roi_align([fine, coarse], levels, torch.zeros_like(levels), boxes[0], self.layers)
        return best, places, kept.float(), rows, order


def test_onnx_nodes_compute_the_same():
    onnxruntime = pytest.importorskip('onnxruntime', reason='needs onnxruntime')
    generator = torch.Generator().manual_seed(2)
    inputs = [torch.randn(1, 4, 32, 32, generator=generator), torch.randn(1, 4, 16, 16, generator=generator)]
    inputs += [random_boxes(30, 128, generator)[None], torch.rand(1, 30, generator=generator)]
    inputs += [torch.randint(2, (30,), generator=generator)]
    register_symbolics(OPSET)
    names = ['fine', 'coarse', 'boxes', 'scores', 'levels']
    file = io.BytesIO()
    axes = dict(boxes={1: 'n'}, scores={1: 'n'}, levels={0: 'n'})
    torch.onnx.export(AllThree(), tuple(inputs), file, opset_version=OPSET, dynamo=False, input_names=names, dynamic_axes=axes)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=['CPUExecutionProvider'])
    for count in (30, 12):
        some = inputs[:2] + [inputs[2][:, :count], inputs[3][:, :count], inputs[4][:count]]
        outputs = session.run(None, {name: value.numpy() for name, value in zip(names, some)})
        for output, expected in zip(outputs, AllThree()(*some)):
            np.testing.assert_allclose(output, expected.numpy(), rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.booleans(), st.booleans())
def test_boxes_are_those_of_mmdets_coders(seed, clip, distances):
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.randn(2, 9, 4, generator=generator) * 3
    if distances:
        coder, priors = DistancePointBBoxCoder(clip_border=clip), torch.rand(2, 9, 2, generator=generator) * 50
    else:
        coder = DeltaXYWHBBoxCoder([0.1, 0.0, 0.2, 0.0], [0.1, 0.2, 0.3, 0.4], clip_border=clip)
        priors = torch.stack([random_boxes(9, 50, generator) for _ in range(2)])
    found = decode(coder, priors, predicted, (40, 30))
    for image in range(2):
        torch.testing.assert_close(found[image], coder.decode(priors[image], predicted[image], max_shape=(40, 30)))


def test_other_coders_are_refused():
    with pytest.raises(ExportError, match=r'bbox_head.bbox_coder is a DeltaXYWHBBoxCoder: only .*without add_ctr_clamp'):
        check_coder(DeltaXYWHBBoxCoder(add_ctr_clamp=True), 'bbox_head')
