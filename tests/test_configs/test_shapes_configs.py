"""Configs of the small data sets: what a variant changes, classes against heads, and real training on few shapes."""

import json
import math
import os
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import Runner
from narrow import DETECTOR, SEGMENTER, narrow_config

from mmkerneldna.backbones import KDNAResNet
from mmkerneldna.datasets import ShapesSpec, check_data, generate_shapes, override_data_root

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
SMALL_SETS = [path for folder in ('shapes', 'bccd', 'camvid') for path in sorted((CONFIGS / folder).glob('*.py'))]
VARIANTS = [path for path in SMALL_SETS if '_kdna-' in path.name]
STATIC = [path.with_name(path.name.replace('kdna-', '')) for path in VARIANTS]


@cache
def _parse(path):
    return Config.fromfile(path)


def parse(path):
    return deepcopy(_parse(path))


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    spec = ShapesSpec(train_images=8, val_images=8, min_side=96, max_side=110)
    return generate_shapes(tmp_path_factory.mktemp('configs') / 'set', spec)


def flat(node, prefix=''):
    """{'model.backbone.type': 'ResNet', ...}"""
    if isinstance(node, dict):
        return {name: value for key in node for name, value in flat(node[key], f'{prefix}{key}.').items()}
    return {prefix[:-1]: node}


@pytest.mark.parametrize('path', VARIANTS, ids=lambda path: path.stem)
def test_a_variant_changes_the_backbone_and_nothing_else(path):
    static = flat(parse(STATIC[VARIANTS.index(path)]).to_dict())
    variant = flat(parse(path).to_dict())
    changed = {key for key in static.keys() | variant.keys() if static.get(key) != variant.get(key)}
    assert changed == {'model.backbone.type'}
    assert variant['model.backbone.type'] == 'KDNAResNet'


@pytest.mark.parametrize('path', SMALL_SETS, ids=lambda path: path.stem)
def test_every_head_has_the_classes_of_the_data(path):
    cfg = parse(path)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        leaf = cfg.train_dataloader.dataset
        classes = DATASETS.build(dict(leaf, pipeline=[], lazy_init=True)).metainfo['classes']
        heads = {key: value for key, value in flat(cfg.model.to_dict()).items() if key.endswith('num_classes')}
    assert heads and set(heads.values()) == {len(classes)}
    assert cfg.val_dataloader.dataset.get('metainfo') == leaf.get('metainfo')


@pytest.mark.parametrize('path', SMALL_SETS, ids=lambda path: path.stem)
def test_the_data_root_is_one_variable(path):
    cfg = parse(path)
    override_data_root(cfg, '/elsewhere')
    left = [key for key, value in flat(cfg.to_dict()).items() if isinstance(value, str) and value.startswith('data/')]
    assert left == []


def small_run(name, root, work_dir, **loop):
    cfg = narrow_config(name)
    override_data_root(cfg, str(root))
    cfg.work_dir = str(work_dir)
    cfg.train_cfg.update(loop)
    cfg.train_dataloader.batch_size = 4
    cfg.randomness = dict(seed=0)
    return cfg


def scalars(runner):
    lines = (Path(runner.log_dir) / 'vis_data/scalars.json').read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    'name, loop, key', [(DETECTOR, dict(max_epochs=2), 'coco/bbox_mAP'), (SEGMENTER, dict(max_iters=4), 'mIoU')]
)
def test_trains_and_validates_around_a_corrupt_image(name, loop, key, shapes, tmp_path):
    cfg = small_run(name, _with_corrupt_images(shapes, tmp_path / 'copy'), tmp_path / 'work', **loop)
    cfg.default_hooks.logger.interval = 1
    assert len(check_data(cfg, on_corrupt='skip')) == 2
    runner = Runner.from_cfg(cfg)
    assert isinstance(runner.model.backbone, KDNAResNet)
    runner.train()
    assert len(runner.train_dataloader.dataset) == len(runner.val_dataloader.dataset) == 7
    losses = [record['loss'] for record in scalars(runner) if 'loss' in record]
    assert len(losses) == 4 and all(math.isfinite(loss) for loss in losses)
    metrics = scalars(runner)[-1]
    assert 0 <= metrics[key] <= 100 and metrics['cost/latency_ms'] > 0


def _with_corrupt_images(shapes, copy):
    """Hard links for all files but one image of each split, which is cut in half."""
    for source in shapes.rglob('*'):
        target = copy / source.relative_to(shapes)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_file():
            os.link(source, target)
    for split in ('training', 'validation'):
        victim = copy / 'images' / split / '000001.jpg'
        content = victim.read_bytes()
        victim.unlink()
        victim.write_bytes(content[: len(content) // 2])
    return copy


@pytest.mark.skipif('MMKDNA_DATA' not in os.environ, reason='MMKDNA_DATA names no folder with bccd/ and camvid/')
@pytest.mark.parametrize('path', [p for p in SMALL_SETS if p.parent.name != 'shapes'], ids=lambda path: path.stem)
def test_real_data_pass_the_checks(path):
    cfg = parse(path)
    override_data_root(cfg, os.path.join(os.environ['MMKDNA_DATA'], path.parent.name))
    assert check_data(cfg, ('train', 'val', 'test')) == []
