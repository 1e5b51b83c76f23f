"""The front of non-dominated runs and its figure."""

from hypothesis import given, settings
from hypothesis import strategies as st

from mmkerneldna.runs.pareto import pareto_figure, pareto_front

POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


def beaten(point, others):
    return any(c <= point[0] and s >= point[1] and (c, s) != point for c, s in others)


@settings(deadline=None, max_examples=100)
@given(POINTS)
def test_front_is_what_nothing_beats(points):
    front = pareto_front(points)
    assert set(front) == {i for i, point in enumerate(points) if not beaten(point, points)}
    costs = [points[i][0] for i in front]
    assert costs == sorted(costs)


def row(name, score, latency, **extra):
    return dict(name=name, score=score, latency_ms=latency, unique_params_m=5.0, metric='box_ap', **extra)


def test_figure_has_a_line_of_panels_per_task():
    detection = [row('a', 30.0, 20.0, score_std=1.0, latency_ms_std=2.0), row('b', 25.0, None), row('c', 20.0, 10.0)]
    figure = pareto_figure([('Detection', detection), ('Segmentation', [row('s', 1.0, 2.0)])])
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ['Detection', 'Detection', 'Segmentation', 'Segmentation']
    latency = figure.axes[0]
    assert [text.get_text() for text in latency.texts] == ['1', '3'], 'numbers are those of the table'
    assert latency.get_ylabel() == 'box AP' and latency.get_xlabel() == 'latency (ms)'
    assert list(latency.lines[0].get_xdata()) == [10.0, 20.0]


def test_nothing_to_plot():
    assert pareto_figure([('Detection', [row('a', 30.0, None), row('b', None, 3.0)])]) is None


def test_a_disturbed_latency_is_a_hollow_point():
    busy = row('a', 30.0, 20.0, disturbed='median 3.1 times the fastest')
    figure = pareto_figure([('Detection', [busy, row('b', 25.0, 9.0)])])
    latency, params = figure.axes
    assert [line.get_markerfacecolor() == 'none' for line in latency.lines if line.get_marker() == 'o'] == [True, False]
    assert latency.get_xlabel() == 'latency (ms); hollow: the machine was busy' and 'hollow' not in params.get_xlabel()
    assert not any(line.get_markerfacecolor() == 'none' for line in params.lines if line.get_marker() == 'o')
