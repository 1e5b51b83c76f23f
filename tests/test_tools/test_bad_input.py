"""Bad input to every tool: one ``error:`` line that names the value, exit status 2, no traceback; data that mmdet would
drop without a word: one warning that counts and lists them.

To add a case, add a line to TOOL_CASES, or to one of the tables of spoilt data below it.
"""

import json
import logging
import math
import re
import shutil
import struct
import zlib
from copy import deepcopy

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from PIL import Image
from tiny_runs import DETECTOR, ROOT, SEGMENTER, run_tool

from mmkerneldna.datasets import annotation_checks, check_data, coco_checks, override_data_root
from mmkerneldna.datasets.image_checks import read_image
from mmkerneldna.errors import one_line_errors

#: tools that read nothing a user writes: doctor.py says what is wrong in its own table, make_metafiles.py takes no input
WITHOUT_INPUT = {'make_metafiles.py'}
CHECKPOINT = '{place}/weights.pth'
TRAIN, TEST = ['train.py', '{det}', '--work-dir', '{tmp}'], ['test.py', '{det}', CHECKPOINT, '--work-dir', '{tmp}']
OPTIONS = ['--cfg-options', 'data_root={shapes}']
BENCHMARK = ['benchmark.py', '{det}', '--scope', 'backbone', '--size', '64', '--out-dir', '{tmp}']
COMPARE = ['compare.py', '{det}', '--work-dir', '{tmp}/compare', '--cfg-options', 'data_root={shapes}']
EXPORT = ['export.py', '{det}', CHECKPOINT, '--format', 'onnx']
INFER = ['infer.py', '--out', '{tmp}/out']
REDUNDANCY = ['redundancy.py', '{det}', CHECKPOINT, '--out', '{tmp}/out']
DERIVE = ['derive.py', '{det}', '--from', CHECKPOINT, '--out', '{tmp}/out.pth']
CONVERT = ['convert_checkpoint.py', 'kdna-resnet18']


def with_option(option):
    return TRAIN + OPTIONS + [option]


