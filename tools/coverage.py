"""Which methods of mmdet and mmseg a variant works on: builds one config of every folder, runs it, writes a table.

    python tools/coverage.py                                              # every folder, docs/coverage.md
    python tools/coverage.py --folders mmdet/rtmdet mmseg/unet --variants kdna odconv4x --out coverage.md

Of each method folder that the installed packages ship, the first config with a model is taken. The variant changes its
backbone (of a transformer without convolutions its neck), which runs forward once in training mode and once in evaluation
mode on a small image; the feature maps must have the shapes of the static net's. Equal backbones run once. Weights are one
constant: drawing them would take most of the time, and no shape depends on them.
"""

import argparse
import importlib.util
import json
import logging
import time
from pathlib import Path

import _before_imports  # noqa: F401  (before torch)
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope

from mmkerneldna import launch
from mmkerneldna.errors import KernelDNAError, UsageError, one_line_errors
from mmkerneldna.launch.arguments import number
from mmkerneldna.launch.variant import find_change, model_with_backbone
from mmkerneldna.layers import ChildConv2d
from mmkerneldna.modules import count_parameters
from mmkerneldna.variants import RIVALS, VARIANTS

PACKAGES = ('mmdet', 'mmseg')
SIZES = (64, 128, 224, 512)  # the first that the static net takes
RUNTIME = ('init_cfg', 'pretrained', 'norm_eval', 'frozen_stages', 'with_cp', 'style')  # settings that change no layer
DRAWS = ('kaiming_normal_', 'kaiming_uniform_', 'normal_', 'trunc_normal_', 'uniform_', 'xavier_normal_', 'xavier_uniform_')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--folders', nargs='+', metavar='PACKAGE/FOLDER', help='only these (default: all)')
    parser.add_argument(
        '--variants',
        nargs='+',
        choices=['kdna', *RIVALS],
        default=['kdna', *RIVALS],
        metavar='NAME',
        help='columns of the table (default: all)',
    )
    parser.add_argument(
        '--max-params',
        type=number(0, whole=False),
        default=800,
        metavar='M',
        help='leave out a rival of more than M million parameters (memory)',
    )
    parser.add_argument('--cache', type=Path, help='a JSON file of cells that a run which was stopped left')
    parser.add_argument('--out', type=Path, default=Path('docs/coverage.md'))
    return parser.parse_args()


def method_folders(package):
    """Folders of configs that an installed package ships, those of parts (``_base_``, ``common``) left out."""
    root = Path(importlib.util.find_spec(package).origin).parent / '.mim' / 'configs'
    return [folder for folder in sorted(root.iterdir()) if folder.is_dir() and folder.name not in ('_base_', 'common')]


def first_config(folder):
    """(name, config) of the first config by name that has a model; the reason in place of a config if none can be read."""
    reason = 'no config with a model'
    for path in sorted(folder.glob('*.py')):
        try:
            cfg = Config.fromfile(path)
        except Exception as error:  # a package that is missing, mostly
            reason = ' '.join(str(error).split()).partition(', the current sys.path')[0][:150]
            continue
        if 'model' in cfg:
            return path.name, cfg
    return '-', reason


class Method:
    """The model of one folder, its static backbone built and run."""

    def __init__(self, cfg):
        self.cfg, cfg.launcher = cfg, 'none'
        launch.unsync_batch_norm(cfg)
        self.place = model_with_backbone(cfg.model)
        if self.place is None:
            raise ValueError('the model has no backbone')
        self.kind = str(self.place['backbone']['type']).rpartition('.')[2]
        settings = {key: value for key, value in self.place['backbone'].items() if key not in RUNTIME}
        self.key = json.dumps([settings, cfg.get('default_scope')], default=str, sort_keys=True)
        self.neck_key = json.dumps([self.key, self.place.get('neck')], default=str, sort_keys=True)
        self.static = None

    def build(self):
        """The static backbone, and a size that it takes; once, and only if a cell is not known yet."""
        if self.static is None:
            with DefaultScope.overwrite_default_scope(self.cfg.get('default_scope', 'mmengine')):
                static = MODELS.build(self.place['backbone'])
            self.size = next(size for size in SIZES if runs(static, size, size == SIZES[-1]))
            self.static = static
        return count_parameters(self.static) / 1e6

    def cell(self, name):
        """What a variant does: the number of convolutions changed, or why not."""
        try:
            change = find_change(self.cfg, name)
        except KernelDNAError as error:
            return dict(reason=str(error))
        kind = ChildConv2d if name == 'kdna' else MODELS.get(VARIANTS[name].conv['type'])
        count = sum(isinstance(m, kind) for m in change.module.modules())
        try:
            for training in (True, False):
                self.compare(change, training)
        except Exception as error:
            return dict(reason=f'{type(error).__name__} in the forward pass: {" ".join(str(error).split())[:200]}')
        return dict(count=count, part='backbone' if change.key == 'backbone' else 'neck')

    @torch.no_grad()
    def compare(self, change, training):
        """Run the changed part.

        Raises:
            ValueError: its outputs have other shapes than the static part's.
        """
        change.module.train(training)
        self.static.train(training)
        x = torch.rand(2 if training else 1, 3, self.size, self.size)
        expected = self.static(x)
        if change.key != 'backbone':
            change.module(expected)
            return
        if shapes(change.module(x)) != shapes(expected):
            raise ValueError(f'feature maps of other shapes: {shapes(change.module(x))}, not {shapes(expected)}')


