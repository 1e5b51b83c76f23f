"""CostHook in real, tiny Runners: what it adds, who sees it, and that the training does not notice."""

import json
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from mmengine.runner import Runner
from mmseg.models import BaseSegmentor
from mmseg.structures import SegDataSample
from narrow import DETECTOR, narrow_config
from torch import nn

from mmkerneldna.datasets import ShapesSpec, generate_shapes
from mmkerneldna.hooks.cost_hook import CostHook
from mmkerneldna.measure.clock import Sample

COST = {
    'cost/latency_ms',
    'cost/latency_p90_ms',
    'cost/throughput_img_s',
    'cost/gmacs',
    'cost/unique_params_m',
    'cost/deployed_params_m',
    'cost/peak_memory_mb',
    'cost/height',
    'cost/width',
    'cost/batch',
    'cost/repeats',
    'cost/disturbed',
}


@MODELS.register_module()
class TinySegmenter(BaseModel):
    """BN, dropout and one conv: enough to see whether a measurement leaves traces."""

    def __init__(self):
        super().__init__(
            data_preprocessor=dict(type='mmseg.SegDataPreProcessor', mean=[127.5] * 3, std=[58.0] * 3, size=(8, 8))
        )
        self.conv = nn.Conv2d(3, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)
        self.frozen = nn.BatchNorm2d(2)

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.frozen(self.norm(self.conv(nn.functional.dropout(inputs, 0.5, self.training))))
        return dict(loss=x.square().mean()) if mode == 'loss' else x


# What the measurement asks a model for is that it is an mmseg segmenter.
BaseSegmentor.register(TinySegmenter)


@DATASETS.register_module()
class NoiseImages(torch.utils.data.Dataset):
    metainfo = dict()

    def __len__(self):
        return 4

    def __getitem__(self, index):
        random.random(), np.random.rand(), torch.rand(1)  # an augmentation that draws
        image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))
        return dict(inputs=image, data_samples=SegDataSample(metainfo=dict(ori_shape=(8, 8), img_shape=(8, 8))))


@METRICS.register_module()
class Fixed(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return dict(mIoU=42.0)


@HOOKS.register_module()
class Witness(Hook):
    """Notes, late in each training step and validation, what a disturbance would change."""

    priority = 'LOWEST'
    seen = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        draws = random.random(), np.random.rand(), torch.rand(1).item()
        self.seen.append((*draws, outputs['loss'].item(), runner.model.norm.running_mean.sum().item()))

    def after_val_epoch(self, runner, metrics=None):
        self.seen.append(tuple(m.training for m in runner.model.modules()))


def tiny_runner(work_dir, hooks, **changes):
    loader = dict(
        batch_size=2,
        num_workers=0,
        dataset=dict(type='NoiseImages'),
        sampler=dict(type='DefaultSampler', shuffle=True),
        collate_fn=dict(type='pseudo_collate'),
    )
    cfg = dict(
        model=dict(type='TinySegmenter'),
        work_dir=str(work_dir),
        train_dataloader=loader,
        val_dataloader=loader,
        test_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=3),
        val_cfg=dict(),
        test_cfg=dict(),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        val_evaluator=dict(type='Fixed'),
        test_evaluator=dict(type='Fixed'),
        custom_hooks=hooks,
        randomness=dict(seed=1),
        visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]),
        default_scope='mmseg',
        experiment_name=work_dir.name,
        **changes,
    )
    return Runner.from_cfg(Config(cfg))


def scalars(work_dir):
    lines = next(Path(work_dir).glob('*/vis_data/scalars.json')).read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_validation_metrics_reach_every_reader(tmp_path):
    keep_best = dict(type='CheckpointHook', save_best='cost/latency_ms', rule='less', interval=-1, save_last=False)
    runner = tiny_runner(tmp_path, [dict(type='CostHook', repeats=2, warmup=0)], default_hooks=dict(checkpoint=keep_best))
    runner.train()
    validations = [line for line in scalars(tmp_path) if 'mIoU' in line]
    assert len(validations) == 3
    for line in validations:
        assert set(line) >= COST and line['mIoU'] == 42
        assert (line['cost/height'], line['cost/width'], line['cost/batch']) == (8, 8, 1)
        assert line['cost/gmacs'] == 2 * 3 * 9 * 64 / 1e9
        assert line['cost/unique_params_m'] == (2 * 3 * 9 + 2 + 8) / 1e6
    assert list(tmp_path.glob('best_cost*.pth'))


def test_test_metrics_are_returned_and_written(tmp_path):
    runner = tiny_runner(tmp_path, [dict(type='CostHook', size=(12, 16), batch=3, repeats=2, warmup=0)])
    metrics = runner.test()
    assert set(metrics) >= COST and metrics['cost/batch'] == 3
    stamp = Path(runner.log_dir)
    written = json.loads((stamp / f'{stamp.name}.json').read_text())
    assert (written['cost/height'], written['cost/width']) == (12, 16)
    kept = json.loads((stamp / 'cost.json').read_text())
    assert kept['environment']['torch'] == torch.__version__ and kept['cost']['cost/gmacs'] == written['cost/gmacs']


def test_training_does_not_notice(tmp_path):
    traces = []
    for name, hooks in (('without', []), ('with', [dict(type='CostHook', repeats=2, warmup=1)])):
        Witness.seen = []
        tiny_runner(tmp_path / name, [*hooks, dict(type='Witness')]).train()
        traces.append(Witness.seen)
    assert traces[0] == traces[1] and len(traces[0]) == 9


