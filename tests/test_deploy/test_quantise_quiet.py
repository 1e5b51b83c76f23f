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


def test_advice_goes_to_the_log_and_other_warnings_stay(tmp_path, caplog):
    pytest.importorskip('onnxruntime')
    path, said, root = write_file(tmp_path / 'net.onnx', TinySegmenter(8)), [], logging.getLogger()
    before = list(root.handlers), list(root.filters)
    keep = logging.Handler()
    keep.emit = lambda record: said.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(keep)
    try:
        quantise_onnx(path, tmp_path / 'int8.onnx', Talking([np.stack(arrays(2))]), read_selection(path))
    finally:
        logger.removeHandler(keep)
    assert [record.getMessage() for record in caplog.records if record.name == 'root'] == ['of somebody else']
    assert [line for line in said if line.startswith('onnxruntime: ') and 'pre-processing before quantization' in line]
    assert (list(root.handlers), list(root.filters)) == before
