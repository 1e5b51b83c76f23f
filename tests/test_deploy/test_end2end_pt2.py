"""The loops of plain torch, compiled ahead of time: a pt2 package without operators of mmcv or of this package."""

import mmcv.ops
import torch
from test_end2end_operators import random_boxes
from torch import nn

from mmkerneldna.deploy.end2end.plain import PlainOperators
from mmkerneldna.torch_internals import read_aot_package, write_aot_package


class Loops(nn.Module):
    """NMS, then RoIAlign of all boxes on two levels."""

    def __init__(self):
        super().__init__()
        self.layers = [mmcv.ops.RoIAlign(3, 1 / 4, 0, aligned=True), mmcv.ops.RoIAlign(3, 1 / 8, 0, aligned=True)]

    def forward(self, fine, coarse, boxes, scores, levels):
        kept = PlainOperators.keep(boxes, scores, 0.5, 10)
        images = torch.zeros_like(levels)
        return kept, PlainOperators.roi_align([fine, coarse], levels, images, boxes[0], self.layers)[0]


def test_compiled_loops_are_mmcvs_operators(tmp_path):
    generator = torch.Generator().manual_seed(0)

    def inputs():
        maps = torch.randn(1, 4, 32, 32, generator=generator), torch.randn(1, 4, 16, 16, generator=generator)
        levels = torch.randint(2, (20,), generator=generator)
        return *maps, random_boxes(20, 128, generator)[None], torch.rand(1, 20, generator=generator), levels

    net = Loops().eval()
    write_aot_package(torch.export.export(net, inputs(), strict=False), str(tmp_path / 'net.pt2'))
    run = read_aot_package(str(tmp_path / 'net.pt2'))
    for _ in range(2):
        fine, coarse, boxes, scores, levels = values = inputs()
        kept, rows = run(*values)
        expected = mmcv.ops.nms(boxes[0], scores[0], 0.5)[1][:10]
        assert kept[0].nonzero().squeeze(1).tolist() == sorted(expected.tolist())
        for region, row in enumerate(rows):
            level = int(levels[region])
            roi = torch.cat([torch.zeros(1), boxes[0, region]])[None]
            torch.testing.assert_close(row, net.layers[level]((fine, coarse)[level], roi)[0], rtol=1e-4, atol=1e-4)
