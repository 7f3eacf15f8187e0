# DeFeat on Oriented R-CNN R-18; the teacher is MMRotate's, whose weights are published.
_base_ = 'oriented-rcnn-le90_r18_fpn_1x_dota.py'
from ld_plugin.recipes import defeat_two_stage

model = dict(
    type='mmdet.DistilledTwoStageDetector',
    teacher=dict(
        config='mmrotate::oriented_rcnn/oriented-rcnn-le90_r50_fpn_1x_dota.py',
        checkpoint='auto',
    ),
    distillers=defeat_two_stage,
)
