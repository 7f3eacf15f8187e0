# The teacher of the rotated student: R-18 with all of its channels, trained for longer.
_base_ = 'dist-rotated-retinanet_r18-half_fpn_kld_6e_digits.py'

model = dict(backbone=dict(base_channels=64), neck=dict(in_channels=[64, 128, 256, 512]))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', begin=0, end=8, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=8, val_interval=8)
