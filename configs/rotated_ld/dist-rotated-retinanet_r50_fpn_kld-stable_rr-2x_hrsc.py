# A teacher in a third of MMRotate's epochs.
_base_ = 'dist-rotated-retinanet_r50_fpn_kld-stable_rr-6x_hrsc.py'

train_cfg = dict(max_epochs=24)
param_scheduler = [
    dict(type='LinearLR', start_factor=1.0 / 3, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=24, by_epoch=True, milestones=[16, 22], gamma=0.1),
]
