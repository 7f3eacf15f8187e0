# The student R-34 alone.
_base_ = '../_base_/gfl_4e_voc0712.py'

model = dict(
    backbone=dict(depth=34, init_cfg=dict(checkpoint='torchvision://resnet34')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
