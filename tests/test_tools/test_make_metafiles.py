import sys

import yaml
from tiny_runs import ROOT

sys.path.insert(0, str(ROOT / 'tools'))
from make_metafiles import metafiles


def test_metafiles_are_up_to_date():
    """A new config needs `python tools/make_metafiles.py`."""
    for path, content in metafiles(ROOT).items():
        assert path.read_text() == content, path


def test_every_config_is_listed_without_a_score():
    listed = set()
    for meta in yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']:
        for model in yaml.safe_load((ROOT / meta).read_text())['Models']:
            listed.add(model['Config'])
            assert 'Results' not in model
    assert listed == {str(path.relative_to(ROOT)) for path in (ROOT / 'configs').glob('[!_]*/*.py')}
