import pytest
from mmengine.config import Config, ConfigDict

from mmkerneldna.distill import parse_terms
from mmkerneldna.errors import UsageError
from mmkerneldna.launch.distill_from import choose_losses, use_distillation

FPN = dict(type='FPN', out_channels=256)
CASES = {
    'two stages': (dict(neck=FPN, rpn_head={}, roi_head={}), ('PKD', 'levels', 6)),
    'one stage': (dict(neck=FPN, bbox_head={}), ('PKD', 'levels', 10)),
    'a pyramid among necks': (dict(neck=[dict(type='ChannelMapper'), FPN], bbox_head={}), ('PKD', 'levels', 10)),
    'a wrapped pyramid': (dict(neck=dict(type='KernelDNA', module=FPN), bbox_head={}), ('PKD', 'levels', 10)),
    'no pyramid': (dict(neck=dict(type='ChannelMapper'), bbox_head={}), ('MSE', 'levels', 1)),
    'no neck': (dict(bbox_head={}), ('MSE', 'levels', 1)),
    'segmenter': (dict(neck=FPN, decode_head={}), ('CWD', 'logits', 3)),
}


@pytest.mark.parametrize('case', CASES)
def test_losses_follow_the_task(case):
    model, expected = CASES[case]
    (term,) = parse_terms(choose_losses(ConfigDict(model)))
    assert (term.kind, term.on, term.weight) == expected


def test_the_model_of_a_config_gets_a_teacher():
    cfg = Config(dict(model=dict(type='FCN', decode_head=dict(num_classes=3))))
    use_distillation(cfg, None)
    assert cfg.model.type == 'FCN' and 'custom_imports' not in cfg
    use_distillation(cfg, ['a.py', 'a.pth'])
    assert cfg.model.student.type == 'FCN' and cfg.model.teacher == dict(cfg='a.py', checkpoint='a.pth')
    assert cfg.custom_imports.imports == ['mmkerneldna']
    with pytest.raises(UsageError, match='has a teacher already'):
        use_distillation(cfg, ['a.py', 'a.pth'])
