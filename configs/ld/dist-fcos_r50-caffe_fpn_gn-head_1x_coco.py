# The student FCOS alone, with a distribution for every box side.
_base_ = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'

model = dict(bbox_head=dict(type='DistributionFCOSHead', reg_max=16))
custom_imports = dict(imports=['ld_plugin'], allow_failed_imports=False)
runner_type = 'DistillationRunner'
