"""Score several models by one config's test data and evaluator, one after the other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from ..deploy.exported_model import ExportedModel
from ..errors import UsageError
from ..runs.scores import SCORES, Score, is_number
from .coco_scores import use_fast_coco_scores
from .config import build_loops, build_runner
from .predictions import innermost_dataset
from .quiet import QuietOutput
from .settings import check_settings


class Evaluation:
    """The usual test of a config, for models that come from somewhere else.

    Image by image: in a batch of several sizes torch sees the padding of the largest, an exported file does not, and scores
    would differ by that (0.4 box AP on the shapes, in batches of four).

    Args:
        cfg: with test data and ``work_dir``; it is copied.
        images (int, optional): the first so many images of the test set. By default all.
        output (QuietOutput, optional): shows where a test is.

    Raises:
        UsageError: the config has no test data or evaluator, or can't be built.
    """

    def __init__(self, cfg: Config, images: int | None = None, output: QuietOutput | None = None) -> None:
        check_settings(cfg, needed=('test_dataloader.dataset', 'test_cfg', 'test_evaluator'))
        cfg = cfg.copy()
        cfg.load_from, cfg.resume = None, False
        cfg.custom_hooks = []  # cost is measured elsewhere
        use_fast_coco_scores(cfg)
        cfg.test_dataloader.batch_size = 1
        if images is not None:
            innermost_dataset(cfg.test_dataloader.dataset).indices = images
        self.runner = build_runner(cfg, output)
        build_loops(self.runner, 'test')
        if images is not None:
            self._only_these_images()

    def __call__(self, model: nn.Module) -> dict[str, Any]:
        """The metrics of a model."""
        self.runner.model = model
        return self.runner.test()

    def score_file(self, path: Path) -> float:
        """The main score of an exported file, in percent."""
        return main_score(self(ExportedModel(str(path))))[1]

    @property
    def dataset(self):
        """The test set."""
        return self.runner.test_loop.dataloader.dataset

    def _only_these_images(self) -> None:
        """COCO's metrics would count the objects of all images of the annotation file as missed."""
        metrics: Any = self.runner.test_loop.evaluator.metrics
        for metric in metrics:
            if hasattr(metric, 'img_ids'):
                metric.img_ids = [self.dataset.get_data_info(index)['img_id'] for index in range(len(self.dataset))]


def main_score(metrics: Mapping[str, Any]) -> tuple[Score, float]:
    """The score by which runs are sorted, and its value in percent.

    Raises:
        UsageError: none that is known.
    """
    for score in SCORES:
        if is_number(metrics.get(score.key)):
            return score, float(metrics[score.key]) * score.scale
    raise UsageError(f'the evaluator gives no score that is known here: {", ".join(score.key for score in SCORES)}')
