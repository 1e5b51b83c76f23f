"""Pictures of what trained models find: boxes, masks and maps; of several models side by side.

    python tools/infer.py CONFIG.py CHECKPOINT.pth photo.jpg --out out
    python tools/infer.py static=A.py a.pth kdna=B.py b.pth photos/ clip.mp4 --out out

For each picture DIR gets pictures/NAME.png, json/NAME.json (classes, scores, boxes, masks as COCO RLE; shares of the pixels for
a segmenter), and maps/MODEL/NAME.png (a segmenter's class indices); for a video pictures/NAME.mp4 and one JSON with all frames.
Below each picture stand the model's test score, if its checkpoint lies in the folder of a run, and the milliseconds of this
call. They are of one call: tools/benchmark.py measures latency.
"""

import argparse
import re
import sys
from pathlib import Path

import _before_imports  # noqa: F401  (before torch)
import cv2
import numpy as np
from rich.console import Console

from mmkerneldna.checkpoints.loading import install_safe_loading
from mmkerneldna.errors import KernelDNAError, UsageError, one_line_errors
from mmkerneldna.launch.arguments import add_device_argument, add_unsafe_argument, add_verbose_argument, number
from mmkerneldna.launch.inference import Predictor, find_sources, output_names
from mmkerneldna.launch.panels import side_by_side
from mmkerneldna.launch.quiet import quiet_output
from mmkerneldna.measure.tables import write_json
from mmkerneldna.runs.results import collect_run
from mmkerneldna.runs.study import result_line


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'words',
        nargs='+',
        metavar='[NAME=]CONFIG CHECKPOINT ... INPUT',
        help='one or more models, then pictures, videos, or folders of them',
    )
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='where the results go')
    parser.add_argument(
        '--score-thr', type=number(0, 1, whole=False), default=0.3, help='objects below it are neither drawn nor listed'
    )
    add_device_argument(parser)
    add_unsafe_argument(parser)
    add_verbose_argument(parser)
    return parser.parse_args()


def read_words(words):
    """[(name, config, checkpoint)], and the inputs behind them."""
    models = []
    while words and words[0].endswith('.py'):
        if len(words) < 2 or not re.search(r'\.pth?$', words[1]):
            raise UsageError(f'config {words[0]} must be followed by its checkpoint, FILE.pth')
        name, _, config = words[0].rpartition('=')
        models.append((name or Path(config.split('::')[-1]).stem, config, words[1]))
        words = words[2:]
    if not models:
        raise UsageError(f'{words[0]} is no config (*.py): name CONFIG CHECKPOINT first, then the pictures')
    if not words:
        raise UsageError('no picture, video or folder is named behind the models')
    names = [name for name, _, _ in models]
    if len(set(names)) < len(names):
        raise UsageError(f'two models have one name ({", ".join(names)}); write NAME=CONFIG')
    return models, words


def test_score(checkpoint):
    """What a test or validation of the checkpoint's run found, in words; '' if it lies in no folder of a run."""
    try:
        row = collect_run(Path(checkpoint).resolve().parent)
    except (OSError, KernelDNAError):
        return ''
    return '' if row['score'] is None else result_line(row)


class Contest:
    """All models on one input after the other."""

    def __init__(self, models, args):
        self.predictors = {
            name: Predictor(config, checkpoint, args.device, args.score_thr) for name, config, checkpoint in models
        }
        self.about = {
            name: dict(config=config, checkpoint=checkpoint, score=test_score(checkpoint))
            for name, config, checkpoint in models
        }
        self.out = args.out

    def panel(self, image):
        """The models' predictions on one picture, and the picture of all."""
        found = {name: predict(image) for name, predict in self.predictors.items()}
        captions = [
            [name, ', '.join(filter(None, [self.about[name]['score'], f'{prediction.ms:.1f} ms']))]
            for name, prediction in found.items()
        ]
        return found, side_by_side([prediction.picture for prediction in found.values()], captions)

    def picture(self, source, name):
        """Write all results of a picture; returns the path of the picture."""
        found, panel = self.panel(next(source.frames()))
        for model, prediction in found.items():
            if prediction.label_map is not None:
                write_png(self.out / 'maps' / model / f'{name}.png', prediction.label_map)
        self.write_facts(name, source, [found])
        return write_png(self.out / 'pictures' / f'{name}.png', panel[..., ::-1])

    def video(self, source, name):
        """The same for a video."""
        path, writer, frames = self.out / 'pictures' / f'{name}.mp4', None, []
        path.parent.mkdir(parents=True, exist_ok=True)
        for image in source.frames():
            found, panel = self.panel(image)
            writer = writer or cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), source.rate(), panel.shape[1::-1])
            writer.write(np.ascontiguousarray(panel[..., ::-1]))
            frames.append(found)
        writer.release()
        self.write_facts(name, source, frames)
        return path

    def write_facts(self, name, source, frames):
        """One JSON for all models."""
        models = [
            dict(name=model, **about, frames=[dict(ms=found[model].ms, **found[model].facts) for found in frames])
            for model, about in self.about.items()
        ]
        path = self.out / 'json' / f'{name}.json'
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, dict(input=str(source.path), models=models))


def write_png(path, image):
    """Write (H, W) or (H, W, 3), BGR; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), np.ascontiguousarray(image)):
        raise UsageError(f'{path} can not be written')
    return path


def main():
    args, console = parse_args(), Console(file=sys.stdout)
    with one_line_errors():
        models, inputs = read_words(args.words)
        sources = find_sources(inputs)
        install_safe_loading(args.unsafe_checkpoint)
        with quiet_output():
            contest = Contest(models, args)
            for source, name in output_names(sources):
                path = (contest.video if source.video else contest.picture)(source, name)
                console.print(f'{source.path} -> {path}', highlight=False, markup=False, soft_wrap=True)


if __name__ == '__main__':
    main()
