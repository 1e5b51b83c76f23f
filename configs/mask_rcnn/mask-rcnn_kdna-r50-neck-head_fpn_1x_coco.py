"""Mask R-CNN, KernelDNA ResNet-50, FPN and mask head sharing too, COCO, 1x; about half a day on 8 GPUs.
bash tools/dist_train.sh configs/mask_rcnn/mask-rcnn_kdna-r50-neck-head_fpn_1x_coco.py 8
"""

_base_ = './mask-rcnn_kdna-r50_fpn_1x_coco.py'
model = dict(
    neck=dict(_delete_=True, type='KernelDNA', module={{_base_.model.neck}}, plan=dict(type='auto', pattern='FS')),
    roi_head=dict(
        mask_head=dict(
            _delete_=True, type='KernelDNA', module={{_base_.model.roi_head.mask_head}}, plan=dict(type='auto', pattern='SF')
        )
    ),
)
