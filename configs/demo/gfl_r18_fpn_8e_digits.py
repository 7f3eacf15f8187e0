# The teacher of this folder: R-18 with all of its channels.
_base_ = 'gfl_r18-half_fpn_8e_digits.py'

model = dict(backbone=dict(base_channels=64), neck=dict(in_channels=[64, 128, 256, 512]))
