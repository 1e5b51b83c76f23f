"""A shared kernel in the optimizer has the settings of its owner."""

import copy

import pytest
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmkerneldna.backbones import KDNAResNet
from mmkerneldna.sharing import SharingPlanError, check_paramwise, share_kernels, use_owner_settings

OPTIMIZER = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1, weight_decay=0.01))
CUSTOM = dict(custom_keys={'0.': dict(lr_mult=0.1, decay_mult=0), '2.': dict(lr_mult=10)})


def net(plan=None):
    """0 borrows from 2, so that mmengine meets the kernel first under the name of the child."""
    return share_kernels(nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in range(3))), plan or {'0': '2'})


def groups(model, cfg):
    """(lr, weight decay) by parameter; every parameter once."""
    wrapper = build_optim_wrapper(model, copy.deepcopy(cfg))
    found = [(p, (group['lr'], group['weight_decay'])) for group in wrapper.optimizer.param_groups for p in group['params']]
    assert sorted(id(p) for p, _ in found) == sorted(id(p) for p in model.parameters())
    return dict(found)


@pytest.mark.parametrize('plan', [{'0': '2'}, {'2': '0'}])
@pytest.mark.parametrize('bypass', [{}, dict(bypass_duplicate=True)])
def test_the_owners_settings_count(plan, bypass):
    model, cfg = net(plan), dict(OPTIMIZER, paramwise_cfg=dict(CUSTOM, **bypass))
    order = [name for name, _ in model.named_parameters()]
    use_owner_settings(model, cfg)
    settings = groups(model, cfg)
    expected = {'0': (0.1 * 0.1, 0), '1': (0.1, 0.01), '2': (0.1 * 10, 0.01)}
    for i in range(3):
        for name, parameter in model[i].named_parameters():
            owner = plan.get(str(i), str(i)) if name == 'weight' else str(i)
            assert settings[parameter] == pytest.approx(expected[owner]), (i, name)
    assert [name for name, _ in model.named_parameters()] == order and model[0].weight is model[2].weight


def test_a_kernel_follows_the_custom_keys_of_its_owner_in_a_resnet():
    model = KDNAResNet(50, base_channels=8)
    cfg = dict(OPTIMIZER, paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys={'layer3.1': dict(lr_mult=0.5)}))
    use_owner_settings(model, cfg)
    settings = groups(model, cfg)
    assert settings[model.layer3[2].conv2.weight] == (0.1, 0.01)
    assert settings[model.layer3[1].conv2.filter_scale][0] == settings[model.layer3[1].conv1.weight][0] == 0.05
    assert settings[model.layer3[3].conv2.gate.norm.weight] == (0.1, 0.0)


def test_nothing_is_changed_without_need():
    for model, cfg in [
        (net(), OPTIMIZER),
        (nn.Sequential(nn.Conv2d(8, 8, 3)), dict(OPTIMIZER, paramwise_cfg=CUSTOM)),
        (net(), dict(OPTIMIZER, paramwise_cfg=CUSTOM, constructor='LearningRateDecayOptimizerConstructor')),
    ]:
        before = copy.deepcopy(cfg)
        use_owner_settings(model, cfg)
        assert cfg == before


def test_the_default_constructor_is_refused_where_it_takes_the_childs_settings():
    model, cfg = net(), dict(OPTIMIZER, paramwise_cfg=dict(CUSTOM, bypass_duplicate=True))
    assert groups(model, cfg)[model[2].weight][0] == pytest.approx(0.01)  # mmengine: the child's 0.1 x, not the owner's 10 x
    with pytest.raises(
        SharingPlanError,
        match="kernel that 0 borrows by custom_keys '0.', and not by '2.' like its owner 2: "
        "set constructor='SharedKernelOptimWrapperConstructor'",
    ):
        check_paramwise(model, cfg)
    check_paramwise(model, dict(cfg, constructor='SharedKernelOptimWrapperConstructor'))
    with pytest.raises(SharingPlanError):
        use_owner_settings(model, dict(cfg, constructor='DefaultOptimWrapperConstructor'))


def test_a_kernel_whose_owner_is_gone_is_trained_as_the_childs():
    model, cfg = net(), dict(OPTIMIZER, paramwise_cfg=CUSTOM, constructor='SharedKernelOptimWrapperConstructor')
    old = model[2]
    model[2] = nn.Conv2d(8, 8, 3)
    assert groups(model, cfg)[old.weight] == pytest.approx((0.01, 0))
