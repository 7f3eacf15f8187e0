# The teacher of R-50 on VOC.
_base_ = '../_base_/faster-rcnn_1x_voc0712.py'

model = dict(
    backbone=dict(depth=101, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet101'))
)
