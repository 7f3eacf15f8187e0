# The student RetinaNet alone, with a distribution for every box side.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

model = dict(
    bbox_head=dict(
        type='DistributionRetinaHead',
        reg_max=16,
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0, _delete_=True),
    ),
)
custom_imports = dict(imports=['ld_plugin'], allow_failed_imports=False)
runner_type = 'DistillationRunner'
