"""Run an exported ONNX file: pip install numpy Pillow onnxruntime

python examples/run_onnxruntime.py model.onnx photo.jpg --out found.png
"""

import json

import onnxruntime
from _pictures import arguments, draw, read_picture

args = arguments(__doc__)
session = onnxruntime.InferenceSession(args.file, providers=['CPUExecutionProvider'])
meta = json.loads(session.get_modelmeta().custom_metadata_map['mmkerneldna'])
picture, images = read_picture(args.picture, meta)
outputs = dict(zip(meta['outputs'], session.run(meta['outputs'], {meta['input']['name']: images})))
draw(picture, images, outputs, meta, args.score_thr).save(args.out)
print(f'{args.picture} -> {args.out}')
