# The student R-34 alone.
_base_ = '../_base_/gfl_1x_coco.py'

model = dict(
    backbone=dict(depth=34, init_cfg=dict(checkpoint='torchvision://resnet34')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
