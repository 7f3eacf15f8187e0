# DeFeat on Oriented R-CNN R-50.
_base_ = 'oriented-rcnn-le90_r50_fpn_1x_dotav15.py'
from ld_plugin.recipes import defeat_two_stage

model = dict(
    type='mmdet.DistilledTwoStageDetector',
    teacher=dict(
        config='ld_plugin::rotated_ld/oriented-rcnn-le90_r101_fpn_1x_dotav15.py',
        checkpoint='work_dirs/oriented-rcnn-le90_r101_fpn_1x_dotav15/epoch_12.pth',
    ),
    distillers=defeat_two_stage,
)
