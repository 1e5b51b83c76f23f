import json

from mmkerneldna.runs.sweep import sweep_figure, write_sweep


def row(name, keep, score, median, mean, p90, **more):
    return dict(name=name, keep=keep, score=score, latency_ms=median, latency_mean_ms=mean, latency_p90_ms=p90, **more)


ROWS = [
    row('net keep 1', 1.0, 60.0, 10.0, 11.0, 13.0, keep_rate=1.0, gmacs=2.0),
    row('net keep 0.5', 0.5, 59.5, 6.0, 6.5, 9.0, keep_rate=0.51, gmacs=1.0),
    row('r18', None, 58.0, 7.0, 7.0, 7.5, gmacs=1.1),
    dict(name='failed', keep=None, score=58.0, error='OOM: 3 GiB'),
]


def test_points_of_the_model_and_of_static_nets_are_two_lines():
    (axis,) = sweep_figure(ROWS, 'mIoU').axes
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.get_lines()}
    assert lines == {'one model, keep rate set afterwards': ([6.5, 11.0], [59.5, 60.0]), 'static nets': ([7.0], [58.0])}
    assert {text.get_text() for text in axis.texts} == {'1', '0.5', 'r18'}
    assert axis.get_ylabel() == 'mIoU' and 'busy' not in axis.get_xlabel()
    busy = sweep_figure([dict(ROWS[0], disturbed='threads waited')], 'mIoU').axes[0]
    assert 'the machine was busy' in busy.get_xlabel()


def test_files(tmp_path):
    paths = write_sweep(tmp_path, ROWS, 'mIoU', dict(cpu='none'), 'A title', ['a line'])
    assert [path.name for path in paths] == ['sweep.json', 'sweep.md', 'sweep.png'] and all(
        path.stat().st_size for path in paths
    )
    held = json.loads(paths[0].read_text())
    assert held['rows'] == ROWS and held['metric'] == 'mIoU' and held['environment'] == dict(cpu='none')
    text = paths[1].read_text()
    assert text.startswith('# A title') and 'a line' in text
    assert any('net keep 0.5' in line and '59.50' in line and '6.00' in line for line in text.splitlines())
    assert any('failed' in line and 'OOM' in line for line in text.splitlines())
