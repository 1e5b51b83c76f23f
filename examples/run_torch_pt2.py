"""Run an exported pt2 package (AOTInductor): pip install numpy Pillow torch; neither mmkerneldna nor any mm library.

python examples/run_torch_pt2.py model.pt2 photo.jpg --out found.png
"""

import json
import zipfile

import torch
from _pictures import arguments, draw, read_picture

args = arguments(__doc__)
with zipfile.ZipFile(args.file) as archive:
    name = next(name for name in archive.namelist() if name.endswith('extra/mmkerneldna'))
    meta = json.loads(archive.read(name))
run = torch._inductor.aoti_load_package(args.file)
picture, images = read_picture(args.picture, meta)
with torch.inference_mode():
    outputs = dict(zip(meta['outputs'], (output.float().numpy() for output in run(torch.from_numpy(images)))))
if 'labels_map' in outputs:
    outputs['labels_map'] = outputs['labels_map'].astype('int64')
draw(picture, images, outputs, meta, args.score_thr).save(args.out)
print(f'{args.picture} -> {args.out}')