#: command line, with {place} for the folder of odd files; what the error line must say
TOOL_CASES = [
    # configs
    (['train.py', '{place}/notes.txt'], r'config \S+notes\.txt cannot be read: .*'),
    (['train.py', '{place}'], r'config \S+ is a folder'),
    (['train.py', '{place}/nowhere.py'], r'config \S+nowhere\.py does not exist'),
    (['train.py', '{place}/empty.py'], r'config \S+empty\.py has no model'),
    (['train.py', '{place}/raises.py'], r"config \S+raises\.py cannot be read: NameError: .*'undefined'"),
    (['train.py', '{place}/syntax.py'], r'config \S+syntax\.py cannot be read'),
    (['train.py', '{place}/list.json'], r'config \S+list\.json cannot be read'),
    (['train.py', '{place}/broken.json'], r'config \S+broken\.json cannot be read'),
    (['train.py', '{place}/binary.py'], r'config \S+binary\.py cannot be read'),
    (['train.py', '{place}/base.py'], r'config \S+base\.py cannot be read: .*missing_base'),
    (['train.py', '{place}/bare.py'], r'the config has no train_dataloader'),
    (['train.py', 'mmkerneldna::nowhere/none.py'], r'config mmkerneldna::nowhere/none\.py cannot be read'),
    (['train.py', 'nopackage::nowhere/none.py'], r'config nopackage::nowhere/none\.py cannot be read'),
    (['test.py', '{place}/notes.txt', CHECKPOINT], r'config \S+notes\.txt cannot be read'),
    (['test.py', '{place}/bare.py', CHECKPOINT], r'the config has no test_dataloader'),
    (['benchmark.py', '{place}/notes.txt'], r'config \S+notes\.txt cannot be read'),
    (['export.py', '{place}/notes.txt', CHECKPOINT, '--format', 'onnx'], r'config \S+notes\.txt cannot be read'),
    (['compare.py', '{place}/raises.py', '--work-dir', '{tmp}'], r'config \S+raises\.py cannot be read'),
    # parts of a config that are something else
    (with_option('model=3'), r'model is 3, expected a dict'),
    (with_option('model.backbone=resnet'), r"model\.backbone is 'resnet', expected a dict"),
    (with_option('train_dataloader=5'), r'train_dataloader is 5, expected a dict'),
    (with_option('optim_wrapper.optimizer=SGD'), r"optim_wrapper\.optimizer is 'SGD', expected a dict"),
    (with_option('default_hooks=7'), r'default_hooks is 7, expected a dict'),
    (with_option('custom_hooks=EMAHook'), r"custom_hooks holds 'EMAHook', expected a dict with a type"),
    (with_option('val_evaluator=CocoMetric'), r"val_evaluator holds 'CocoMetric', expected a dict with a type"),
    (with_option('randomness=3'), r'randomness is 3, expected a dict'),
    (with_option('model.backbone.depth.deeper=3'), r'--cfg-options .*model\.backbone\.depth'),
    (with_option('data_root=7'), r'7'),
    # numbers
    (with_option('train_dataloader.batch_size=0'), r'train_dataloader\.batch_size is 0, expected a whole number of at least 1'),
    (with_option('train_dataloader.batch_size=many'), r"train_dataloader\.batch_size is 'many', expected"),
    (with_option('train_dataloader.batch_size=1.5'), r'train_dataloader\.batch_size is 1\.5, expected'),
    (with_option('val_dataloader.batch_size=-2'), r'val_dataloader\.batch_size is -2, expected'),
    (with_option('train_dataloader.num_workers=-1'), r'train_dataloader\.num_workers is -1, expected'),
    (
        TRAIN + OPTIONS + ['train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=True'],
        r'train_dataloader\.num_workers is 0, and persistent_workers=True',
    ),
    (with_option('train_cfg.max_epochs=0'), r'train_cfg\.max_epochs is 0, expected'),
    (with_option('train_cfg.max_epochs=-3'), r'train_cfg\.max_epochs is -3, expected'),
    (with_option('train_cfg.val_interval=0'), r'train_cfg\.val_interval is 0, expected'),
    (
        with_option('optim_wrapper.optimizer.lr=-1'),
        r'optim_wrapper\.optimizer\.lr is -1, expected a finite number of at least 0',
    ),
    (with_option('optim_wrapper.optimizer.lr=nan'), r'optim_wrapper\.optimizer\.lr is nan, expected'),
    (with_option('optim_wrapper.optimizer.lr=1e999'), r'optim_wrapper\.optimizer\.lr is inf, expected'),
    (with_option('optim_wrapper.optimizer.weight_decay=-0.1'), r'optim_wrapper\.optimizer\.weight_decay is -0\.1, expected'),
    (with_option('optim_wrapper.accumulative_counts=0'), r'optim_wrapper\.accumulative_counts is 0, expected'),
    (with_option('randomness.seed=-1'), r'randomness\.seed is -1, expected .*at most 4294967295'),
    (with_option('default_hooks.checkpoint.interval=0'), r'default_hooks\.checkpoint\.interval is 0, expected .*or -1'),
    (with_option('default_hooks.logger.interval=0'), r'default_hooks\.logger\.interval is 0, expected'),
    (with_option('param_scheduler.1.end=-4'), r'param_scheduler\.1 .*end=-4'),
    (TRAIN + ['--seed', '-1'], r"argument --seed: '-1' is not"),
    (TRAIN + ['--seed', str(2**32)], r"argument --seed: '4294967296' is not"),
    (TEST + ['--wait-time', '-1'], r"argument --wait-time: '-1' is not"),
    (TEST + OPTIONS + ['test_dataloader.batch_size=0'], r'test_dataloader\.batch_size is 0, expected'),
    (TRAIN + ['--max-epochs', '0', *OPTIONS], r'--max-epochs'),
    (TRAIN + ['--max-iters', '-5', *OPTIONS], r'--max-iters'),
    # what a constructor refuses
    (with_option('optim_wrapper.optimizer.nonsense=1'), r"unexpected keyword argument 'nonsense'"),
    (with_option('model.backbone.depth=19'), r'no depth 19'),
    (with_option('train_dataloader.sampler.type=NoSampler'), r"type='NoSampler' is not registered"),
    (with_option('train_dataloader.dataset.pipeline.0.type=NoTransform'), r"type='NoTransform' is not registered"),
    (with_option('val_evaluator.type=NoMetric'), r"type='NoMetric' is not registered"),
    # folders and checkpoints
    (['train.py', '{det}', '--work-dir', '{place}/notes.txt', *OPTIONS], r'folder \S+notes\.txt is not writable'),
    (TRAIN + ['--resume', '{place}', *OPTIONS], r'checkpoint \S+ is a folder'),
    (TRAIN + ['--resume', '{place}/nowhere.pth', *OPTIONS], r'checkpoint \S+nowhere\.pth does not exist'),
    (TRAIN + ['--resume', '{place}/empty.pth', *OPTIONS], r'checkpoint \S+empty\.pth is cut short, damaged'),
    (TRAIN + ['--resume', '{place}/list.pth', *OPTIONS], r'checkpoint \S+list\.pth holds a list'),
    (['test.py', '{det}', '{place}', '--work-dir', '{tmp}', *OPTIONS], r'checkpoint \S+ is a folder'),
    (TEST + ['--out', 'a.json', *OPTIONS], r'--out a\.json must be named \*\.pkl'),
    # cost and comparison
    (BENCHMARK + ['--batch', '0'], r"argument --batch: '0' is not a whole number of at least 1"),
    (BENCHMARK + ['--batch', 'two'], r"argument --batch: 'two' is not"),
    (BENCHMARK + ['--repeats', '0'], r"argument --repeats: '0' is not"),
    (BENCHMARK + ['--warmup', '-1'], r"argument --warmup: '-1' is not"),
    (BENCHMARK + ['--threads', '0'], r"argument --threads: '0' is not"),
    (BENCHMARK + ['--device', 'cuda:7'], r"argument --device: 'cuda:7' cannot be used here"),
    (BENCHMARK + ['--device', 'toaster'], r"argument --device: 'toaster' cannot be used here"),
    (BENCHMARK + ['--device', 'meta'], r"argument --device: 'meta' cannot be used here"),
    (BENCHMARK + ['--size', '0x64'], r"'0x64'"),
    (BENCHMARK + ['--out-dir', '{place}/notes.txt'], r'folder \S+notes\.txt is not writable .*--out-dir'),
    (['benchmark.py', '{det}', '{det}'], r'two configs have one name'),
    (COMPARE + ['--seeds', '-1'], r"argument --seeds: '-1' is not"),
    (COMPARE + ['--seeds', 'x'], r"argument --seeds: 'x' is not"),
    (COMPARE + ['--batch', '0'], r"argument --batch: '0' is not"),
    (COMPARE + ['--size', 'large'], r"'large'"),
    (COMPARE + ['--device', 'cuda:7'], r"argument --device: 'cuda:7' cannot be used here"),
    (COMPARE + ['--variant', 'nonsense'], r"no variant is named 'nonsense'"),
    (['compare.py', '{det}', '--work-dir', '{place}/notes.txt'], r'folder \S+notes\.txt is not writable .*--work-dir'),
    (['benchmark_deploy.py', 'backbone', '--batch', '0'], r"argument --batch: '0' is not"),
    (['benchmark_deploy.py', 'backbone', '--device', 'cuda:7'], r"argument --device: 'cuda:7' cannot be used here"),
    (['benchmark_deploy.py', 'backbone', '--size', 'large'], r"'large'"),
    (['benchmark_per_sample.py', '--batches', '-1'], r"argument --batches: '-1' is not"),
    (['benchmark_per_sample.py', '--repeats', '0'], r"argument --repeats: '0' is not"),
    (['report.py', '{place}/nowhere'], r'work_dir \S+nowhere does not exist'),
    (['report.py', '{place}/notes.txt'], r'work_dir \S+notes\.txt is a file'),
    (['report.py', '{place}/spoilt_shapes'], r'holds no run'),
    (['report.py', '{place}/run', '--out-dir', '{place}/notes.txt'], r'folder \S+notes\.txt is not writable'),
    (INFER + ['{det}'], r'must be followed by its checkpoint'),
    (INFER + ['{place}/notes.txt'], r'notes\.txt is no config'),
    (INFER + ['{det}', CHECKPOINT], r'no picture, video or folder is named'),
    (INFER + ['{det}', CHECKPOINT, '{place}/nowhere.jpg'], r'nowhere\.jpg'),
    (INFER + ['{det}', CHECKPOINT, '{place}', '--score-thr', '7'], r"argument --score-thr: '7' is not"),
    (INFER + ['{det}', CHECKPOINT, '{place}', '--device', 'cuda:7'], r"argument --device: 'cuda:7' cannot be used here"),
    (['coverage.py', '--out', '{place}'], r'--out \S+ is a folder'),
    (['coverage.py', '--out', '{place}/notes.txt/coverage.md'], r'folder \S+notes\.txt is not writable .*--out'),
    (['coverage.py', '--out', '{tmp}/coverage.md', '--max-params', '-1'], r"argument --max-params: '-1' is not"),
    (['coverage.py', '--folders', 'mmdet/nowhere'], r'--folders mmdet/nowhere: no such folder'),
    (['coverage.py', '--variants', 'nonsense'], r"invalid choice: 'nonsense'"),
    # files for others, and from others
    (DERIVE + ['--steps', '-1'], r"argument --steps: '-1' is not"),
    (DERIVE + ['--batch', '0'], r"argument --batch: '0' is not"),
    (DERIVE + ['--size', '0', '64'], r"argument --size: '0' is not"),
    (DERIVE + ['--lr', 'nan'], r"argument --lr: 'nan' is not a finite number"),
    (DERIVE + ['--seed', '-1'], r"argument --seed: '-1' is not"),
    (DERIVE + ['--device', 'cuda:7'], r"argument --device: 'cuda:7' cannot be used here"),
    (['redundancy.py', '{place}/notes.txt', CHECKPOINT, '--out', '{tmp}/out'], r'notes\.txt cannot be read'),
    (REDUNDANCY + ['--validate', '20'], r'--validate 20 needs images: add --images DIR or --data'),
    (REDUNDANCY + ['--validate', '2'], r"argument --validate: '2' is not a whole number of at least 3"),
    (REDUNDANCY + ['--batches', '0'], r"argument --batches: '0' is not"),
    (['redundancy.py', '{det}', '{place}/empty.pth', '--out', '{tmp}/out'], r'empty\.pth is cut short'),
    (REDUNDANCY, r'of another family'),
    (['derive.py', '{place}/notes.txt', '--from', CHECKPOINT, '--out', '{tmp}/out.pth'], r'notes\.txt cannot be read'),
    (['derive.py', '{det}', '--from', '{place}/empty.pth', '--out', '{tmp}/out.pth'], r'empty\.pth is cut short'),
    (EXPORT + ['--size', '0x64'], r"argument --size: .*'0x64'"),
    (EXPORT + ['--out', '{place}'], r'is a folder'),
    (EXPORT + ['--out', '{place}/nowhere/net.onnx'], r'folder \S+nowhere does not exist'),
    (['export.py', '{det}', '{place}', '--format', 'onnx'], r'checkpoint \S+ is a folder'),
    (['export.py', '{det}', '{place}/other.pth', '--format', 'onnx'], r'does not fit FasterRCNN'),
    (CONVERT + ['{place}', '{tmp}/out.pth'], r'checkpoint \S+ is a folder'),
    (CONVERT + ['{place}/empty.pth', '{tmp}/out.pth'], r'empty\.pth is cut short, damaged'),
    (CONVERT + ['{place}/other.pth', '{tmp}/out.pth'], r'other\.pth: '),
    (CONVERT + ['{place}/other.pth', '{place}/notes.txt'], r'notes\.txt exists'),
    (CONVERT + ['{place}/other.pth', '{tmp}/nowhere/out.pth'], r'folder \S+nowhere does not exist'),
    (['convert_checkpoint.py', 'resnet19', 'a', 'b'], r"invalid choice: 'resnet19'"),
    (['make_shapes.py', '--data-root', '{place}/notes.txt'], r'notes\.txt .*no dataset\.json'),
    (['make_shapes.py', '--data-root', '{place}'], r'holds no generated shapes set'),
    (['make_shapes.py', '--data-root', '{place}/spoilt_shapes'], r'spoilt_shapes is damaged: dataset\.json'),
    (['make_shapes.py', '--data-root', '{tmp}/shapes', '--scale', '0'], r'shapes of scale 0\.0: it must lie in \(0, 1\]'),
    # what depends on the input, and files in the place of models
    (['benchmark_routing.py', '--rows', 'nothing'], r"invalid choice: 'nothing'"),
    (['benchmark_routing.py', '--repeats', '0'], r"argument --repeats: '0' is not"),
    (['benchmark_tokens.py', '--rows', 'nothing'], r"invalid choice: 'nothing'"),
    (['benchmark_tokens.py', '--threads', '0'], r"argument --threads: '0' is not"),
    (['formats.py', '{det}', '{place}/nowhere.pth', '--out-dir', '{tmp}/out'], r'nowhere\.pth does not exist'),
    (['formats.py', '{det}', CHECKPOINT, '--formats', 'tensorrt'], r"invalid choice: 'tensorrt'"),
    (['formats.py', '{det}', CHECKPOINT, '--calib', '0'], r"argument --calib: '0' is not"),
    (['formats.py', '{place}/notes.txt', CHECKPOINT, '--out-dir', '{tmp}/out'], r'notes\.txt cannot be read'),
    (['sweep.py', '{place}/notes.txt', CHECKPOINT, '--out', '{tmp}/out'], r'notes\.txt cannot be read'),
    (['sweep.py', '{det}', CHECKPOINT, '--keep', '1.5', '--out', '{tmp}/out'], r'keep=1\.5 must lie in \(0, 1\]'),
    (
        ['show_routing.py', '{place}/notes.txt', CHECKPOINT, '{shapes}/images/validation', '--out', '{tmp}/out'],
        r'notes\.txt cannot be read',
    ),
    (
        ['show_routing.py', '{det}', '{place}/other.pth', '{shapes}/images/validation', '--keep', '0.5', '--out', '{tmp}/out'],
        r'does not fit FasterRCNN',
    ),
    (
        ['show_trees.py', '{place}/notes.txt', CHECKPOINT, '{shapes}/images/validation', '--out', '{tmp}/out'],
        r'notes\.txt cannot be read',
    ),
    (
        ['show_trees.py', '{det}', '{place}/empty.pth', '{shapes}/images/validation', '--out', '{tmp}/out'],
        r'empty\.pth is cut short',
    ),
    (['doctor.py', '--nonsense'], r'unrecognized arguments: --nonsense'),
    (['demo.py', '--nonsense'], r'unrecognized arguments: --nonsense'),
]


