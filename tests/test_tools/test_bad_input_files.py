"""Bad input to the tools that read and write checkpoints, exported files, pictures and data sets."""

import pytest
from bad_input import CHECKPOINT, command_line

EXPORT = ['export.py', '{det}', CHECKPOINT, '--format', 'onnx']
INFER = ['infer.py', '--out', '{tmp}/out']
REDUNDANCY = ['redundancy.py', '{det}', CHECKPOINT, '--out', '{tmp}/out']
DERIVE = ['derive.py', '{det}', '--from', CHECKPOINT, '--out', '{tmp}/out.pth']
CONVERT = ['convert_checkpoint.py', 'kdna-resnet18']

#: command line, and what the error line must say
CASES = [
    (['export.py', '{place}/notes.txt', CHECKPOINT, '--format', 'onnx'], r'config \S+notes\.txt cannot be read'),
    (INFER + ['{det}'], r'must be followed by its checkpoint'),
    (INFER + ['{place}/notes.txt'], r'notes\.txt is no config'),
    (INFER + ['{det}', CHECKPOINT], r'no picture, video or folder is named'),
    (INFER + ['{det}', CHECKPOINT, '{place}/nowhere.jpg'], r'nowhere\.jpg'),
    (INFER + ['{det}', CHECKPOINT, '{place}', '--score-thr', '7'], r"argument --score-thr: '7' is not"),
    (INFER + ['{det}', CHECKPOINT, '{place}', '--device', 'cuda:7'], r"argument --device: 'cuda:7' cannot be used here"),
    (DERIVE + ['--steps', '-1'], r"argument --steps: '-1' is not"),
    (DERIVE + ['--batch', '0'], r"argument --batch: '0' is not"),
    (DERIVE + ['--size', '0', '64'], r"argument --size: '0' is not"),
    (DERIVE + ['--lr', 'nan'], r"argument --lr: 'nan' is not a finite number"),
    (DERIVE + ['--seed', '-1'], r"argument --seed: '-1' is not"),
    (DERIVE + ['--device', 'cuda:7'], r"argument --device: 'cuda:7' cannot be used here"),
    (['redundancy.py', '{place}/notes.txt', CHECKPOINT, '--out', '{tmp}/out'], r'notes\.txt cannot be read'),
    (REDUNDANCY + ['--validate', '20'], r'--validate 20 needs images: add --images DIR or --data'),
    (REDUNDANCY + ['--validate', '2'], r"argument --validate: '2' is not a whole number of at least 3"),
    (REDUNDANCY + ['--batches', '0'], r"argument --batches: '0' is not"),
    (['redundancy.py', '{det}', '{place}/empty.pth', '--out', '{tmp}/out'], r'empty\.pth is cut short'),
    (REDUNDANCY, r'of another family'),
    (['derive.py', '{place}/notes.txt', '--from', CHECKPOINT, '--out', '{tmp}/out.pth'], r'notes\.txt cannot be read'),
    (['derive.py', '{det}', '--from', '{place}/empty.pth', '--out', '{tmp}/out.pth'], r'empty\.pth is cut short'),
    (EXPORT + ['--size', '0x64'], r"argument --size: .*'0x64'"),
    (EXPORT + ['--out', '{place}'], r'is a folder'),
    (EXPORT + ['--out', '{place}/nowhere/net.onnx'], r'folder \S+nowhere does not exist'),
    (['export.py', '{det}', '{place}', '--format', 'onnx'], r'checkpoint \S+ is a folder'),
    (['export.py', '{det}', '{place}/other.pth', '--format', 'onnx'], r'does not fit FasterRCNN'),
    (CONVERT + ['{place}', '{tmp}/out.pth'], r'checkpoint \S+ is a folder'),
    (CONVERT + ['{place}/empty.pth', '{tmp}/out.pth'], r'empty\.pth is cut short, damaged'),
    (CONVERT + ['{place}/other.pth', '{tmp}/out.pth'], r'other\.pth: '),
    (CONVERT + ['{place}/other.pth', '{place}/notes.txt'], r'notes\.txt exists'),
    (CONVERT + ['{place}/other.pth', '{tmp}/nowhere/out.pth'], r'folder \S+nowhere does not exist'),
    (['convert_checkpoint.py', 'resnet19', 'a', 'b'], r"invalid choice: 'resnet19'"),
    (['make_shapes.py', '--data-root', '{place}/notes.txt'], r'notes\.txt .*no dataset\.json'),
    (['make_shapes.py', '--data-root', '{place}'], r'holds no generated shapes set'),
    (['make_shapes.py', '--data-root', '{place}/spoilt_shapes'], r'spoilt_shapes is damaged: dataset\.json'),
    (['make_shapes.py', '--data-root', '{tmp}/shapes', '--scale', '0'], r'shapes of scale 0\.0: it must lie in \(0, 1\]'),
    (
        ['show_routing.py', '{place}/notes.txt', CHECKPOINT, '{shapes}/images/validation', '--out', '{tmp}/out'],
        r'notes\.txt cannot be read',
    ),
    (
        ['show_routing.py', '{det}', '{place}/other.pth', '{shapes}/images/validation', '--keep', '0.5', '--out', '{tmp}/out'],
        r'does not fit FasterRCNN',
    ),
    (
        ['show_trees.py', '{place}/notes.txt', CHECKPOINT, '{shapes}/images/validation', '--out', '{tmp}/out'],
        r'notes\.txt cannot be read',
    ),
    (
        ['show_trees.py', '{det}', '{place}/empty.pth', '{shapes}/images/validation', '--out', '{tmp}/out'],
        r'empty\.pth is cut short',
    ),
    (['doctor.py', '--nonsense'], r'unrecognized arguments: --nonsense'),
    (['demo.py', '--nonsense'], r'unrecognized arguments: --nonsense'),
]


@pytest.mark.parametrize('command, words', CASES, ids=command_line)
def test_tools_for_files_refuse_in_one_line(command, words, refuses):
    refuses(command, words)
