"""Segmentation data and pictures: what would corrupt a training is one ``error:`` line; what is only unusual passes."""

import re
import shutil
import struct
import zlib
from copy import deepcopy

import cv2
import numpy as np
import pytest
from bad_input import refused_data
from mmengine.config import Config
from PIL import Image
from tiny_runs import ROOT, SEGMENTER

from mmkerneldna.datasets import override_data_root
from mmkerneldna.datasets.image_checks import read_image

pytestmark = pytest.mark.usefixtures('no_old_loggers')


@pytest.fixture(scope='module')
def segmenter():
    return Config.fromfile(ROOT / SEGMENTER)


def colour_mask(root):
    cv2.imwrite(str(root / 'annotations/training/000000.png'), np.random.default_rng(0).integers(0, 6, (9, 8, 3), np.uint8))


def write_png(path, height, width):
    """A PNG that states a size and holds nothing."""
    header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    chunks = [(b'IHDR', header), (b'IDAT', zlib.compress(b'')), (b'IEND', b'')]
    path.write_bytes(
        b'\x89PNG\r\n\x1a\n'
        + b''.join(
            struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data)) for kind, data in chunks
        )
    )


def list_of_names(*names):
    return lambda root: (root / 'names.txt').write_text('\n'.join(names))


IMAGE, MASK = 'images/training/000000.jpg', 'annotations/training/000000.png'
LIST = dict(ann_file='names.txt')
#: a change to the files of a segmentation set, settings of the data set, and what is said
SEGMENTATION = {
    'labels beyond the classes': (
        lambda root: cv2.imwrite(str(root / MASK), np.full((9, 8), 42, np.uint8)),
        {},
        r'1 of \d+ masks hold labels outside the 7 classes: 42',
    ),
    'colour mask': (colour_mask, {}, r'000000\.png is a colour image'),
    'mask of another size': (
        lambda root: cv2.imwrite(str(root / MASK), np.zeros((9, 8), np.uint8)),
        {},
        r'its mask \S+000000\.png is 8x9 pixels large, the image \d+x\d+',
    ),
    'empty mask': (lambda root: (root / MASK).write_bytes(b''), {}, r'its mask \S+000000\.png is an empty file'),
    'image of 10^9 pixels': (lambda root: write_png(root / IMAGE, 40000, 40000), {}, r'000000\.jpg is too large .*1600000000'),
    'image without pixels': (lambda root: write_png(root / IMAGE, 0, 10), {}, r'000000\.jpg is (not an image|corrupt)'),
    'list that is a folder': (lambda root: None, dict(ann_file='annotations'), r'ann_file \S+annotations is a folder'),
    'empty list': (list_of_names(), LIST, r'the list \S+names\.txt names no image'),
    'list that leaves the root': (
        list_of_names('000000', '../../../secret'),
        LIST,
        r'1 file names .*leave the data set.*secret',
    ),
    'list of a missing image': (list_of_names('000000', 'none'), LIST, r'none\.jpg is missing'),
}


@pytest.mark.parametrize('spoil, settings, words', SEGMENTATION.values(), ids=SEGMENTATION)
def test_segmentation_data_that_would_corrupt_a_training(spoil, settings, words, shapes, tmp_path, segmenter, capfd):
    root = shutil.copytree(shapes, tmp_path / 'set')
    spoil(root)
    cfg = deepcopy(segmenter)
    override_data_root(cfg, str(root))
    cfg.train_dataloader.dataset.update(settings)
    line = refused_data(capfd, cfg)
    assert re.search(words, line), line


def test_quarter_turn_and_large_photo_pass(tmp_path):
    """A size stated before or after the turn that EXIF asks for is right; 100 million pixels are a photo."""
    image, exif = Image.new('L', (30, 20)), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / 'turned.jpg', exif=exif)
    assert read_image(str(tmp_path / 'turned.jpg')) == (None, (20, 30))
    with pytest.warns(Image.DecompressionBombWarning):
        Image.new('1', (10000, 10000)).save(tmp_path / 'large.png')
        Image.open(tmp_path / 'large.png')
    assert read_image(str(tmp_path / 'large.png')) == (None, (10000, 10000))
