# The teacher of R-50.
_base_ = '../_base_/oriented-rcnn_hrsc.py'

model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')))
