"""tools/make_shapes.py: what it writes, that it writes it once, and that the training tool sends its users there."""

import re
import shlex
from dataclasses import replace

import pytest
from tiny_runs import DETECTOR, SEGMENTER, run_tool, train_argv

from mmkerneldna import datasets, launch
from mmkerneldna.datasets import DataError, ShapesSpec, check_data

TINY = ShapesSpec(train_images=3, val_images=2, min_side=96, max_side=110)


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    """The tool takes the default set, which is drawn much smaller here."""
    generate = datasets.generate_shapes

    def tiny(root, spec, track):
        generate(root, replace(TINY, scale=spec.scale), track)

    monkeypatch.setattr(datasets, 'generate_shapes', tiny)


def test_writes_the_set_once_and_says_what_is_in_it(tmp_path, capfd):
    root = tmp_path / 'deep' / 'shapes'
    assert run_tool('make_shapes.py', ['--data-root', str(root)]) == 0
    said = capfd.readouterr().out
    assert 'training: 3 images' in said and 'validation: 2 images' in said and '100%' in said
    assert said.endswith(f'the data set lies in {root}\n')
    assert len(list(root.glob('images/*/*.jpg'))) == len(list(root.glob('annotations/*/*.png'))) == 5
    times = {path: path.stat().st_mtime_ns for path in root.rglob('*')}
    assert run_tool('make_shapes.py', ['--data-root', str(root)]) == 0
    assert times == {path: path.stat().st_mtime_ns for path in root.rglob('*')}


def test_leaves_a_folder_of_something_else_alone(tmp_path, capfd):
    (tmp_path / 'mine.txt').write_text('keep')
    assert run_tool('make_shapes.py', ['--data-root', str(tmp_path)]) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith('error:')]
    assert len(errors) == 1 and str(tmp_path) in errors[0] and 'name another folder' in errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ['mine.txt']


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr('mmkerneldna.datasets.shapes.draw_scene', lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    assert 'nothing was kept' in run_tool('make_shapes.py', ['--data-root', str(tmp_path / 'shapes')])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('config', [DETECTOR, SEGMENTER])
def test_the_command_in_the_training_tools_error_makes_the_data(config, tmp_path, capfd):
    root = tmp_path / 'shapes'
    argv = train_argv(config, root, tmp_path / 'run')
    assert run_tool('train.py', argv) == 2
    (error,) = re.findall('^error: .*', capfd.readouterr().err, re.MULTILINE)
    command = shlex.split(re.search('`(.*)`', error).group(1))
    assert command[:2] == ['python', 'tools/make_shapes.py']
    cfg = launch.load_config(argv[0], dict(data_root=str(root)))
    with pytest.raises(DataError, match='does not exist'):
        check_data(cfg)
    assert run_tool('make_shapes.py', command[2:]) == 0
    assert check_data(cfg) == []
