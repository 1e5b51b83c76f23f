"""tools/export.py: the file against the trained model itself, and what it refuses.

A pt2 file takes half a minute to compile; tests/test_deploy has one.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from tiny_runs import run_tool
from torch.nn.modules.batchnorm import _BatchNorm

from mmkerneldna.deploy.end2end.export import generated_images
from mmkerneldna.deploy.file_meta import read_meta
from mmkerneldna.layers import ChildConv2d

CONFIG = """
_base_ = 'mmkerneldna::shapes/upernet_kdna-r18_shapes.py'
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    backbone=dict(base_channels=8),
    decode_head=dict(in_channels=[8, 16, 32, 64], channels=8),
    auxiliary_head=dict(in_channels=32, channels=8))
"""
SIZE = (64, 96)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Folder with config and checkpoint, and the net: eight channels wide, statistics and modulations not neutral."""
    folder = tmp_path_factory.mktemp('export')
    (folder / 'small.py').write_text(CONFIG)
    init_default_scope('mmseg')
    torch.manual_seed(0)
    net = MODELS.build(Config.fromfile(folder / 'small.py').model).eval()
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, ChildConv2d):
            torch.nn.init.normal_(module.filter_scale, 0, 0.3)
            torch.nn.init.normal_(module.spatial_scale, 0, 0.3)
    assert sum(isinstance(module, ChildConv2d) for module in net.modules()) == 6
    torch.save(dict(state_dict=net.state_dict(), meta=dict(epoch=1)), folder / 'epoch_1.pth')
    return folder, net


def export(folder, *flags, checkpoint='epoch_1.pth'):
    return run_tool('export.py', [str(folder / 'small.py'), str(folder / checkpoint), '--size', '64x96', *map(str, flags)])


def run_onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return lambda images: [torch.from_numpy(output) for output in session.run(None, {'images': images.numpy()})]


RUNNERS = {'onnx': run_onnx, 'torchscript': torch.jit.load}


@torch.no_grad()
def assert_agrees(run, reference, shapes):
    for shape in shapes:
        images = torch.randn(shape)
        expected = reference(images)
        outputs = run(images)
        assert len(outputs) == len(expected)
        for output, target in zip(outputs, expected):
            torch.testing.assert_close(output, target, rtol=1e-3, atol=1e-4 * target.abs().max().item())


@pytest.fixture
def file_format(request):
    """A format that can be written here."""
    for package in ('onnx', 'onnxruntime') if request.param == 'onnx' else ():
        pytest.importorskip(package, reason=f'needs {package}')
    return request.param


@pytest.mark.parametrize('file_format, suffix', [('onnx', '.onnx'), ('torchscript', '.ts')], indirect=['file_format'])
def test_backbone_file_is_the_trained_backbone(trained, file_format, suffix, capfd):
    folder, net = trained
    assert export(folder, '--format', file_format) == 0
    path = folder / f'small_backbone{suffix}'
    assert_agrees(RUNNERS[file_format](path), net.backbone, [(1, 3, *SIZE), (3, 3, *SIZE), (2, 3, 96, 32)])
    said = capfd.readouterr().out
    assert path.name in said and "'mean': [123.675, 116.28, 103.53]" in said
    assert len(re.findall(r'checked at \(\d, \d+, \d+\): off by', said)) == 4


@pytest.mark.parametrize('file_format', ['onnx', 'torchscript'], indirect=True)
def test_model_file_returns_the_logits_of_the_image(trained, file_format, tmp_path):
    folder, net = trained
    path = tmp_path / {'onnx': 'model.onnx', 'torchscript': 'model.ts'}[file_format]
    assert export(folder, '--format', file_format, '--scope', 'model', '--dynamic', 'batch', '--out', path) == 0
    metas = [dict(ori_shape=SIZE, img_shape=SIZE, pad_shape=SIZE)]
    assert_agrees(
        RUNNERS[file_format](path), lambda images: [net.inference(images, metas * len(images))], [(1, 3, *SIZE), (3, 3, *SIZE)]
    )


