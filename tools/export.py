"""Export a trained model, deployed, and check the file against torch.

    python tools/export.py CONFIG CHECKPOINT --format onnx --end2end
    python tools/export.py CONFIG CHECKPOINT --format openvino --end2end --dynamic none --size 480x640
    python tools/export.py CONFIG CHECKPOINT --format pt2 --scope model --size 512x512 --dynamic batch

--end2end writes the whole model: pictures in (uint8, BGR), boxes, masks or the label map out; docs/export.md has the file's
contract. It is compared with torch on images of the config's test set (or --images) before it gets its name; the report is
printed and lies beside it as JSON. --int8 quantises the checked file (docs/formats.md).

Without it the file takes images as the data preprocessor leaves them: normalised (mean and std are printed), sides a multiple
of 32. --scope model gives a segmenter's logits at the size of the image, a detector's raw head outputs: no decoding, no NMS; of
a two-stage detector features and RPN outputs. A pt2 file (AOTInductor) runs without this package and without mm libraries:
torch._inductor.aoti_load_package(FILE)(images).
"""

import argparse
import os
import tempfile
from pathlib import Path

import _before_imports  # noqa: F401  (before torch)
from mmengine.runner import CheckpointLoader
from rich.console import Console

from mmkerneldna import launch
from mmkerneldna._quiet import quiet_warnings
from mmkerneldna.checkpoints.loading import install_safe_loading
from mmkerneldna.deploy import lean_copy
from mmkerneldna.deploy.end2end import EndToEnd, export_whole
from mmkerneldna.deploy.end2end.agreement import TOLERANCES
from mmkerneldna.deploy.end2end.export import FORMATS
from mmkerneldna.deploy.export import SCOPES, export
from mmkerneldna.deploy.file_meta import read_meta
from mmkerneldna.deploy.half import HALF
from mmkerneldna.deploy.quantise import FEWEST_IMAGES
from mmkerneldna.deploy.writers import DYNAMIC, SUFFIXES
from mmkerneldna.errors import UsageError, one_line_errors
from mmkerneldna.launch.arguments import (
    add_cfg_options_argument,
    add_shared_argument,
    add_unsafe_argument,
    add_verbose_argument,
    image_size,
    number,
)
from mmkerneldna.launch.calibration import DEFAULT_COUNT
from mmkerneldna.launch.int8 import quantise_file
from mmkerneldna.launch.quiet import quiet_output
from mmkerneldna.launch.sample_images import class_names, folder_images, sample_images
from mmkerneldna.launch.trained import build_trained
from mmkerneldna.measure.tables import write_json


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a file, or mmkerneldna::folder/name.py of the installed package')
    parser.add_argument('checkpoint', help='weights of the whole model')
    parser.add_argument('--format', choices=list(SUFFIXES), required=True)
    parser.add_argument('--end2end', action='store_true', help='the whole model: pictures in, detections or label maps out')
    parser.add_argument(
        '--scope', choices=SCOPES, help='without --end2end: backbone (default); neck: and neck; model: raw outputs'
    )
    parser.add_argument('--size', type=image_size, default=(512, 512), metavar='N|HxW', help='of the example image')
    parser.add_argument('--dynamic', choices=DYNAMIC, default='both', help='what may vary: batch and size, batch, nothing')
    parser.add_argument('--dtype', choices=list(TOLERANCES), default='fp32', help='with --end2end: openvino; onnx (fp16)')
    parser.add_argument('--images', nargs='+', metavar='FILE', help='check --end2end with these pictures, not the test set')
    parser.add_argument('--check', type=number(1), default=4, metavar='N', help='images of the test set to check with')
    parser.add_argument('--int8', action='store_true', help="--end2end in int8, calibrated on the config's training images")
    parser.add_argument(
        '--calib', type=number(FEWEST_IMAGES), metavar='N', help=f'images for --int8 (default: {DEFAULT_COUNT})'
    )
    parser.add_argument(
        '--max-drop', type=number(0, whole=False), metavar='POINTS', help='largest loss of --int8: layers that hurt stay float'
    )
    parser.add_argument('--out', type=Path, help='file (default: beside the checkpoint)')
    add_shared_argument(parser)
    add_unsafe_argument(parser)
    add_cfg_options_argument(parser)
    add_verbose_argument(parser)
    args = parser.parse_args()
    if args.end2end and args.scope:
        raise UsageError(f'--scope {args.scope} is a part of the model, --end2end the whole: leave one out')
    if args.end2end and args.format not in FORMATS:
        raise UsageError(f'--end2end --format {args.format}: a whole model goes to {", ".join(FORMATS)}')
    if args.int8 and (not args.end2end or args.format == 'pt2'):
        raise UsageError('--int8 is for --end2end --format onnx or openvino')
    if (args.calib or args.max_drop is not None) and not args.int8:
        raise UsageError('--calib and --max-drop are for --int8: add it, or leave them out')
    if args.dtype != 'fp32' and (not args.end2end or args.dtype not in HALF.get(args.format, ())):
        fits = ' or '.join(kind for kind, dtypes in HALF.items() if args.dtype in dtypes)
        raise UsageError(f'--dtype {args.dtype} is for --end2end --format {fits}')
    if args.int8 and args.dtype != 'fp32':
        raise UsageError(f'--int8 and --dtype {args.dtype}: what --int8 leaves in float stays fp32, leave one out')
    if args.images and not args.end2end:
        raise UsageError('--images are for the check of --end2end: add it, or leave them out')
    return args


