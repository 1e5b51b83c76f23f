import os
import pickle
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Payload
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.logging import MessageHub
from mmengine.runner.checkpoint import load_checkpoint
from torch import nn

from mmkerneldna.checkpoints.loading import (
    CheckpointError,
    check_architecture,
    compare_state_dict,
    find_whole_checkpoint,
    install_safe_loading,
    read_checkpoint,
)


class GetattrPayload:
    """Unpickling it would get at a function through ``getattr``, which the reader of checkpoints does let through."""

    def __reduce__(self):
        return getattr, (dict, 'fromkeys')


def net(*widths):
    return nn.Sequential(*[nn.Conv2d(i, o, 1) for i, o in pairwise(widths)])


def test_reads_what_mmengine_stores(tmp_path):
    hub = MessageHub('test_loading')
    hub.update_scalar('loss', 1.5)
    hub.update_scalar('norm', torch.tensor(2.0))
    hub.update_info('best', np.float64(0.25))
    meta = dict(seed=3, palette=np.arange(6, dtype=np.uint8).reshape(2, 3))
    torch.save(dict(meta=meta, message_hub=hub.state_dict()), tmp_path / 'a.pth')
    loaded = read_checkpoint(tmp_path / 'a.pth')
    assert loaded['message_hub']['log_scalars']['loss'].current() == 1.5
    assert loaded['message_hub']['runtime_info']['best'] == 0.25
    assert np.array_equal(loaded['meta']['palette'], meta['palette'])


def test_refuses_code_unless_allowed(tmp_path):
    torch.save(dict(state_dict={}, extra=Payload(tmp_path / 'made')), tmp_path / 'evil.pth')
    with pytest.raises(CheckpointError, match='mkdir.*--unsafe-checkpoint'):
        read_checkpoint(tmp_path / 'evil.pth')
    assert not (tmp_path / 'made').exists()
    read_checkpoint(tmp_path / 'evil.pth', unsafe=True)
    assert (tmp_path / 'made').is_dir()


def test_refuses_getattr_on_anything_else(tmp_path):
    torch.save(dict(extra=GetattrPayload()), tmp_path / 'evil.pth')
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / 'evil.pth')


def test_mmengine_reads_through_it(tmp_path, loaders):
    torch.save(dict(state_dict={}, extra=Payload(tmp_path / 'made')), tmp_path / 'evil.pth')
    install_safe_loading()
    with pytest.raises(CheckpointError):
        load_checkpoint(net(1, 1), str(tmp_path / 'evil.pth'))
    with pytest.raises(pickle.UnpicklingError):  # whatever asks torch for the unsafe mode
        torch.load(tmp_path / 'evil.pth', weights_only=False)
    assert not (tmp_path / 'made').exists()


@pytest.mark.parametrize('keep', [0, 10, 0.5, 0.99])
def test_cut_short(tmp_path, keep):
    path = tmp_path / 'a.pth'
    torch.save(net(8, 8).state_dict(), path)
    os.truncate(path, keep if isinstance(keep, int) else int(keep * path.stat().st_size))
    with pytest.raises(CheckpointError, match='cut short'):
        read_checkpoint(path)


def test_no_checkpoint_at_all(tmp_path):
    (tmp_path / 'a.pth').write_text('hello')
    with pytest.raises(CheckpointError, match='no checkpoint at all'):
        read_checkpoint(tmp_path / 'a.pth')


@settings(deadline=None, max_examples=100)
@given(content=st.binary(min_size=1, max_size=40) | st.binary(max_size=30).map(lambda tail: b'\x80\x02' + tail))
def test_any_other_content_is_one_clear_error(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'a.pth')
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match='no checkpoint at all|holds'):
            read_checkpoint(path)


def test_a_list_is_no_checkpoint(tmp_path):
    torch.save([torch.ones(2)], tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='holds a list; expected a state dict'):
        read_checkpoint(tmp_path / 'a.pth')


def test_missing_file():
    with pytest.raises(CheckpointError, match='/nonexistent.pth does not exist'):
        read_checkpoint('/nonexistent.pth')


def test_mismatch_is_counted_and_listed():
    mismatch = compare_state_dict(net(3, 4, 5, 6), net(3, 4, 7).state_dict())
    assert mismatch.missing == ['2.weight', '2.bias'] and not mismatch.unexpected
    assert mismatch.shapes == {'1.weight': ((5, 4, 1, 1), (7, 4, 1, 1)), '1.bias': ((5,), (7,))}
    other = compare_state_dict(net(3, 4), net(3, 4, 7).state_dict())
    assert other.unexpected == ['1.weight', '1.bias'] and other.total == 2


def test_message_has_counts_and_first_names():
    deep, shallow = net(*[4] * 12), net(4, 4)
    with pytest.raises(CheckpointError) as error:
        check_architecture(deep, dict(state_dict=shallow.state_dict()), 'a.pth')
    text = str(error.value)
    assert 'a.pth does not fit Sequential: of the 22 entries of the model 20 are missing' in text
    assert '20 missing in it: 1.weight, 1.bias, 2.weight, 2.bias, 3.weight, ... and 15 more' in text
    check_architecture(deep, dict(state_dict=shallow.state_dict()), 'a.pth', allow_partial=True)


def test_what_is_no_mismatch():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    state = {f'module.{k}': v for k, v in model.state_dict().items() if not k.endswith('num_batches_tracked')}
    assert not compare_state_dict(model, state)
    check_architecture(model, state, 'bare state dict')


def write(path, age):
    torch.save(dict(name=path.stem), path)
    os.utime(path, (1000 - age, 1000 - age))


def test_newest_whole_checkpoint(tmp_path):
    for name, age in [('epoch_1', 3), ('epoch_2', 2), ('epoch_3', 1), ('epoch_12', 9), ('best_coco_epoch_2', 0)]:
        write(tmp_path / f'{name}.pth', age)
    assert find_whole_checkpoint(tmp_path)[1]['name'] == 'epoch_3'
    os.truncate(tmp_path / 'epoch_3.pth', 50)
    os.utime(tmp_path / 'epoch_3.pth', (1000, 1000))
    assert find_whole_checkpoint(tmp_path)[1]['name'] == 'epoch_2'


def test_no_whole_checkpoint(tmp_path):
    assert find_whole_checkpoint(tmp_path) is None
    (tmp_path / 'iter_4.pth').write_bytes(b'')
    with pytest.raises(CheckpointError, match='no whole checkpoint.*without --resume'):
        find_whole_checkpoint(tmp_path)
