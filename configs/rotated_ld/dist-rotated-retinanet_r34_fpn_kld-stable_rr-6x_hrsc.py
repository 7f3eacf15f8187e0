# A teacher: the student with R-34.
_base_ = 'dist-rotated-retinanet_r18_fpn_kld-stable_rr-6x_hrsc.py'

model = dict(
    backbone=dict(depth=34, init_cfg=dict(checkpoint='torchvision://resnet34')),
)
