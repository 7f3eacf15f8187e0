# Feature imitation on the positives.
_base_ = '../_base_/gfl_1x_coco.py'
from ld_plugin.recipes import imitation_main

model = dict(
    type='DistilledSingleStageDetector',
    teacher=dict(config='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py', checkpoint='auto'),
    distillers=imitation_main,
)
