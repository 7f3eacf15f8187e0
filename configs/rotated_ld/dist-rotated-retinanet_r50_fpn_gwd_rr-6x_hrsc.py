# A teacher: the student with R-50.
_base_ = 'dist-rotated-retinanet_r18_fpn_gwd_rr-6x_hrsc.py'

model = dict(
    backbone=dict(depth=50, init_cfg=dict(checkpoint='torchvision://resnet50')),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
)
