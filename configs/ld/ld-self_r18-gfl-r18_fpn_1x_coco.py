# Self-LD: main LD from the same network, trained alone.
_base_ = 'gfl_r18_fpn_1x_coco.py'
from ld_plugin.recipes import ld_main

model = dict(
    type='DistilledSingleStageDetector',
    teacher=dict(
        config='ld_plugin::ld/gfl_r18_fpn_1x_coco.py',
        checkpoint='work_dirs/gfl_r18_fpn_1x_coco/epoch_12.pth',
    ),
    distillers=ld_main,
)
