"""Errors of tools/train.py: one line, before training, exit status 2."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from tiny_runs import DETECTOR, ROOT, SEGMENTER, TEACHERS, narrow_config, run_tool, train_argv

from mmkerneldna import launch
from mmkerneldna.errors import UsageError, nearest_types
from mmkerneldna.launch import preflight

BACKBONE = 'model.backbone.'
MISTAKES = {
    'misspelt backbone': (DETECTOR, [BACKBONE + 'type=KDNAResnet'], r"type='KDNAResnet' is not registered.*KDNAResNet"),
    'misspelt head in a segmenter': (SEGMENTER, ['model.decode_head.type=UPerhead'], r"'UPerhead'.*nearest: UPerHead"),
    'misspelt argument': (DETECTOR, [BACKBONE + 'dept=18'], r"unexpected keyword argument 'dept'"),
    'unknown depth': (DETECTOR, [BACKBONE + 'depth=19'], r'no depth 19; it has 18, 34, 50, 101'),
    'misspelt plan': (DETECTOR, [BACKBONE + 'sharing=resnet81'], r'resnet81.*resnet18'),
    'plan of another net': (DETECTOR, [BACKBONE + 'sharing=mobilenet_v2'], r'has no layer'),
    'missing annotation file': (DETECTOR, ['train_dataloader.dataset.ann_file=annotations/none.json'], r'none\.json'),
    'missing image folder': (SEGMENTER, ['train_dataloader.dataset.data_prefix.img_path=nowhere'], r'nowhere'),
    'missing data root': (DETECTOR, ['data_root=/nonexistent/shapes'], r'/nonexistent/shapes'),
    'other number of classes, detector': (
        DETECTOR,
        ['model.roi_head.bbox_head.num_classes=9'],
        r'model\.roi_head\.bbox_head\.num_classes is 9.* has 6 classes',
    ),
    'other number of classes, segmenter': (
        SEGMENTER,
        ['model.decode_head.num_classes=19'],
        r'model\.decode_head\.num_classes is 19.* has 7 classes',
    ),
    'misspelt optimizer': (DETECTOR, ['optim_wrapper.optimizer.type=AdmW'], r"type='AdmW' is not registered.*AdamW"),
    'schedule of less than an iteration': (
        DETECTOR,
        ['param_scheduler.1.end=0.1'],
        r'param_scheduler\.1 .*end=0\.1 .*max_epochs=3 of 3 iterations: .*; set param_',
    ),
    'load_from a missing file': (DETECTOR, ['load_from=/nonexistent/a.pth'], r'/nonexistent/a\.pth does not exist'),
}


def failure(argv, capfd):
    """Exit status 2 and one line on stderr that starts with ``error:``."""
    assert run_tool('train.py', argv) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith('error:')]
    assert len(errors) == 1
    return errors[0]


@pytest.mark.parametrize('mistake', MISTAKES)
def test_one_line_before_training(mistake, shapes, tmp_path, capfd):
    config, options, pattern = MISTAKES[mistake]
    line = failure(train_argv(config, shapes, tmp_path, options=options), capfd)
    assert re.search(pattern, line), line
    assert not list(tmp_path.glob('*.pth'))


def test_schedule_without_a_step_is_refused_before_anything_is_written(shapes, tmp_path, capfd):
    line = failure(train_argv(SEGMENTER, shapes, tmp_path, options=['param_scheduler.0.begin=40']), capfd)
    assert re.search(
        r'param_scheduler\.0 \(LinearLR\) .*begin=40, end=40.*max_iters=6: .*; set param_scheduler\.0\.end '
        r'above 40',
        line,
    ), line
    assert not list(tmp_path.iterdir())


def test_missing_config_names_the_nearest(tmp_path, capfd):
    line = failure([str(ROOT / 'configs/shapes/faster-rcnn_kdna-r81_fpn_shapes.py')], capfd)
    assert 'does not exist' in line and 'faster-rcnn_kdna-r18_fpn_shapes.py' in line


def test_base_config_is_refused(capfd):
    assert 'has no model' in failure([str(ROOT / 'configs/_base_/datasets/shapes_detection.py')], capfd)


def test_work_dir_that_is_not_writable(shapes, tmp_path, capfd):
    (tmp_path / 'file').write_text('')
    line = failure(train_argv(DETECTOR, shapes, tmp_path / 'file' / 'work'), capfd)
    assert 'not writable' in line and '--work-dir' in line


def test_resume_from_weights_alone(shapes, tmp_path, capfd):
    torch.save(dict(state_dict={}), tmp_path / 'weights.pth')
    assert 'no optimizer state' in failure(train_argv(DETECTOR, shapes, tmp_path, '--resume', tmp_path / 'weights.pth'), capfd)


def test_auto_scale_lr_needs_a_base(shapes, tmp_path, capfd):
    assert 'base_batch_size' in failure(train_argv(DETECTOR, shapes, tmp_path, '--auto-scale-lr'), capfd)


@pytest.mark.skipif(torch.cuda.is_available(), reason='needs a machine without CUDA')
def test_amp_needs_a_gpu(shapes, tmp_path, capfd):
    assert 'needs a CUDA device' in failure(train_argv(DETECTOR, shapes, tmp_path, '--amp'), capfd)


@pytest.mark.parametrize('depth, status', [(18, 0), (34, 2)])
def test_a_static_checkpoint_is_derived_if_it_is_of_the_family(shapes, tmp_path, capfd, depth, status):
    """A static net's weights become the KernelDNA net's; a deeper one's are one error."""
    init_default_scope('mmdet')
    cfg = narrow_config(TEACHERS[DETECTOR], like=DETECTOR).model
    cfg.backbone.depth = depth
    torch.save(dict(state_dict=MODELS.build(cfg).state_dict()), tmp_path / 'static.pth')
    argv = train_argv(DETECTOR, shapes, tmp_path / 'work', '--max-epochs', 1, options=[f'load_from={tmp_path / "static.pth"}'])
    assert run_tool('train.py', argv) == status
    if status:
        assert re.match(r'error: .*blocks in the source', capfd.readouterr().err)
    else:
        assert 'derived from dense weights: 6 children' in ''.join(f.read_text() for f in tmp_path.rglob('*.log'))


