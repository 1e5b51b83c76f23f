"""int8 files: what is quantised, against graphs drawn by hand; what it does to outputs, against the float file."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_files import FAST, TinySegmenter, arrays, write_file

from mmkerneldna.deploy import quantise as module
from mmkerneldna.deploy.exported_model import file_megabytes
from mmkerneldna.deploy.file_meta import FileError, read_meta
from mmkerneldna.deploy.quantise import QuantiseError, added_error, quantise, relative_error
from mmkerneldna.deploy.quantise_graph import Operation, select
from mmkerneldna.deploy.runners import FileRunner


def graph(*lines):
    """``'name weighs rank inputs...'`` per operation."""
    rows = [line.split() for line in lines]
    return [
        Operation(name, weighs == 'y', tuple(inputs), int(rank) if rank != '?' else None)
        for name, weighs, rank, *inputs in rows
    ]


def test_feature_maps_between_layers_are_quantised():
    found = select(
        graph(
            'normalise n 4',
            'stem y 4 normalise',
            'relu n 4 stem',
            'body y 4 relu',
            'sum n 4 body relu',
            'head y 4 sum',
            'resize n 4 head',
            'argmax n 3 resize',
        )
    )
    assert found.layers == ('stem', 'body', 'head')
    assert found.between == ('relu', 'sum')
    assert found.rest == ('normalise', 'resize', 'argmax')
    assert {name: set(sources) for name, sources in found.feeds.items()} == {
        'stem': set(),
        'body': {'stem'},
        'head': {'stem', 'body'},
    }
    assert found.last == ('head',)


def test_boxes_between_two_stages_stay_float():
    found = select(
        graph('stem y 4', 'rpn y 4 stem', 'decode n 3 rpn', 'nms n ? decode', 'roi n 4 stem nms', 'fc y 2 roi', 'boxes n 2 fc')
    )
    assert found.between == ('roi',) and found.rest == ('decode', 'nms', 'boxes')
    assert found.last == ('rpn', 'fc')


def test_what_the_runtime_computes_in_int8_goes_before_the_rank():
    lines = graph('a y 4', 'norm n 4 a', 'b y 4 norm', 'relu n 2 b', 'c y 2 relu')
    kinds = dict(norm=False, relu=True)
    found = select([replace(line, carries=kinds.get(line.name)) for line in lines])
    assert found.between == ('relu',) and found.rest == ('norm',)
    assert found.last == ('a', 'c')  # what follows a is float


def test_layers_left_out_move_to_the_rest():
    found = select(graph('a y 4', 'b y 4 a', 'c y 4 b')).without(['b'])
    assert found.layers == ('a', 'c') and found.rest == ('b',) and found.feeds['c'] == ('b',)


@pytest.fixture(scope='module', params=FAST)
def files(request, tmp_path_factory):
    """A float file and its int8 copy."""
    folder = tmp_path_factory.mktemp('int8')
    path = write_file(folder / f'float{request.param}', TinySegmenter(32))
    out = folder / f'int8{request.param}'
    return path, out, quantise(path, out, arrays(12), score=lambda file: pytest.fail('nobody asked for a score'))


def test_int8_agrees_and_is_smaller(files):
    path, out, report = files
    assert [name.split('/')[1] for name in report.last_float] == ['head']
    assert report.layers + len(report.last_float) == 4 and report.images == 12 and not report.left_float
    assert read_meta(out).dtype == 'int8' and read_meta(out).classes == read_meta(path).classes
    images = np.stack(arrays(4, seed=5))
    found, wanted = (FileRunner(file)(images)['labels_map'] for file in (out, path))
    agreement = (found == wanted).mean()
    assert agreement > 0.9 and not np.array_equal(found, np.zeros_like(found))
    # it is quantised indeed: weights of one byte, and outputs that are no more those of the float file
    kind = read_kind(path)
    body = next(name for name in module._READ[kind](path).layers if 'body' in name)
    values = [module._OUTPUTS[kind](file, [body], np.stack(arrays(1)))[body] for file in (out, path)]
    assert 1e-7 < relative_error(*values) < 0.01


def read_kind(path):
    return {'.onnx': 'onnx', '.xml': 'openvino'}[path.suffix]


def test_all_layers_are_in_the_file(files):
    """Names of the float file's layers are found in the int8 one, so layers can be ranked."""
    path, out, _ = files
    kind = read_kind(path)
    layers = module._READ[kind](path).layers
    assert set(module._OUTPUTS[kind](out, layers, np.stack(arrays(1)))) == set(layers)


