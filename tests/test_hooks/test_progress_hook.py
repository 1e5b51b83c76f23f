"""ProgressHook in runs of mmengine's own Runner on a toy model."""

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner

from mmkerneldna.hooks.progress_hook import ProgressHook


class Toy(BaseModel):
    """A loss that can be minimised."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, inputs, mode='tensor'):
        return dict(loss=(self.weight * inputs).pow(2).mean()) if mode == 'loss' else [inputs]


class Toys(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return dict(inputs=torch.ones(1))


class Fixed(BaseMetric):
    """mIoU 50."""

    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        return {'mIoU': 50.0}


class Display:
    def __init__(self):
        self.steps, self.said = [], []

    def step(self, step):
        self.steps.append(step)

    def say(self, text, style=None):
        self.said.append(text)


def run(tmp_path, train_cfg):
    still = dict(
        batch_size=2,
        num_workers=0,
        dataset=Toys(),
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
    )
    endless = dict(type='InfiniteSampler', shuffle=False)
    loader = dict(still, sampler=endless) if 'max_iters' in train_cfg else still
    runner = Runner(
        Toy(),
        str(tmp_path),
        train_dataloader=loader,
        val_dataloader=still,
        train_cfg=train_cfg,
        val_cfg=dict(),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        val_evaluator=[Fixed()],
        test_dataloader=still,
        test_cfg=dict(),
        test_evaluator=[Fixed()],
        experiment_name=tmp_path.name,
    )
    display = Display()
    runner.register_hook(ProgressHook(display))
    return runner, display


@pytest.mark.parametrize(
    'train_cfg, said',
    [
        (dict(by_epoch=True, max_epochs=2, val_interval=1), ['  epoch 1: mIoU 50.0', '  epoch 2: mIoU 50.0']),
        (dict(by_epoch=False, max_iters=6, val_interval=3), ['  iteration 3: mIoU 50.0', '  iteration 6: mIoU 50.0']),
    ],
)
def test_a_training(train_cfg, said, tmp_path):
    runner, display = run(tmp_path, train_cfg)
    runner.train()
    assert display.said == said
    train = [step for step in display.steps if step.phase == 'train']
    assert [(step.done, step.total) for step in train] == [(i, 6) for i in range(1, 7)]
    assert train[0].loss == pytest.approx(1.0) and train[-1].loss < 1 and train[-1].seconds_left == 0
    assert [step.score for step in train] == [''] * 3 + ['mIoU 50.0'] * 3
    assert [step.done for step in display.steps if step.phase == 'val'] == [1, 2, 3] * 2


def test_a_test(tmp_path):
    runner, display = run(tmp_path, dict(by_epoch=True, max_epochs=1))
    runner.test()
    assert display.said == ['  test: mIoU 50.0'] and [step.phase for step in display.steps] == ['test'] * 3
