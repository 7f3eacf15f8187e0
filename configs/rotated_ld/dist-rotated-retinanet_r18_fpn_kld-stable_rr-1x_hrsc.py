# The student alone, in a sixth of MMRotate's epochs.
_base_ = 'dist-rotated-retinanet_r18_fpn_kld-stable_rr-6x_hrsc.py'

train_cfg = dict(max_epochs=12)
param_scheduler = [
    dict(type='LinearLR', start_factor=1.0 / 3, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
