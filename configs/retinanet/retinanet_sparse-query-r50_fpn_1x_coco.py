"""RetinaNet R50 with the stride-4 level P2, in inference computed only where P3 says that small objects may be; COCO, 1x.
Training is dense: P2 makes the head four times as dear as that of the base; about two days on 8 GPUs.
bash tools/dist_train.sh configs/retinanet/retinanet_sparse-query-r50_fpn_1x_coco.py 8
"""

_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', '../_base_/mmkerneldna.py']
model = dict(
    neck=dict(start_level=0, num_outs=6),
    bbox_head=dict(
        type='SparseQueryRetinaHead',
        anchor_generator=dict(strides=[4, 8, 16, 32, 64, 128]),
        query=dict(level=1, tile=16, small=32.0),
    ),
)