def target(args) -> Path:
    """The file to write, refused before anything slow where it can't be."""
    suffix = SUFFIXES[args.format]
    path = args.out or Path(args.checkpoint).with_name(
        f'{Path(args.config).stem}_{"end2end" if args.end2end else args.scope or "backbone"}{"_int8" * args.int8}{suffix}'
    )
    if path.is_dir():
        raise UsageError(f'{path} is a folder: name a file in it by --out')
    if path.suffix != suffix:
        raise UsageError(f'--out {path}: the name of a file of --format {args.format} ends in {suffix}')
    if not path.parent.is_dir():
        raise UsageError(f'folder {path.parent} does not exist: make it, or name a file elsewhere by --out')
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f'folder {path.parent} is not writable: name a file elsewhere by --out')
    return path


def write_whole(cfg, checkpoint, model, path, args, console):
    """Write and check the whole model, and the report beside it."""
    missing = [image for image in args.images or () if not Path(image).is_file()]
    if missing:
        raise UsageError(f'--images {missing[0]} does not exist')
    images = folder_images(cfg, args.images) if args.images else sample_images(cfg, args.check)
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder, path.name) if args.int8 else path
        names = class_names(cfg, checkpoint)
        wanted = EndToEnd(
            first, args.format, args.size, args.dynamic, Path(args.config).stem, names, images, args.dtype, args.shared
        )
        meta, agreement = export_whole(model, wanted)
        report = write_int8(cfg, first, path, args) if args.int8 else None
    facts = dict(file=path.name, meta=vars(read_meta(path)), check=agreement.facts())
    if report:
        facts['int8'] = vars(report)
    write_json(path.with_suffix(path.suffix + '.json'), facts)
    lines = [f'file: {path}', f'outputs: {", ".join(meta.outputs)}', str(agreement), str(report or '')]
    console.print(*filter(None, lines), sep='\n', soft_wrap=True)


def write_int8(cfg, path, out, args):
    """Quantise the file that was checked."""
    with quiet_output() as output:
        return quantise_file(cfg, path, out, args.calib or DEFAULT_COUNT, args.max_drop, output)


def write_part(cfg, model, path, args, console):
    """Write and check a part of the model."""
    facts = export(lean_copy(model, shared=args.shared), path, args.format, args.scope or 'backbone', args.size, args.dynamic)
    preprocessor = cfg.model.get('data_preprocessor') or {}
    facts['preprocess'] = {key: preprocessor.get(key) for key in ('mean', 'std', 'bgr_to_rgb', 'pad_size_divisor')}
    checked = facts.pop('checked')
    for key, value in facts.items():
        console.print(f'{key}: {value}')
    for shape, deviation in checked.items():
        console.print(f'checked at {shape}: off by {deviation:.1e} of the largest output')


def main():
    args, console = parse_args(), Console()
    cfg = launch.load_config(args.config, args.cfg_options)
    install_safe_loading(args.unsafe_checkpoint)
    checkpoint = CheckpointLoader.load_checkpoint(args.checkpoint, map_location='cpu')
    path = target(args)
    model = build_trained(cfg, args.checkpoint, checkpoint)
    if args.end2end:
        write_whole(cfg, checkpoint, model, path, args, console)
    else:
        write_part(cfg, model, path, args, console)


if __name__ == '__main__':
    with one_line_errors(), quiet_warnings():
        main()