def test_a_whole_segmenter_and_the_report_beside_it(trained, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no data of the config here, so it is checked on generated images
    folder = trained[0]
    path = tmp_path / 'whole.onnx'
    assert export(folder, '--format', 'onnx', '--end2end', '--dynamic', 'none', '--out', path) == 0
    report = json.loads((tmp_path / 'whole.onnx.json').read_text())
    assert report['file'] == 'whole.onnx' and report['check']['pixels'] > 0.999 and report['check']['real'] is False
    meta = read_meta(path)
    assert report['meta'] == vars(meta) and (meta.config, meta.size, meta.batch) == ('small', [64, 96], 1)
    said = ' '.join(capfd.readouterr().out.split())
    assert 'outputs: labels_map' in said and 'checked against torch on 2 generated images (64x96)' in said
    Image.fromarray(generated_images(SIZE)[0].transpose(1, 2, 0)).save(tmp_path / 'photo.png')
    example = Path(__file__).resolve().parents[2] / 'examples' / 'run_onnxruntime.py'
    argv = [sys.executable, str(example), str(path), 'photo.png']
    run = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert Image.open(tmp_path / 'out.png').size == (96, 64)


@pytest.mark.parametrize(
    'flags, words',
    [
        (['--format', 'torchscript', '--end2end'], 'a whole model goes to onnx, openvino, pt2'),
        (['--format', 'onnx', '--end2end', '--scope', 'neck'], '--scope neck is a part of the model, --end2end the whole'),
        (['--format', 'onnx', '--end2end', '--dtype', 'bf16'], '--dtype bf16 is for --end2end --format openvino'),
        (['--format', 'onnx', '--dtype', 'fp16'], '--dtype fp16 is for --end2end --format openvino or onnx'),
        (['--format', 'pt2', '--end2end', '--dtype', 'fp16'], '--dtype fp16 is for --end2end --format openvino or onnx'),
        (['--format', 'onnx', '--images', 'x.png'], '--images are for the check of --end2end'),
        (['--format', 'onnx', '--end2end', '--images', 'x.png'], '--images x.png does not exist'),
        (['--format', 'onnx', '--out', 'net.pt2'], 'the name of a file of --format onnx ends in .onnx'),
    ],
)
def test_flags_that_do_not_go_together(trained, flags, words, capfd):
    assert words in refused(capfd, export(trained[0], *flags))


def refused(capfd, status):
    assert status == 2
    errors = re.findall('^error: .*', capfd.readouterr().err, re.MULTILINE)
    assert len(errors) == 1
    return errors[0]


def test_missing_checkpoint(trained, capfd):
    assert 'missing/epoch_1.pth does not exist' in refused(
        capfd, export(trained[0], '--format', 'onnx', checkpoint='missing/epoch_1.pth')
    )


def test_checkpoint_of_another_model(trained, tmp_path, capfd):
    folder, net = trained
    torch.save(dict(state_dict=net.backbone.state_dict()), tmp_path / 'backbone.pth')
    line = refused(capfd, export(folder, '--format', 'onnx', checkpoint=tmp_path / 'backbone.pth'))
    assert 'does not fit EncoderDecoder' in line and 'are missing' in line
    assert not list(tmp_path.glob('*.onnx'))


def test_checkpoint_that_is_more_than_weights(trained, tmp_path, capfd):
    folder, net = trained
    torch.save(dict(state_dict=net.state_dict(), config=Config()), tmp_path / 'odd.pth')
    assert '--unsafe-checkpoint' in refused(capfd, export(folder, '--format', 'torchscript', checkpoint=tmp_path / 'odd.pth'))
    assert export(folder, '--format', 'torchscript', '--unsafe-checkpoint', checkpoint=tmp_path / 'odd.pth') == 0
    assert (tmp_path / 'small_backbone.ts').is_file()


def test_unknown_format(trained, capfd):
    assert export(trained[0], '--format', 'tflite') == 2
    assert re.search(r"--format: invalid choice: 'tflite'.*onnx.*openvino.*pt2.*torchscript", capfd.readouterr().err)


@pytest.mark.parametrize(
    'place, words',
    [
        ('nowhere/net.onnx', r'folder \S+/nowhere does not exist: make it, or name a file elsewhere by --out'),
        ('.', 'is a folder: name a file in it by --out'),
    ],
)
def test_target_that_cannot_be_written(trained, tmp_path, place, words, capfd):
    line = refused(capfd, export(trained[0], '--format', 'onnx', '--out', tmp_path / place))
    assert re.search(words, line), line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('size', ['0x64', '64x-32', '64x', '1x2x3', 'large'])
def test_size_of_no_image(trained, size, capfd):
    line = export(trained[0], '--format', 'onnx', '--size', size), capfd.readouterr().err
    assert line[0] == 2 and f"argument --size: size '{size}' is neither N nor HxW in pixels" in line[1]


def test_missing_config(trained, capfd):
    assert 'config nowhere.py does not exist' in refused(
        capfd, run_tool('export.py', ['nowhere.py', str(trained[0] / 'epoch_1.pth'), '--format', 'onnx'])
    )
