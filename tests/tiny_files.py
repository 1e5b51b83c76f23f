"""Exported files made by hand, a few kilobytes each: what any exporter that keeps the contract might write."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mmkerneldna.deploy.file_meta import FileMeta, write_meta

CLASSES = ['sky', 'road', 'car']
#: suffixes of the formats that take no compiler
FAST = ('.onnx', '.xml')


class TinySegmenter(nn.Module):
    """(N, 3, H, W) uint8 -> (N, H, W): three convolutions with a residual sum and a gate between them."""

    outputs = ('labels_map',)

    def __init__(self, width=8):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.stem, self.body = nn.Conv2d(3, width, 3, 2, 1), nn.Conv2d(width, width, 3, 1, 1)
        self.gate, self.head = nn.Conv2d(width, width, 1), nn.Conv2d(width, len(CLASSES), 1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)

    def logits(self, images):
        """At half the size."""
        x = F.relu(self.stem((images.float() - 127.5) / 64))
        x = x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()
        return self.head(F.relu(x + self.body(x)))

    def forward(self, images):
        logits = F.interpolate(self.logits(images), scale_factor=2.0, mode='bilinear')
        return logits.argmax(1)


class ChannelsAsLabels(nn.Module):
    """Label of a pixel: its largest channel."""

    outputs = ('labels_map',)

    def forward(self, images):
        return images.float().argmax(1)


class TinyDetector(nn.Module):
    """Two boxes and an empty place per image: a quarter and the whole; the score is the mean of the blue channel over 255."""

    outputs = ('dets', 'labels')

    def forward(self, images):
        blue = images[:, 0].float()
        side = torch.stack([blue[0].sum(1).mul(0).add(1).sum(), blue[0].sum(0).mul(0).add(1).sum()]).flip(0)  # W, H
        corners = torch.cat([side * 0, side * 0.5, side * 0, side, side * 0, side * 0]).reshape(1, 3, 4)
        scores = blue.mean((1, 2), keepdim=True) / 255 * torch.tensor([[[1.0], [0.5], [0.0]]])
        dets = torch.cat([corners.expand(len(images), 3, 4), scores.expand(len(images), 3, 1)], 2)
        return dets, torch.tensor([[2, 0, -1]]).expand(len(images), 3) + 0 * scores[:, :, 0].long()


class TinyInstances(TinyDetector):
    """With masks of 4 x 4 for each box: the left half is certain, the right half less so."""

    outputs = ('dets', 'labels', 'masks')

    def forward(self, images):
        dets, labels = super().forward(images)
        mask = torch.tensor([0.9, 0.9, 0.3, 0.1]).expand(len(images), 3, 4, 4)
        return dets, labels, mask + 0 * dets[:, :, :1, None]


def write_file(path, model, task='segmentation', size=None, batch=None, **facts):
    """Write a model as ONNX or OpenVINO, dynamic in what ``size`` and ``batch`` leave open."""
    onnx_path = path.with_suffix('.onnx')
    example = torch.zeros(batch or 2, 3, *(size or (8, 16)), dtype=torch.uint8)
    axes = {0: 'n'} if batch is None else {}
    if size is None:
        axes.update({2: 'h', 3: 'w'})
    torch.onnx.export(
        model.eval(),
        (example,),
        str(onnx_path),
        opset_version=18,
        dynamo=False,
        input_names=['images'],
        output_names=list(model.outputs),
        dynamic_axes={'images': axes, **{name: {0: 'n'} for name in model.outputs}} if axes else None,
    )
    facts = dict(dict(classes=CLASSES, size=size and list(size), batch=batch, outputs=list(model.outputs)), **facts)
    meta = FileMeta(task, **facts)
    if path.suffix == '.xml':
        import openvino

        openvino.save_model(openvino.convert_model(str(onnx_path)), str(path), compress_to_fp16=False)
    write_meta(path, meta)
    return path


def pictures(count, size=(16, 24), seed=0):
    """Smooth random images, (3, H, W) uint8 tensors."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return list((F.interpolate(coarse, size, mode='bilinear') * 255).to(torch.uint8))


def arrays(count, size=(16, 24), seed=0):
    """The same as numpy arrays."""
    return [np.ascontiguousarray(image.numpy()) for image in pictures(count, size, seed)]
