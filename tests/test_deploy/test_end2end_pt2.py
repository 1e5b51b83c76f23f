"""A pt2 package without operators of mmcv or of this package: its loops, as a model, and by the example that runs such files.

Compiling takes half a minute even for a small net, so one package in one test (workers don't share fixtures) serves all of it.
"""

import subprocess
import sys
from pathlib import Path

import mmcv.ops
import pytest
import torch
import torch.nn.functional as F
from helpers import times_in
from mmdet.structures import DetDataSample
from PIL import Image
from tiny_files import CLASSES
from torch import nn

from mmkerneldna.deploy.end2end.plain import PlainOperators
from mmkerneldna.deploy.exported_model import ExportedModel
from mmkerneldna.deploy.file_meta import FileError, FileMeta, write_meta
from mmkerneldna.deploy.scaled_conv import ScaledConv2d
from mmkerneldna.torch_internals import write_aot_package

REGIONS, KEPT, SIDE = 20, 10, 64


class LoopDetector(nn.Module):
    """Boxes read off the pixels; NMS says which are there, RoIAlign on one of two levels gives their scores.

    The levels' convolutions have one kernel, as deploy(shared=True) leaves them.
    """

    def __init__(self):
        super().__init__()
        self.fine = nn.Conv2d(3, 3, 3, padding=1, bias=False).requires_grad_(False)
        self.fine.weight.copy_(torch.rand(3, 3, 3, 3, generator=torch.Generator().manual_seed(0)) / 27)
        self.coarse = ScaledConv2d(self.fine)
        self.coarse.scale.mul_(0.9)
        self.layers = [mmcv.ops.RoIAlign(3, 1 / 4, 0, aligned=True), mmcv.ops.RoIAlign(3, 1 / 8, 0, aligned=True)]

    def parts(self, images):
        """What the loops work on: boxes (R, 4), their ranking (R,), their levels (R,), and the levels' maps."""
        pixels = images[0].float().flatten(1) / 255
        x, y, side = (pixels[channel, :REGIONS] * extent for channel, extent in enumerate((40.0, 40.0, 16.0)))
        boxes = torch.stack([x, y, x + side + 8, y + side + 8], 1)
        ranking = pixels[0, 500 : 500 + REGIONS] + 1e-4 * (1 + torch.arange(REGIONS))  # no two alike
        levels = (pixels[1, 500 : 500 + REGIONS] > 0.5).long()
        maps = [conv(F.avg_pool2d(images.float(), size)) for conv, size in ((self.fine, 4), (self.coarse, 8))]
        return boxes, ranking, levels, maps

    def forward(self, images):
        boxes, ranking, levels, maps = self.parts(images)
        kept = PlainOperators.keep(boxes[None], ranking[None], 0.3, KEPT)[0]
        rows = PlainOperators.roi_align(maps, levels, torch.zeros_like(levels), boxes, self.layers)[0]
        dets = torch.cat([boxes, rows.mean((1, 2, 3))[:, None] / 255], 1)
        return dets[None], torch.where(kept, levels, -1)[None]

    def by_mmcv(self, image):
        """The same detections by mmcv's operators."""
        boxes, ranking, levels, maps = self.parts(image[None])
        kept = mmcv.ops.nms(boxes, ranking, 0.3)[1][:KEPT].sort().values
        rows = [self.layers[levels[k]](maps[levels[k]], torch.cat([torch.zeros(1), boxes[k]])[None]) for k in kept]
        return boxes[kept], torch.cat(rows).mean((1, 2, 3)) / 255, levels[kept]


def test_a_package_finds_what_mmcvs_operators_find(tmp_path):
    package = write_package(tmp_path / 'net.pt2')
    assert times_in(package, LoopDetector().fine.weight) == 1
    check_model(package)
    check_example(package, tmp_path)


def write_package(path):
    example = torch.randint(255, (1, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_aot_package(torch.export.export(LoopDetector().eval(), (example,), strict=False), str(path))
    write_meta(path, FileMeta('detection', classes=CLASSES, size=[SIDE, SIDE], batch=1, outputs=['dets', 'labels']))
    return path


def predict(model, images):
    shape = tuple(images[0].shape[1:])
    samples = [DetDataSample(metainfo=dict(ori_shape=shape, img_shape=shape, scale_factor=(1.0, 1.0))) for _ in images]
    return model.test_step(dict(inputs=images, data_samples=samples))


def check_model(package):
    net, model = LoopDetector(), ExportedModel(str(package))
    images = list(torch.randint(255, (3, 3, SIDE, SIDE), dtype=torch.uint8))
    found = predict(model, images)
    for image, sample in zip(images, found, strict=True):
        boxes, scores, labels = net.by_mmcv(image)
        assert 3 < len(labels) < REGIONS and sample.pred_instances.labels.tolist() == labels.tolist()
        torch.testing.assert_close(sample.pred_instances.bboxes, boxes)
        torch.testing.assert_close(sample.pred_instances.scores, scores, rtol=1e-4, atol=1e-5)
    assert model.file_mb == pytest.approx(package.stat().st_size / 1e6) and model.precision == 'fp32'
    with pytest.raises(FileError, match=r'this file takes \(1, 3, 64, 64\) uint8'):
        predict(model, [image[:, :32] for image in images])


def check_example(package, folder):
    image = torch.randint(255, (3, SIDE, SIDE), dtype=torch.uint8)  # BGR
    Image.fromarray(image.flip(0).permute(1, 2, 0).numpy()).save(folder / 'photo.png')
    example = Path(__file__).resolve().parents[2] / 'examples' / 'run_torch_pt2.py'
    argv = [sys.executable, str(example), str(package), 'photo.png', '--score-thr', '0']
    run = subprocess.run(argv, capture_output=True, text=True, cwd=folder)
    assert run.returncode == 0, run.stderr
    _, scores, labels = LoopDetector().by_mmcv(image)
    said = [line.split(' at ')[0].split() for line in run.stdout.splitlines()[:-1]]
    assert [name for name, _ in said] == [CLASSES[label] for label in labels] and len(said) > 3
    assert [float(score) for _, score in said] == pytest.approx(scores.tolist(), abs=2e-3)
    assert Image.open(folder / 'out.png').tobytes() != Image.open(folder / 'photo.png').tobytes()
