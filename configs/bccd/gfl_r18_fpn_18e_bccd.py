# The teacher of the short schedule, by which all methods were compared.
_base_ = 'gfl_r18_fpn_12e_bccd.py'

train_cfg = dict(max_epochs=18, val_interval=18)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=200),
    dict(type='MultiStepLR', begin=0, end=18, by_epoch=True, milestones=[12, 16], gamma=0.1),
]
