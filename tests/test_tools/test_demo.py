"""The demo's bookkeeping: what it runs, what it skips, what makes it start anew. The tools it calls are replaced."""
import importlib.util
import json
from pathlib import Path

import pytest

from mmkerneldna.datasets import ShapesSpec, generate_shapes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def demo(monkeypatch):
    spec = importlib.util.spec_from_file_location('demo', ROOT / 'tools/demo.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.calls = []

    def run_tool(tool, *arguments):
        module.calls.append((tool, *map(str, arguments)))
        if tool == 'train.py':
            (Path(arguments[2]) / 'last_checkpoint').write_text('epoch_8.pth')

    monkeypatch.setattr(module, 'run_tool', run_tool)
    return module


@pytest.fixture
def data(tmp_path):
    return generate_shapes(tmp_path / 'shapes', ShapesSpec(train_images=1, val_images=1, min_side=96, max_side=96))


def test_trains_then_tests_and_does_neither_again(demo, data, tmp_path):
    work_dir = tmp_path / 'run'
    demo.train_and_test(demo.RUNS[0], work_dir, data)
    train, test = demo.calls
    assert train[0] == 'train.py' and '--resume' in train and train[-1] == f'data_root={data}'
    assert test[0] == 'test.py' and test[2] == 'epoch_8.pth'
    demo.train_and_test(demo.RUNS[0], work_dir, data)
    assert len(demo.calls) == 2


def test_an_interrupted_run_is_resumed_with_its_files(demo, data, tmp_path, monkeypatch):
    work_dir = tmp_path / 'run'

    def interrupt(tool, *arguments):
        (work_dir / 'epoch_3.pth').write_text('')
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo, 'run_tool', interrupt)
        with pytest.raises(KeyboardInterrupt):
            demo.train_and_test(demo.RUNS[0], work_dir, data)
    demo.train_and_test(demo.RUNS[0], work_dir, data)
    assert [call[0] for call in demo.calls] == ['train.py', 'test.py'] and (work_dir / 'epoch_3.pth').exists()


def test_other_data_start_the_run_anew(demo, data, tmp_path):
    work_dir = tmp_path / 'run'
    demo.train_and_test(demo.RUNS[0], work_dir, data)
    (work_dir / 'old.pth').write_text('')
    manifest = data / 'dataset.json'
    manifest.write_text(manifest.read_text().replace('"seed": 0', '"seed": 1'))
    demo.train_and_test(demo.RUNS[0], work_dir, data)
    assert len(demo.calls) == 4 and not (work_dir / 'old.pth').exists()
    assert json.loads((work_dir / 'demo.json').read_text())['finished']


def test_every_run_is_a_config_and_static_precedes_kerneldna(demo):
    assert all((ROOT / 'configs/shapes' / f'{name}.py').is_file() for name in demo.RUNS)
    assert [name.replace('kdna-', '') for name in demo.RUNS[1::2]] == list(demo.RUNS[::2])


def test_a_failing_tool_ends_the_demo_in_one_line(monkeypatch):
    spec = importlib.util.spec_from_file_location('demo', ROOT / 'tools/demo.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, 'ROOT', ROOT / 'nowhere')
    with pytest.raises(SystemExit, match='tools/train.py x.py ended with status 2'):
        module.run_tool('train.py', 'x.py')
