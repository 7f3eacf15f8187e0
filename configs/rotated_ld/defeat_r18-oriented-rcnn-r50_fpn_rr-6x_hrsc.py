# DeFeat on Oriented R-CNN R-18.
_base_ = 'oriented-rcnn-le90_r18_fpn_rr-6x_hrsc.py'
from ld_plugin.recipes import defeat_two_stage

model = dict(
    type='mmdet.DistilledTwoStageDetector',
    teacher=dict(
        config='ld_plugin::rotated_ld/oriented-rcnn-le90_r50_fpn_rr-6x_hrsc.py',
        checkpoint='work_dirs/oriented-rcnn-le90_r50_fpn_rr-6x_hrsc/epoch_72.pth',
    ),
    distillers=defeat_two_stage,
)
