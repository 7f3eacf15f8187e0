# The teacher of; and the student R-101 alone.
_base_ = '../_base_/gfl_4e_voc0712.py'

model = dict(
    backbone=dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')),
)
