"""Bad input to the tools that measure, compare and report."""

import pytest
from bad_input import CHECKPOINT, command_line

BENCHMARK = ['benchmark.py', '{det}', '--scope', 'backbone', '--size', '64', '--out-dir', '{tmp}']
COMPARE = ['compare.py', '{det}', '--work-dir', '{tmp}/compare', '--cfg-options', 'data_root={shapes}']

#: command line, and what the error line must say
CASES = [
    (['benchmark.py', '{place}/notes.txt'], r'config \S+notes\.txt cannot be read'),
    (['compare.py', '{place}/raises.py', '--work-dir', '{tmp}'], r'config \S+raises\.py cannot be read'),
    (BENCHMARK + ['--batch', '0'], r"argument --batch: '0' is not a whole number of at least 1"),
    (BENCHMARK + ['--batch', 'two'], r"argument --batch: 'two' is not"),
    (BENCHMARK + ['--repeats', '0'], r"argument --repeats: '0' is not"),
    (BENCHMARK + ['--warmup', '-1'], r"argument --warmup: '-1' is not"),
    (BENCHMARK + ['--threads', '0'], r"argument --threads: '0' is not"),
    (BENCHMARK + ['--device', 'cuda:7'], r"argument --device: 'cuda:7' cannot be used here"),
    (BENCHMARK + ['--device', 'toaster'], r"argument --device: 'toaster' cannot be used here"),
    (BENCHMARK + ['--device', 'meta'], r"argument --device: 'meta' cannot be used here"),
    (BENCHMARK + ['--size', '0x64'], r"'0x64'"),
    (BENCHMARK + ['--out-dir', '{place}/notes.txt'], r'folder \S+notes\.txt is not writable .*--out-dir'),
    (['benchmark.py', '{det}', '{det}'], r'two configs have one name'),
    (COMPARE + ['--seeds', '-1'], r"argument --seeds: '-1' is not"),
    (COMPARE + ['--seeds', 'x'], r"argument --seeds: 'x' is not"),
    (COMPARE + ['--batch', '0'], r"argument --batch: '0' is not"),
    (COMPARE + ['--size', 'large'], r"'large'"),
    (COMPARE + ['--device', 'cuda:7'], r"argument --device: 'cuda:7' cannot be used here"),
    (COMPARE + ['--variant', 'nonsense'], r"no variant is named 'nonsense'"),
    (['compare.py', '{det}', '--work-dir', '{place}/notes.txt'], r'folder \S+notes\.txt is not writable .*--work-dir'),
    (['benchmark_deploy.py', 'backbone', '--batch', '0'], r"argument --batch: '0' is not"),
    (['benchmark_deploy.py', 'backbone', '--device', 'cuda:7'], r"argument --device: 'cuda:7' cannot be used here"),
    (['benchmark_deploy.py', 'backbone', '--size', 'large'], r"'large'"),
    (['benchmark_per_sample.py', '--batches', '-1'], r"argument --batches: '-1' is not"),
    (['benchmark_per_sample.py', '--repeats', '0'], r"argument --repeats: '0' is not"),
    (['report.py', '{place}/nowhere'], r'work_dir \S+nowhere does not exist'),
    (['report.py', '{place}/notes.txt'], r'work_dir \S+notes\.txt is a file'),
    (['report.py', '{place}/spoilt_shapes'], r'holds no run'),
    (['report.py', '{place}/run', '--out-dir', '{place}/notes.txt'], r'folder \S+notes\.txt is not writable'),
    (['coverage.py', '--out', '{place}'], r'--out \S+ is a folder'),
    (['coverage.py', '--out', '{place}/notes.txt/coverage.md'], r'folder \S+notes\.txt is not writable .*--out'),
    (['coverage.py', '--out', '{tmp}/coverage.md', '--max-params', '-1'], r"argument --max-params: '-1' is not"),
    (['coverage.py', '--folders', 'mmdet/nowhere'], r'--folders mmdet/nowhere: no such folder'),
    (['coverage.py', '--variants', 'nonsense'], r"invalid choice: 'nonsense'"),
    (['benchmark_routing.py', '--rows', 'nothing'], r"invalid choice: 'nothing'"),
    (['benchmark_routing.py', '--repeats', '0'], r"argument --repeats: '0' is not"),
    (['benchmark_tokens.py', '--rows', 'nothing'], r"invalid choice: 'nothing'"),
    (['benchmark_tokens.py', '--threads', '0'], r"argument --threads: '0' is not"),
    (['formats.py', '{det}', '{place}/nowhere.pth', '--out-dir', '{tmp}/out'], r'nowhere\.pth does not exist'),
    (['formats.py', '{det}', CHECKPOINT, '--formats', 'tensorrt'], r"invalid choice: 'tensorrt'"),
    (['formats.py', '{det}', CHECKPOINT, '--calib', '0'], r"argument --calib: '0' is not"),
    (['formats.py', '{place}/notes.txt', CHECKPOINT, '--out-dir', '{tmp}/out'], r'notes\.txt cannot be read'),
    (['sweep.py', '{place}/notes.txt', CHECKPOINT, '--out', '{tmp}/out'], r'notes\.txt cannot be read'),
    (['sweep.py', '{det}', CHECKPOINT, '--keep', '1.5', '--out', '{tmp}/out'], r'keep=1\.5 must lie in \(0, 1\]'),
]


@pytest.mark.parametrize('command, words', CASES, ids=command_line)
def test_measuring_refuses_in_one_line(command, words, refuses):
    refuses(command, words)
