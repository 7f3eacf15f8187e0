# The student GFL v2 alone: the shape of the box distributions rates the box.
_base_ = '../_base_/gfl_1x_coco.py'

model = dict(bbox_head=dict(type='GFLV2Head'))
