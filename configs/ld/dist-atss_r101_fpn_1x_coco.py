# The teacher of ATSS R-50, with a distribution for every box side.
_base_ = 'mmdet::atss/atss_r101_fpn_1x_coco.py'

model = dict(bbox_head=dict(type='DistributionATSSHead', reg_max=16))
custom_imports = dict(imports=['ld_plugin'], allow_failed_imports=False)
runner_type = 'DistillationRunner'
