"""Which file a format gets, without writing any."""

import pytest
from torch import nn

from mmkerneldna.deploy.export_error import ExportError
from mmkerneldna.deploy.runtimes import RuntimeMissingError
from mmkerneldna.launch import formats
from mmkerneldna.launch.formats import FormatMaker


@pytest.fixture
def maker(tmp_path, monkeypatch):
    """A maker whose exporter writes only what ``can`` allows, and remembers what it was asked for."""
    monkeypatch.setattr(formats, 'class_names', lambda cfg, checkpoint: ['a'])
    monkeypatch.setattr(formats, 'sample_images', lambda cfg, count: [])
    made = FormatMaker(None, 'net', nn.Identity(), {}, tmp_path, (8, 16))
    made.asked, made.can = [], {'none'}

    def export(model, wanted):
        made.asked.append((wanted.path.name, wanted.dynamic, wanted.size))
        if wanted.dynamic not in made.can:
            raise made.error
        wanted.path.write_text('')

    made.error = ExportError('no such size')
    monkeypatch.setattr(formats, 'export_whole', export)
    return made


def test_a_format_that_takes_no_size_gets_a_fixed_one(maker):
    assert maker.file('openvino').is_file()
    assert maker.asked == [('openvino.xml', 'both', (8, 16)), ('openvino.xml', 'none', (8, 16))]
    maker.file('openvino')
    assert len(maker.asked) == 2  # it is there


def test_a_format_that_can_do_neither(maker):
    maker.can = set()
    with pytest.raises(ExportError, match='no such size'):
        maker.file('onnx')


def test_what_is_not_installed_is_not_tried_again(maker):
    maker.error = RuntimeMissingError('openvino is not installed')
    with pytest.raises(RuntimeMissingError):
        maker.file('openvino')
    assert len(maker.asked) == 1


def test_files_of_an_earlier_call(maker):
    maker.reuse = True
    (maker.folder / 'onnx-int8.onnx').write_text('')
    assert maker.file('onnx-int8').name == 'onnx-int8.onnx' and not maker.asked
