"""An int8 file from an fp32 one, with the images and the evaluation of a config."""

import tempfile
from pathlib import Path

from mmengine.config import Config

from ..deploy.quantise import QuantiseReport, quantise
from .calibration import DEFAULT_COUNT, calibration_images
from .evaluation import Evaluation
from .quiet import QuietOutput


def quantise_file(
    cfg: Config,
    path: Path,
    out: Path,
    calib: int = DEFAULT_COUNT,
    max_drop: float | None = None,
    output: QuietOutput | None = None,
) -> QuantiseReport:
    """Quantise an end-to-end file, calibrated on the config's training images.

    Args:
        cfg: the whole config that the file was exported from.
        path, out: fp32 file, int8 file.
        calib: number of images.
        max_drop: largest loss of the config's main score, in points, on its test set; layers that hurt stay float.
        output: shows where a test is.

    Returns:
        QuantiseReport: names the layers that stay float.

    Raises:
        UsageError, DataError: see :func:`.calibration_images`.
        QuantiseError, FileError: see :func:`mmkerneldna.deploy.quantise.quantise`.
    """
    images = calibration_images(cfg, calib)
    if max_drop is None:
        return quantise(path, out, images)
    with tempfile.TemporaryDirectory() as folder:  # logs of the tests
        cfg = cfg.copy()
        cfg.work_dir = folder
        return quantise(path, out, images, max_drop, Evaluation(cfg, output=output).score_file)