@pytest.fixture(autouse=True)
def no_old_loggers():
    """A logger of an earlier run writes to a stream that its test has closed."""
    MMLogger._instance_dict.clear()


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder of odd files."""
    folder = tmp_path_factory.mktemp('odd')
    texts = {
        'notes.txt': 'a note',
        'empty.py': '',
        'raises.py': 'model = undefined',
        'syntax.py': 'model = dict(',
        'list.json': '[1, 2]',
        'broken.json': '{"model": ',
        'base.py': "_base_ = 'missing_base.py'",
        'bare.py': "model = dict(type='FasterRCNN')",
        'empty.pth': '',
        'spoilt_shapes/dataset.json': '[]',
        'run/20260101_000000/20260101_000000.json': '{}',
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / 'binary.py').write_bytes(bytes(range(256)))
    torch.save([1, 2], folder / 'list.pth')
    torch.save(dict(state_dict={'a.weight': torch.zeros(2)}), folder / 'other.pth')
    torch.save(dict(state_dict={'a.weight': torch.zeros(2)}), folder / 'weights.pth')
    return folder


def error_line(capfd, status):
    """The one ``error:`` line of a run that ended with status 2."""
    said = capfd.readouterr()
    assert status == 2, said.err[-2000:]
    assert 'Traceback' not in said.err + said.out, said.err[-2000:]
    lines = [line for line in said.err.splitlines() if re.match(r'([\w.]+: )?error:', line)]
    assert len(lines) == 1, said.err[-2000:]
    return lines[0]


@pytest.mark.parametrize('command, words', TOOL_CASES, ids=lambda value: ' '.join(value) if isinstance(value, list) else '')
def test_tool_refuses_in_one_line(command, words, place, shapes, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = dict(place=place, tmp=tmp_path, shapes=shapes, det=ROOT / DETECTOR, seg=ROOT / SEGMENTER)
    tool, *argv = (part.format(**places) for part in command)
    line = error_line(capfd, run_tool(tool, argv))
    assert re.search(words, line), line
    assert not list(tmp_path.rglob('*.pth'))


def test_every_tool_has_a_case():
    tools = {path.name for path in (ROOT / 'tools').glob('*.py') if 'argparse' in path.read_text()}
    missing = tools - {command[0] for command, _ in TOOL_CASES} - WITHOUT_INPUT
    assert not missing, f'add a case to TOOL_CASES for {missing}'


# Detection data: a change to the first annotation, the first image or the whole file, and what is said of it.
FATAL_ANNOTATIONS = {
    'NaN': (dict(bbox=[1, math.nan, 5, 5]), r'annotation 1 has the box \[1, nan, 5, 5\]; expected .*four finite numbers'),
    'infinite': (dict(bbox=[1, 1, math.inf, 5]), r'annotation 1 has the box \[1, 1, inf, 5\]'),
    'far beyond any image': (dict(bbox=[1, 1, 1e30, 5]), r'annotation 1 has the box \[1, 1, 1e\+30, 5\]'),
    'three numbers': (dict(bbox=[1, 1, 5]), r'annotation 1 has the box \[1, 1, 5\]'),
    'words': (dict(bbox=['1', '1', '5', '5']), r"annotation 1 has the box \['1', '1', '5', '5'\]"),
    'no box': (dict(bbox=None), r'annotations\[0\] is .* and has no bbox'),
    'no area': (dict(area=None), r'annotations\[0\] is .* and has no area'),
    'NaN area': (dict(area=math.nan), r'annotation 1 has the area nan'),
    'no image_id': (dict(image_id=None), r'annotations\[0\] is .* and has no image_id'),
    'a list of images': (dict(image_id=[1]), r'annotation 1 has the image_id \[1\]; expected a number'),
    'id of another': (dict(id=2), r'1 annotations have an id that another one has: 2'),
}
FATAL_IMAGES = {
    'no width': (dict(width=None), r'images\[0\] is .* and has no width'),
    'no pixels': (dict(height=0), r'image 1 \(000000\.jpg\) is \d+x0 pixels'),
    '10^9 pixels wide': (dict(width=10**9), r'image 1 \(000000\.jpg\) is 1000000000x\d+ pixels'),
    'another size than the file': (dict(width=11, height=12), r'000000\.jpg is \d+x\d+ pixels large, not 11x12'),
    'a name that leaves the root': (
        dict(file_name='../../../../secret.jpg'),
        r'1 file names .* leave the data set.*secret\.jpg',
    ),
    'an absolute name': (dict(file_name='/etc/passwd'), r'leave the data set.*/etc/passwd'),
    'a number for a name': (dict(file_name=7), r'image 1 has the file_name 7; expected a name'),
    'an empty name': (dict(file_name=''), r"image 1 has the file_name ''"),
    'id of another': (dict(id=2), r'1 images have an id that another one has: 2'),
}
FATAL_FILES = {
    'categories with one name': (
        lambda coco: coco['categories'][1].update(name='circle'),
        r'several categories are called circle',
    ),
    'categories with one id': (
        lambda coco: coco['categories'][1].update(id=1),
        r'1 categories have an id that another one has: 1',
    ),
    'a category without name': (lambda coco: coco['categories'][1].pop('name'), r'categories\[1\] is .* has no name'),
    'images as a dict': (lambda coco: coco.update(images={'1': {}}), r'images is a dict, expected a list'),
    'annotations of words': (lambda coco: coco.update(annotations=['a']), r"annotations\[0\] is 'a' and has no id, image_id"),
    'no image known': (
        lambda coco: [a.update(image_id=-1) for a in coco['annotations']],
        r'none of its \d+ annotations can be used: \d+ of an image_id that no image has \(annotation 1: -1, ',
    ),
}
MASKS = {
    'no mask': (dict(segmentation=[]), r'annotation 1 has the segmentation \[\], and masks are trained'),
    'NaN in a polygon': (
        dict(segmentation=[[1, 1, math.nan, 5, 5, 5]]),
        r'annotation 1 has the polygon \[1, 1, nan, 5, 5, 5\]',
    ),
    'RLE of another size': (dict(segmentation=dict(size=[2, 3], counts=[6])), r'annotation 1 has an RLE of size \[2, 3\]'),
}
DROPPED = {
    'negative size': (dict(bbox=[30, 30, -5, 5]), r'1 with a side below one pixel \(annotation 1: \[30, 30, -5, 5\]\)'),
    'no width': (dict(bbox=[30, 30, 0, 5]), r'1 with a side below one pixel \(annotation 1: \[30, 30, 0, 5\]\)'),
    'no area': (dict(area=0), r'1 without area \(annotation 1: 0\)'),
    'outside': (dict(bbox=[500, 30, 5, 5]), r'1 outside of their image \(annotation 1: \[500, 30, 5, 5\]\)'),
    'unknown category': (dict(category_id=99), r'1 of a category_id that no category has \(annotation 1: 99\)'),
    'unknown image': (dict(image_id=99), r'1 of an image_id that no image has \(annotation 1: 99\)'),
}


@pytest.fixture(scope='module')
def detector():
    return Config.fromfile(ROOT / DETECTOR)


@pytest.fixture(scope='module')
def segmenter():
    return Config.fromfile(ROOT / SEGMENTER)


@pytest.fixture
def spoilt(shapes, tmp_path, detector):
    """Config of a detector whose training annotations were changed."""

    def make(change, with_mask=False):
        coco = json.loads((shapes / 'annotations/instances_training.json').read_text())
        change(coco)
        (tmp_path / 'spoilt.json').write_text(json.dumps(coco))
        cfg = deepcopy(detector)
        override_data_root(cfg, str(shapes))
        cfg.train_dataloader.dataset.ann_file = str(tmp_path / 'spoilt.json')
        if with_mask:
            cfg.train_dataloader.dataset.pipeline[1].with_mask = True
        return cfg

    return make


def refused_data(capfd, cfg):
    with pytest.raises(SystemExit) as stop, one_line_errors():
        check_data(cfg, ('train',))
    return error_line(capfd, stop.value.code)


def cases(**tables):
    return [pytest.param(key, *case, id=f'{key}: {name}') for key, table in tables.items() for name, case in table.items()]


@pytest.mark.parametrize(
    'key, change, words', cases(annotations=FATAL_ANNOTATIONS, images=FATAL_IMAGES, file=FATAL_FILES, masks=MASKS)
)
def test_detection_data_that_would_corrupt_a_training(key, change, words, spoilt, capfd):
    entries = 'annotations' if key == 'masks' else key
    spoil = change if key == 'file' else lambda coco: coco[entries][0].update(change)
    line = refused_data(capfd, spoilt(spoil, with_mask=key == 'masks'))
    assert re.search(words, line), line
    assert 'spoilt.json' in line or '.jpg' in line


@pytest.mark.parametrize('change, words', DROPPED.values(), ids=DROPPED)
def test_detection_data_that_mmdet_drops(change, words, spoilt, monkeypatch):
    said = []
    monkeypatch.setattr(annotation_checks, 'print_log', lambda message, **kwargs: said.append((message, kwargs['level'])))
    assert check_data(spoilt(lambda coco: coco['annotations'][0].update(change)), ('train',)) == []
    ((message, level),) = said
    assert level == logging.WARNING and re.search(r'spoilt\.json: 1 of \d+ annotations are dropped: ' + words, message), message


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


@pytest.mark.parametrize(
    'text, words',
    [
        ('', r'is not JSON'),
        ('[' * 100000, r'is not JSON'),
        ('[1, 2]', r'has no images'),
        ('{"images": [], "annotations": [], "categories": {}}', r'categories is a dict'),
    ],
    ids=['empty', 'nested', 'list', 'dict'],
)
def test_annotation_file_that_is_something_else(text, words, shapes, tmp_path, detector, capfd):
    (tmp_path / 'odd.json').write_text(text)
    cfg = deepcopy(detector)
    override_data_root(cfg, str(shapes))
    cfg.train_dataloader.dataset.ann_file = str(tmp_path / 'odd.json')
    line = refused_data(capfd, cfg)
    assert re.search(words, line) and 'odd.json' in line, line
    cfg.train_dataloader.dataset.ann_file = str(tmp_path)
    assert re.search(r'annotation file \S+ cannot be read \(Is a directory\)', refused_data(capfd, cfg))


def test_classes_in_another_order_than_the_file(spoilt, monkeypatch):
    """mmdet takes the file's order for the labels, so names under drawn boxes would be swapped."""
    said = []
    monkeypatch.setattr(coco_checks, 'print_log', lambda message, **kwargs: said.append(message))
    check_data(spoilt(lambda coco: coco['categories'].reverse()), ('train',))
    (message,) = said
    assert re.search(r'numbers the classes as \S+spoilt\.json lists them \(.*circle\), the config lists circle', message)


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