def test_nearest_types_looks_into_child_registries():
    assert 'KDNAResNet' in nearest_types('KDNAResNt', 'model')
    assert 'UPerHead' in nearest_types('UPerHed', 'model')
    assert nearest_types('zzzzzz', 'model') == []


def test_sync_bn_becomes_bn_on_one_process():
    cfg = Config.fromfile(ROOT / 'configs/fcn/fcn_kdna-r18-d8_4xb4-160k_ade20k-512x512.py')
    cfg.launcher = 'none'
    assert 'SyncBN' in str(cfg.model)
    launch.unsync_batch_norm(cfg)
    assert 'SyncBN' not in str(cfg.model) and "'BN'" in str(cfg.model)


def test_work_dir_follows_the_config_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = Config(dict())
    launch.set_work_dir(cfg, 'configs/a/some_config.py', None)
    assert Path(cfg.work_dir) == Path('work_dirs/some_config') and (tmp_path / cfg.work_dir).is_dir()


def test_amp_refuses_another_wrapper():
    with pytest.raises(UsageError, match='ApexOptimWrapper'):
        launch.use_amp(Config(dict(optim_wrapper=dict(type='ApexOptimWrapper'))))


def test_frozen_random_stages_are_reported(monkeypatch):
    cfg = Config.fromfile(ROOT / 'configs/mask_rcnn/mask-rcnn_kdna-r50_fpn_1x_coco.py')
    said = []
    monkeypatch.setattr(preflight, 'print_log', lambda message, **kwargs: said.append(message))
    preflight.warn_frozen_random(cfg)  # ImageNet's weights
    cfg.model.backbone.init_cfg = None
    preflight.warn_frozen_random(cfg)
    assert len(said) == 1 and 'first 1 stage' in said[0]
