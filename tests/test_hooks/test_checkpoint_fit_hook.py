from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmkerneldna.errors import CheckpointError
from mmkerneldna.hooks.checkpoint_fit_hook import CheckpointFitHook


class Masked(nn.Module):
    """A parameter, and a mask as attention layers keep one."""

    def __init__(self, init_cfg=None):
        super().__init__()
        self.init_cfg = init_cfg
        self.fc = nn.Linear(2, 2)
        self.register_buffer('mask', torch.full((2, 2), -float('inf')).triu(1))


def runner(model):
    return SimpleNamespace(model=model, _load_from='a.pth', _resume=False)


@pytest.mark.parametrize('value', ['nan', 'inf', '-inf'])
@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_load_from_a_diverged_training(value, prefix):
    state = {prefix + key: entry.clone() for key, entry in Masked().state_dict().items()}
    state[prefix + 'fc.bias'][1] = float(value)
    with pytest.raises(CheckpointError, match=r'a.pth is of a training that diverged: 1 of 3 .*\(fc.bias\); take an earlier'):
        CheckpointFitHook().after_load_checkpoint(runner(Masked()), dict(state_dict=state))


def test_a_mask_may_hold_minus_infinity():
    model = Masked()
    CheckpointFitHook().after_load_checkpoint(runner(model), dict(state_dict=model.state_dict()))


@pytest.mark.parametrize(
    'init_cfg',
    [
        dict(type='Pretrained', checkpoint='torchvision://net'),
        [dict(type='Normal'), dict(type='Pretrained', checkpoint='torchvision://net')],
    ],
)
def test_init_cfg_from_a_diverged_training(init_cfg):
    model = nn.Sequential(Masked(init_cfg))
    CheckpointFitHook().before_train(runner(model))
    with torch.no_grad():
        model[0].fc.weight[0, 0] = float('nan')
    with pytest.raises(CheckpointError, match=r'starts from \(torchvision://net\) .*0.fc.weight'):
        CheckpointFitHook().before_train(runner(model))
