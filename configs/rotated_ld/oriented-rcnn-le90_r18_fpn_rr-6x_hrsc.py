# The student alone.
_base_ = '../_base_/oriented-rcnn_hrsc.py'

model = dict(
    backbone=dict(depth=18, init_cfg=dict(checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
