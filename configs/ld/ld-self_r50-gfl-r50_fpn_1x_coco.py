# Self-LD: main LD from the same network, trained alone.
_base_ = '../_base_/gfl_1x_coco.py'
from ld_plugin.recipes import ld_main

model = dict(
    type='DistilledSingleStageDetector',
    teacher=dict(config='mmdet::gfl/gfl_r50_fpn_1x_coco.py', checkpoint='auto'),
    distillers=ld_main,
)
