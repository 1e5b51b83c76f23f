"""Run an exported OpenVINO file: pip install numpy Pillow openvino

python examples/run_openvino.py model.xml photo.jpg --out found.png
"""

import json

import openvino
from _pictures import arguments, draw, read_picture

#: left to itself OpenVINO computes in bf16 where the CPU has it
PRECISIONS = dict(fp32='f32', bf16='bf16', fp16='f16')

args = arguments(__doc__)
model = openvino.Core().read_model(args.file)
meta = json.loads(model.get_rt_info('mmkerneldna').astype(str))
hint = {'INFERENCE_PRECISION_HINT': PRECISIONS[meta['dtype']]} if meta['dtype'] in PRECISIONS else {}
compiled = openvino.compile_model(model, 'CPU', hint)
picture, images = read_picture(args.picture, meta)
results = compiled(images)
outputs = dict(zip(meta['outputs'], (results[output] for output in compiled.outputs)))
draw(picture, images, outputs, meta, args.score_thr).save(args.out)
print(f'{args.picture} -> {args.out}')
