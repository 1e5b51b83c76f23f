"""Hand-written work_dirs, as mmengine leaves them."""

import json

DET_CFG = """
default_scope = 'mmdet'
model = dict(type='FasterRCNN', backbone=dict(type='KDNAResNet', depth=18))
train_cfg = dict(max_epochs=3, type='EpochBasedTrainLoop')
randomness = dict(seed={seed})
"""
SEG_CFG = """
default_scope = 'mmseg'
model = dict(type='EncoderDecoder', backbone=dict(type='MobileNetV2'))
train_cfg = dict(max_iters=200, type='IterBasedTrainLoop')
"""


def cost(latency, params=10.0):
    """Cost metrics as CostHook writes them."""
    return {
        'cost/latency_ms': latency,
        'cost/latency_p90_ms': latency * 1.1,
        'cost/throughput_img_s': 1e3 / latency,
        'cost/gmacs': 2.0,
        'cost/unique_params_m': params,
        'cost/deployed_params_m': params + 5,
        'cost/peak_memory_mb': 100.0,
        'cost/height': 64.0,
        'cost/width': 96.0,
        'cost/batch': 1.0,
    }


def train_line(step, epoch, time=0.5):
    return dict(lr=0.1, loss=1.0, epoch=epoch, iter=step, step=step, time=time, memory=1)


def write_stamp(work_dir, stamp, config, records=(), test=None, tail=''):
    """One timestamp folder: config, log records, a test's metrics."""
    vis = work_dir / stamp / 'vis_data'
    vis.mkdir(parents=True)
    (vis / 'config.py').write_text(config)
    if records:
        (vis / 'scalars.json').write_text('\n'.join(map(json.dumps, records)) + '\n' + tail)
    if test is not None:
        (work_dir / stamp / f'{stamp}.json').write_text(json.dumps(test))
    return work_dir


def detection_run(work_dir, scores=(0.1, 0.3, 0.2), test=None, latency=20.0, seed=0, config='faster-rcnn'):
    """A detector validated after each of three epochs, and perhaps tested."""
    records = []
    for epoch, score in enumerate(scores, 1):
        records += [
            train_line(10 * epoch, epoch),
            {'coco/bbox_mAP': score, 'coco/bbox_mAP_50': 2 * score, **cost(latency), 'step': epoch},
        ]
    work_dir.mkdir(parents=True)
    (work_dir / f'{config}.py').write_text('')
    write_stamp(work_dir, '20260101_000000', DET_CFG.format(seed=seed), records)
    if test is not None:
        metrics = {'coco/bbox_mAP': test, **cost(latency + 1)}
        write_stamp(work_dir, '20260102_000000', DET_CFG.format(seed=seed), test=metrics)
    return work_dir


def segmentation_run(work_dir, miou=40.0, latency=30.0):
    """A segmenter validated once, at its last iteration."""
    records = [train_line(100, 1), train_line(200, 1), {'mIoU': miou, 'aAcc': 80.0, **cost(latency, 12.0), 'step': 200}]
    return write_stamp(work_dir, '20260103_000000', SEG_CFG, records)