@torch.no_grad()
def runs(module, size, last):
    try:
        module.eval()
        module(torch.rand(1, 3, size, size))
        return True
    except Exception:
        if last:
            raise
        return False


def shapes(outputs):
    """Shapes of tensors in any nesting."""
    if torch.is_tensor(outputs):
        return tuple(outputs.shape)
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return [shapes(value) for value in values] if isinstance(outputs, (dict, list, tuple)) else None


def table_rows(args):
    """One row per folder: names, and a cell per variant."""
    cells = json.loads(args.cache.read_text()) if args.cache and args.cache.exists() else {}
    rows = []
    for package in PACKAGES:
        for folder in method_folders(package):
            if args.folders and f'{package}/{folder.name}' not in args.folders:
                continue
            name, cfg = first_config(folder)
            row = dict(package=package, folder=folder.name, config=name, backbone='-')
            start = time.monotonic()
            try:
                method = Method(cfg) if isinstance(cfg, Config) else None
                row.update(
                    cells={variant: dict(reason=cfg) for variant in args.variants}
                    if method is None
                    else method_cells(method, args, cells),
                    backbone=method.kind if method else '-',
                )
            except Exception as error:
                reason = f'the static net does not run here: {type(error).__name__}: {" ".join(str(error).split())[:200]}'
                row['cells'] = {variant: dict(reason=reason) for variant in args.variants}
            rows.append(row)
            print(
                f'{package}/{folder.name}: {row["backbone"]}, {time.monotonic() - start:.0f} s: '
                f'{", ".join(f"{key} {short(cell)}" for key, cell in row["cells"].items())}',
                flush=True,
            )
    return rows


def method_cells(method, args, cells):
    """The cells of a method; those of an equal backbone are read, new ones are kept in the cache file.

    A cell that is not about the backbone alone counts for the same neck only.
    """
    for name in args.variants:
        if name in cells.get(method.key, {}) or name in cells.get(method.neck_key, {}):
            continue
        conv = VARIANTS[name].conv or {}
        size = method.build() * conv.get('num_experts', conv.get('budget', 1))
        cell = method.cell(name) if size < args.max_params else dict(reason=f'about {size:.0f} M parameters: not tried')
        key = method.key if cell.get('part') == 'backbone' else method.neck_key
        cells.setdefault(key, {})[name] = cell
        if args.cache:
            args.cache.write_text(json.dumps(cells))
    known = {**cells.get(method.neck_key, {}), **cells.get(method.key, {})}
    return {name: known[name] for name in args.variants}


def short(cell):
    """A cell of the table."""
    return str(cell['count']) + ' neck' * (cell['part'] == 'neck') if 'count' in cell else 'no'


def markdown(rows, variants):
    """The document: how many folders work, the table, the reasons."""
    lines = [
        '# Coverage',
        '',
        'Written by `python tools/coverage.py`. One config, the first by name, of every method folder '
        'of the installed packages; a cell',
        'is the number of convolutions that the variant changed, in the backbone '
        'unless it says *neck*, after one forward pass in training',
        "and one in evaluation mode whose feature maps have the static net's shapes; *no* has its reason below.",
        '',
    ]
    for package in PACKAGES:
        ours = [row for row in rows if row['package'] == package]
        if not ours:
            continue
        lines += [f'## {package}', '']
        lines += [
            f'Of {len(ours)} folders work: '
            + ', '.join(f'{name} {sum("count" in row["cells"][name] for row in ours)}' for name in variants)
            + '.',
            '',
        ]
        lines += ['| folder | config | backbone | ' + ' | '.join(variants) + ' |', '|---' * (3 + len(variants)) + '|']
        lines += [
            f'| {row["folder"]} | {row["config"].removesuffix(".py")} | {row["backbone"]} | '
            + ' | '.join(short(row['cells'][name]) for name in variants)
            + ' |'
            for row in ours
        ]
        lines += ['', *reasons(ours), '']
    return '\n'.join(lines).rstrip() + '\n'


def reasons(rows):
    """One line per reason, with the folders and variants it holds for."""
    found = {}
    for row in rows:
        for name, cell in row['cells'].items():
            if 'count' not in cell:
                text = ' '.join(cell['reason'].split())
                found.setdefault(text.replace(f'variant {name} ', '').replace(f'variant {name}: ', '')[:300], []).append(
                    (row['folder'], name)
                )
    return [
        f'- {", ".join(sorted({folder for folder, _ in where}))} ({", ".join(dict.fromkeys(name for _, name in where))}): '
        f'{text}'
        for text, where in found.items()
    ]


def fill(tensor, *args, **kwargs):
    """In place of a random draw."""
    with torch.no_grad():
        return tensor.fill_(0.01)


def check(args):
    """Refuse before an hour of work what would fail behind it."""
    known = {f'{package}/{folder.name}' for package in PACKAGES for folder in method_folders(package)}
    unknown = sorted(set(args.folders or ()) - known)
    if unknown:
        raise UsageError(f'--folders {unknown[0]}: no such folder of configs; expected e.g. mmdet/faster_rcnn')
    if args.out.is_dir():
        raise UsageError(f'--out {args.out} is a folder: name a file in it')
    launch.make_folder(args.out.parent, '--out')


def main():
    args = parse_args()
    with one_line_errors():
        check(args)
    MMLogger.get_current_instance().setLevel(logging.ERROR)
    for name in DRAWS:
        setattr(torch.nn.init, name, fill)
    args.out.write_text(markdown(table_rows(args), args.variants))
    print(args.out)


if __name__ == '__main__':
    main()