def test_layers_that_hurt_stay_float(files, tmp_path, monkeypatch):
    """The score here is agreement of one layer's output with the float file: leaving that layer's error out needs it float."""
    path, _, _ = files
    kind = read_kind(path)
    layers = module._READ[kind](path).layers
    worst = layers[2]
    monkeypatch.setattr(module, '_rank', lambda *args: [worst, *(name for name in layers if name != worst)])
    written = []
    real = module._write

    def write(kind, path, draft, meta, batches, selection):
        written.append(selection.layers)
        real(kind, path, draft, meta, batches, selection)

    monkeypatch.setattr(module, '_write', write)
    out = tmp_path / f'kept{path.suffix}'
    report = quantise(path, out, arrays(10), 0.5, lambda file: 50.0 if file == path or worst not in written[-1] else 40.0)
    assert report.left_float == [worst] and report.layers == len(layers) - 1 - len(report.last_float)
    assert (report.float_score, report.score) == (50.0, 50.0) and report.trials == [(0, 40.0), (1, 50.0)]
    assert f'left float, because it hurts: {worst}' in str(report)
    assert read_meta(out).dtype == 'int8'


@pytest.mark.parametrize('needed', [0, 1, 2, 3, 5, 6, 7, 11])
def test_the_search_leaves_as_few_as_will_do(needed):
    layers = [f'layer{index}' for index in range(11)]
    report = module.QuantiseReport('x', 10, 0, float_score=1.0)
    last = []

    def score_without(names):
        last[:] = names
        return float(len(names) >= needed)

    assert module._search(score_without, lambda: layers, 1.0, report) == layers[:needed] == last
    assert len(report.trials) <= 9


def test_a_score_that_no_file_reaches(tmp_path):
    path = write_file(tmp_path / 'float.onnx', TinySegmenter())
    scores = iter([90.0] + [10.0] * 99)
    with pytest.raises(QuantiseError, match=r'no int8 file reaches a score of 89.00 .* all 4 layers left float it is 10.00'):
        quantise(path, tmp_path / 'int8.onnx', arrays(10), 1.0, lambda file: next(scores))
    assert sorted(item.name for item in tmp_path.iterdir()) == ['float.onnx']


def test_ranking_by_added_error():
    feeds = {'a': (), 'b': ('a',), 'c': ('a', 'b')}
    errors = dict(a=0.25, b=0.375, c=0.5)
    assert [added_error(name, errors, feeds) for name in 'abc'] == [0.25, 0.125, 0.125]
    assert relative_error(np.array([3.0, 4.0]), np.array([3.0, 0.0])) == pytest.approx(16 / 9)


def test_ranking_finds_the_layer_that_is_off(tmp_path):
    net = TinySegmenter()
    path = write_file(tmp_path / 'float.onnx', net)
    torch.nn.init.normal_(net.body.weight, generator=torch.Generator().manual_seed(1))
    spoilt = write_file(tmp_path / 'spoilt.onnx', net)
    ranked = module._rank('onnx', path, spoilt, [np.stack(arrays(1))] * 2, module._READ['onnx'](path))
    assert 'body' in ranked[0] and len(ranked) == 4


@pytest.mark.parametrize(
    'change, error, message',
    [
        (dict(images=9), QuantiseError, '9 calibration images are too few: at least 10 are needed'),
        (dict(size=(8, 8)), FileError, r'this file takes \(N, 3, 16, 24\) uint8'),
        (dict(dtype='bf16'), QuantiseError, 'computes in bf16: export it in fp32'),
        (dict(out='other.xml'), QuantiseError, 'give it the suffix .onnx'),
        (dict(max_drop=-1.0), QuantiseError, 'max_drop=-1.0 must be at least 0'),
    ],
)
def test_refused(change, error, message, tmp_path):
    path = write_file(tmp_path / 'float.onnx', TinySegmenter(), size=(16, 24), dtype=change.get('dtype', 'fp32'))
    images = arrays(change.get('images', 10), change.get('size', (16, 24)))
    with pytest.raises(error, match=message):
        quantise(path, tmp_path / change.get('out', 'int8.onnx'), images, change.get('max_drop'), lambda file: 0.0)
    assert [item.name for item in tmp_path.iterdir()] == ['float.onnx']


def test_a_net_without_layers(tmp_path):
    from tiny_files import ChannelsAsLabels

    path = write_file(tmp_path / 'float.onnx', ChannelsAsLabels())
    with pytest.raises(QuantiseError, match='no convolution and no matrix product'):
        quantise(path, tmp_path / 'int8.onnx', arrays(10))


def test_what_quantises_is_missing(tmp_path, monkeypatch):
    import sys

    from mmkerneldna.deploy.runtimes import RuntimeMissingError

    path = write_file(tmp_path / 'float.xml', TinySegmenter())
    monkeypatch.setitem(sys.modules, 'nncf', None)
    with pytest.raises(RuntimeMissingError, match=r"nncf is not installed: pip install nncf \(or .*mmkerneldna\[openvino\]'"):
        quantise(path, tmp_path / 'int8.xml', arrays(10))
    assert not (tmp_path / 'int8.xml').exists()


def test_megabytes_fall(files):
    """A net of this size is mostly graph; weights of a wide one are a quarter."""
    path, out, _ = files
    if path.suffix == '.xml':
        assert out.with_suffix('.bin').stat().st_size < 0.5 * path.with_suffix('.bin').stat().st_size
    assert file_megabytes(out) > 0
