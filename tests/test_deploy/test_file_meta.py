"""The metadata of exported files of every kind: written, read back, refused."""

import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from mmkerneldna.deploy import runtimes
from mmkerneldna.deploy.file_meta import FileError, FileMeta, read_meta, write_meta
from mmkerneldna.deploy.runners import FileRunner
from mmkerneldna.deploy.writers import write

META = FileMeta(task='raw', classes=['red <cell>', 'Zelle "ä"'], outputs=['output0'], size=[64, 96], batch=2, config='x')
META.input['dtype'] = 'float32'


class Twice(nn.Module):
    def forward(self, images):
        return (images * 2,)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A net that doubles, in the kinds of file that take no compiler; of pt2 an archive as torch makes it, without a net."""
    folder = tmp_path_factory.mktemp('files')
    for kind, name in (('onnx', 'net.onnx'), ('openvino', 'net.xml')):
        write(Twice(), torch.zeros(2, 3, 64, 96), folder / name, kind, 'none', ['output0'])
    with zipfile.ZipFile(folder / 'net.pt2', 'w') as archive:
        archive.writestr('net/data/weights', b'\0\1\2')
    return folder


@pytest.mark.parametrize('name', ['net.onnx', 'net.xml', 'net.pt2'])
def test_what_is_written_is_read_and_can_be_replaced(files, name):
    with pytest.raises(FileError, match='has no metadata'):
        read_meta(files / name)
    write_meta(files / name, META)
    assert read_meta(files / name) == META
    other = FileMeta(task='detection', classes=['a'])
    write_meta(files / name, other)
    assert read_meta(files / name) == other
    write_meta(files / name, META)
    assert read_meta(files / name) == META


def test_the_rest_of_an_archive_stays(files):
    write_meta(files / 'net.pt2', META)
    write_meta(files / 'net.pt2', META)
    with zipfile.ZipFile(files / 'net.pt2') as archive:
        assert sorted(archive.namelist()) == ['net/data/weights', 'net/extra/mmkerneldna']
        assert archive.read('net/data/weights') == b'\0\1\2'


@pytest.mark.parametrize('name', ['net.onnx', 'net.xml'])
def test_a_file_with_metadata_runs(files, name):
    write_meta(files / name, META)
    images = np.random.default_rng(0).normal(size=(2, 3, 64, 96)).astype(np.float32)
    run = FileRunner(files / name, threads=1)
    np.testing.assert_array_equal(run(images)['output0'], images * 2)


@pytest.mark.parametrize(
    'shape, dtype',
    [((1, 3, 64, 96), 'float32'), ((2, 3, 96, 64), 'float32'), ((2, 3, 64, 96), 'uint8'), ((3, 64, 96), 'float32')],
)
def test_images_a_file_was_not_made_for(files, shape, dtype):
    write_meta(files / 'net.onnx', META)
    with pytest.raises(FileError, match=r'this file takes \(2, 3, 64, 96\) float32.*--dynamic both'):
        FileRunner(files / 'net.onnx')(np.zeros(shape, dtype))


def test_any_size_and_batch_are_free_where_none_is_stated():
    free = FileMeta(task='detection')
    free.check_images((5, 3, 7, 9), 'uint8')
    with pytest.raises(FileError, match=r'takes \(N, 3, H, W\) uint8'):
        free.check_images((5, 4, 7, 9), 'uint8')


@pytest.mark.parametrize('name', ['net.onnx', 'net.xml', 'net.pt2'])
def test_a_damaged_file(tmp_path, name):
    (tmp_path / name).write_bytes(b'<not what the name says')
    with pytest.raises(FileError, match='is not readable as'):
        read_meta(tmp_path / name)


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileError, match=r'net.onnx does not exist'):
        read_meta(tmp_path / 'net.onnx')
    with pytest.raises(FileError, match=r'expected a name that ends in .onnx, .xml, .pt2'):
        read_meta(tmp_path / 'net.pth')


def test_a_later_format_is_refused(files):
    write_meta(files / 'net.xml', FileMeta(task='raw', version=99))
    with pytest.raises(FileError, match='version 99, newer than 1: update'):
        read_meta(files / 'net.xml')


def test_a_runtime_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(runtimes.EXTRAS, 'no_such_runtime', 'onnx')
    with pytest.raises(
        runtimes.RuntimeMissingError, match=r"not installed: pip install no_such_runtime .*'mmkerneldna\[onnx\]'"
    ):
        runtimes.require('no_such_runtime')