def test_a_failing_measurement_is_a_warning(tmp_path, monkeypatch):
    def no_memory(*args):
        raise torch.OutOfMemoryError('CUDA out of memory')

    monkeypatch.setattr('mmkerneldna.hooks.cost_hook.inference_call', no_memory)
    runner = tiny_runner(tmp_path, [dict(type='CostHook')])
    assert runner.val() == dict(mIoU=42.0)
    assert 'could not be measured, OOM: CUDA out of memory' in next(Path(runner.log_dir).glob('*.log')).read_text()


def test_complexity_is_counted_once(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr('mmkerneldna.hooks.cost_hook.complexity_row', lambda model, size: calls.append(size) or dict(gmacs=1.0))
    tiny_runner(tmp_path, [dict(type='CostHook', repeats=1, warmup=0)]).train()
    assert calls == [(8, 8)]


class Clock:
    """Every timed call takes so many seconds, and shows a disturbance where one is given."""

    def __init__(self, monkeypatch, seconds, reason=''):
        self.now = 0.0

        def sample(call, device):
            call()
            self.now += seconds
            return Sample(1e3 * seconds, 1e3 * seconds)

        monkeypatch.setattr('mmkerneldna.measure.latency.monotonic', lambda: self.now)
        monkeypatch.setattr('mmkerneldna.measure.latency.sample', sample)
        monkeypatch.setattr('mmkerneldna.measure.latency.disturbance', lambda samples, device: reason)


@pytest.mark.parametrize('seconds, repeats, total', [(0.1, 10, 1.3), (5, 2, 20), (18, 1, 36)])
def test_a_slow_model_gets_fewer_repeats(tmp_path, monkeypatch, seconds, repeats, total):
    """Ten repeats of 18 s would take four minutes."""
    clock = Clock(monkeypatch, seconds)
    runner = tiny_runner(tmp_path, [dict(type='CostHook')])
    metrics = runner.val()
    assert (metrics['cost/repeats'], metrics['cost/latency_ms'], clock.now) == (repeats, 1e3 * seconds, pytest.approx(total))
    said = next(Path(runner.log_dir).glob('*.log')).read_text()
    assert (f'median of {repeats} calls: 10 do not fit into budget_s=20' in said) == (repeats < 10)


def test_a_disturbed_measurement_is_marked(tmp_path, monkeypatch):
    Clock(monkeypatch, 0.1, 'threads waited')
    runner = tiny_runner(tmp_path, [dict(type='CostHook')])
    assert runner.val()['cost/disturbed'] == 1
    assert 'not what an idle machine would show: threads waited' in next(Path(runner.log_dir).glob('*.log')).read_text()
    assert json.loads((Path(runner.log_dir) / 'cost.json').read_text())['disturbed'] == 'threads waited'


def test_comes_before_the_hook_that_hands_metrics_to_the_loggers(tmp_path):
    runner = tiny_runner(tmp_path, [dict(type='CostHook')])
    names = [type(hook).__name__ for hook in runner.hooks]
    assert names.index('CostHook') < names.index('RuntimeInfoHook')


@pytest.mark.parametrize('bad', [dict(batch=0), dict(repeats=0), dict(warmup=-1), dict(budget_s=0)])
def test_bad_arguments(bad):
    with pytest.raises(ValueError, match='at least|positive'):
        CostHook(**bad)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    spec = ShapesSpec(train_images=1, val_images=2, min_side=96, max_side=96)
    return generate_shapes(tmp_path_factory.mktemp('hook') / 'shapes', spec)


def test_detector_without_any_detection_scores_zero(images, tmp_path):
    cfg = narrow_config(DETECTOR)
    cfg.merge_from_dict({'model.test_cfg.rcnn.score_thr': 1.1})
    for name in ('val', 'test'):
        cfg[f'{name}_dataloader'].dataset.data_root = f'{images}/'
        cfg[f'{name}_evaluator'].ann_file = f'{images}/annotations/instances_validation.json'
    cfg.train_dataloader.dataset.update(data_root=f'{images}/')
    cfg.train_dataloader.batch_size = 1
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    cfg.default_hooks.checkpoint.update(save_best='coco/bbox_mAP')
    cfg.update(work_dir=str(tmp_path), custom_hooks=[dict(type='CostHook', repeats=1, warmup=0)], randomness=dict(seed=0))
    Runner.from_cfg(cfg).train()
    line = scalars(tmp_path)[-1]
    assert line['coco/bbox_mAP'] == line['coco/bbox_mAP_50'] == 0 and set(line) >= COST
    assert list(tmp_path.glob('best_coco_bbox_mAP_epoch_1.pth'))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_on_cuda(tmp_path):
    metrics = tiny_runner(tmp_path, [dict(type='CostHook', repeats=2, warmup=1)]).val()
    assert set(metrics) >= COST


def complete_on_rank(rank, folder):
    """What one process of a distributed evaluation does."""
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    log_dir = Path(folder) / f'rank{rank}'
    log_dir.mkdir()
    dataset = NoiseImages() if rank == 0 else None  # whoever measures reads an image
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset), evaluator=SimpleNamespace(metrics=[]), fp16=False)
    metrics = dict(mIoU=42.0)
    CostHook(repeats=2, warmup=0)._complete(SimpleNamespace(model=TinySegmenter(), log_dir=str(log_dir)), metrics, loop)
    (log_dir / 'metrics.json').write_text(json.dumps(metrics))
    torch.distributed.destroy_process_group()


def test_rank_0_measures_and_all_ranks_get_the_same(tmp_path):
    torch.multiprocessing.spawn(complete_on_rank, args=(str(tmp_path),), nprocs=2)
    first, second = (json.loads((tmp_path / f'rank{rank}' / 'metrics.json').read_text()) for rank in (0, 1))
    assert first == second and set(first) >= COST
    assert (tmp_path / 'rank0' / 'cost.json').is_file() and not (tmp_path / 'rank1' / 'cost.json').exists()
