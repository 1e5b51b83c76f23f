"""onnxruntime's advice about graphs, given by the root logger while it quantises."""

import logging

import numpy as np
import pytest
from mmengine.logging import MMLogger
from tiny_files import TinySegmenter, arrays, write_file

from mmkerneldna.deploy.quantise_onnx import quantise_onnx, read_selection


class Talking(list):
    """Batches, with a warning by somebody else when they are read."""

    def __iter__(self):
        logging.warning('of somebody else')
        return super().__iter__()


class Ears(logging.Handler):
    """Keeps what it hears. (Not caplog: NNCF sets the level of its handlers.)"""

    def __init__(self, logger):
        super().__init__()
        self.logger, self.heard = logger, []

    def __enter__(self):
        self.logger.addHandler(self)
        return self.heard

    def __exit__(self, *error):
        self.logger.removeHandler(self)

    def emit(self, record):
        self.heard.append(record.getMessage())


def test_advice_goes_to_the_log_and_other_warnings_stay(tmp_path):
    pytest.importorskip('onnxruntime')
    path, root = write_file(tmp_path / 'net.onnx', TinySegmenter(8)), logging.getLogger()
    before = list(root.handlers), list(root.filters)
    with Ears(root) as by_root, Ears(MMLogger.get_current_instance()) as by_log:
        quantise_onnx(path, tmp_path / 'int8.onnx', Talking([np.stack(arrays(2))]), read_selection(path))
    assert set(by_root) == {'of somebody else'}
    assert [line for line in by_log if line.startswith('onnxruntime: ') and 'pre-processing before quantization' in line]
    assert (list(root.handlers), list(root.filters)) == before
