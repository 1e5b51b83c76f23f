"""What is told of redundancy: order of layers, tables, files; and the trials that judge the prediction."""

import csv
import json

import numpy as np
import pytest
import torch
from mmseg.models.backbones.resnet import ResNet
from PIL import Image

from mmkerneldna.derive import DeriveError, measure_redundancy
from mmkerneldna.derive.redundancy import Pair, Redundancy
from mmkerneldna.derive.redundancy_report import heat_figure, layer_order, pair_table, trial_table, write_redundancy
from mmkerneldna.derive.redundancy_validation import Trial, output_error, rank_correlations, spread_pairs, validate
from tests.helpers import randomise


def made():
    """Four convs of one shape, a and c alike; d and e of another shape."""
    errors = {('a', 'b'): 0.9, ('b', 'a'): 0.8, ('a', 'c'): 0.3, ('c', 'a'): 0.1, ('b', 'c'): 0.95, ('c', 'b'): 0.7}
    pairs = [Pair(child, parent, error, cka=1 - error, share=0.5) for (child, parent), error in errors.items()]
    return Redundancy([*pairs, Pair('d', 'e', 0.6), Pair('e', 'd', 0.5)])


def test_layers_that_do_well_with_each_other_are_joined_first():
    paths, tree = layer_order(made())
    assert paths == ['a', 'b', 'c', 'd', 'e']
    joined = [{int(row[0]), int(row[1])} for row in tree]
    assert joined[0] == {0, 2} and tree[0, 2] == pytest.approx(0.1)  # a, c: the better direction
    assert joined[1] == {3, 4} and tree[1, 2] == pytest.approx(0.5)
    assert joined[2] == {1, 5} and tree[2, 2] == pytest.approx((0.8 + 0.7) / 2)
    assert tree[3, 2] == pytest.approx(1.1)  # different shapes last


def test_heat_maps_hold_each_pair_in_its_place():
    figure = heat_figure(made())
    axes = {axis.get_title(): axis for axis in figure.axes if axis.images}
    assert len(axes) == 3  # no outputs were measured
    axis = axes['squared error of the kernel / power']
    names = [label.get_text() for label in axis.get_yticklabels()]
    values = np.asarray(axis.images[0].get_array().filled(np.nan))
    assert values[names.index('c'), names.index('a')] == pytest.approx(0.1)
    assert np.isnan(values[names.index('a'), names.index('d')]) and np.isnan(values.diagonal()).all()


def test_files_and_table_hold_every_pair(tmp_path):
    trials = [Trial(pair, pair.kernel_error**2) for pair in made().pairs]
    for path in write_redundancy(tmp_path, made(), trials):
        assert path.stat().st_size > 100
    held = json.loads((tmp_path / 'redundancy.json').read_text())
    assert [row['damage'] for row in held['pairs']] == sorted(pair.damage for pair in made().pairs)
    assert sorted(held['order']) == list('abcde') and abs(held['order'].index('a') - held['order'].index('c')) == 1
    assert held['rank_correlations']['kernel error'] == pytest.approx(1) and len(held['trials']) == 8
    with open(tmp_path / 'redundancy.csv') as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0]['child'] == 'c' and float(rows[0]['damage']) == pytest.approx(0.05) and rows[0]['output_error'] == ''
    assert Image.open(tmp_path / 'dendrogram.png').size[0] > 500
    assert pair_table(made(), 3).count('\n') == 4 and '5 pairs more' in pair_table(made(), 3)
    assert '8 measured damages with: damage' in trial_table(trials) and 'kernel error 1.00' in trial_table(trials)


def test_rank_correlation_against_pearson_of_the_ranks():
    measured = [0.3, 0.1, 0.9, 0.2]
    trials = [Trial(Pair('a', 'b', error), value) for error, value in zip([0.4, 0.2, 0.3, 0.1], measured)]
    expected = np.corrcoef([3, 1, 2, 0], [2, 0, 3, 1])[0, 1]
    assert rank_correlations(trials)['damage'] == pytest.approx(expected)
    assert 'CKA' not in rank_correlations(trials)


def test_trials_measure_what_single_children_cost():
    torch.manual_seed(0)
    net = randomise(ResNet(18, base_channels=8, stem_channels=8))
    net.eval()
    with torch.no_grad():  # a child that costs nothing
        net.layer3[0].conv2.weight.copy_(2 * net.layer3[1].conv1.weight)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    batches = [torch.randn(4, 3, 64, 64) for _ in range(4)]
    found = measure_redundancy(net, batches[:2])
    trials = list(validate(net, found, batches[:2], batches[2:], 4))
    assert [trial.pair.damage for trial in trials] == sorted(trial.pair.damage for trial in trials)
    assert (trials[0].pair.child, trials[0].pair.parent) in {
        ('layer3.0.conv2', 'layer3.1.conv1'),
        ('layer3.1.conv1', 'layer3.0.conv2'),
    }
    assert trials[0].measured < 1e-5 < 0.01 < min(trial.measured for trial in trials[1:])
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_too_few_pairs_to_rank():
    net = torch.nn.Sequential(torch.nn.Conv2d(64, 64, 3), torch.nn.Conv2d(64, 64, 3))
    with pytest.raises(DeriveError, match='2 plans of a single child are too few to rank'):
        spread_pairs(net, measure_redundancy(net), 20)


class _Outputs:
    """Stands in for a run of heads: a net's list of outputs."""

    part = 'all'

    def __call__(self, net, images):
        return [net.weight[0] * images, net.weight[1] * images]


def test_an_error_that_only_the_first_head_shows_is_counted():
    dense, target = torch.nn.Linear(1, 2), torch.nn.Linear(1, 2)
    dense.weight.data[:] = torch.tensor([[2.0], [5.0]])
    target.weight.data[:] = torch.tensor([[3.0], [5.0]])
    images = torch.rand(2, 3, 4, 4) + 0.5
    assert output_error(target, dense, _Outputs(), [images]) == pytest.approx(0.25)  # the mean of 1/2 and 0
