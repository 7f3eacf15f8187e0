# BCKD with a smaller student.
_base_ = 'bckd_r50-gfl-r101_fpn_1x_coco.py'

model = dict(
    backbone=dict(depth=34, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet34')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
