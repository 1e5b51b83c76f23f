"""Write model-index.yml and every configs/*/metafile.yml from the configs that are there.

mmengine's ``get_config('mmkerneldna::...')`` and mim look configs up in these. No score is written: a metafile has
them where a checkpoint is published with them.
"""

import argparse
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = '# Written by tools/make_metafiles.py\n'
DATA_SETS = {'coco': 'COCO', 'ade20k': 'ADE20K', 'shapes': 'generated shapes', 'bccd': 'BCCD', 'camvid': 'CamVid'}


def config_folders(root: Path) -> list:
    """Folders of ``root/configs`` that hold runnable configs, by name."""
    return sorted(
        folder for folder in (root / 'configs').iterdir() if not folder.name.startswith(('_', '.')) and any(folder.glob('*.py'))
    )


def metafile(folder: Path) -> str:
    """The metafile of one config folder."""
    lines = [HEADER + 'Collections:', f'  - Name: {folder.name}', 'Models:']
    for config in sorted(folder.glob('*.py')):
        data = next((label for word, label in DATA_SETS.items() if word in config.stem), 'unknown')
        lines += [
            f'  - Name: {config.stem}',
            f'    In Collection: {folder.name}',
            f'    Config: configs/{folder.name}/{config.name}',
            '    Metadata:',
            f'      Training Data: {data}',
        ]
    return '\n'.join(lines) + '\n'


def metafiles(root: Path) -> dict:
    """Path -> content of every file this tool writes."""
    folders = config_folders(root)
    index = HEADER + 'Import:\n' + ''.join(f'  - configs/{folder.name}/metafile.yml\n' for folder in folders)
    return {root / 'model-index.yml': index, **{folder / 'metafile.yml': metafile(folder) for folder in folders}}


def main():
    argparse.ArgumentParser(description=__doc__.split('\n')[0]).parse_args()
    for path, content in metafiles(ROOT).items():
        path.write_text(content)
    print(f'wrote {len(metafiles(ROOT))} files')


if __name__ == '__main__':
    main()
