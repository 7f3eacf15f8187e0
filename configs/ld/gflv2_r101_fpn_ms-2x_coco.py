# The teacher of GFL v2 R-50.
_base_ = '../_base_/gfl_r101_ms-2x_coco.py'

model = dict(bbox_head=dict(type='GFLV2Head'))
