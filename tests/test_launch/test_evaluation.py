"""Scores of models that come from somewhere else."""

from pathlib import Path

import torch
from helpers import randomise
from mmengine.registry import MODELS, init_default_scope

from mmkerneldna import launch
from mmkerneldna.datasets import ShapesSpec, generate_shapes
from mmkerneldna.launch.evaluation import Evaluation

CONFIG = Path(__file__).resolve().parents[2] / 'configs/shapes/upernet_r18_shapes.py'


def test_images_are_not_padded_to_each_other(tmp_path):
    """What a model sees does not depend on the batch size of the config."""
    data = generate_shapes(tmp_path / 'shapes', ShapesSpec(train_images=1, val_images=3, min_side=96, max_side=128))
    cfg = launch.load_config(str(CONFIG), dict(data_root=str(data), work_dir=str(tmp_path), test_dataloader=dict(batch_size=3)))
    init_default_scope(cfg.default_scope)
    model, seen = randomise(MODELS.build(cfg.model)).eval(), []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    evaluation = Evaluation(cfg)
    with torch.no_grad():
        evaluation(model)
    sizes = [tuple(evaluation.dataset[index]['inputs'].shape) for index in range(3)]
    assert len(set(sizes)) > 1 and seen == [(1, *size) for size in sizes]
