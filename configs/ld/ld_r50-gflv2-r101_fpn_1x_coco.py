# The COCO recipe between two GFL v2.
_base_ = 'gflv2_r50_fpn_1x_coco.py'
from ld_plugin.recipes import ld_full

model = dict(
    type='DistilledSingleStageDetector',
    teacher=dict(
        config='ld_plugin::ld/gflv2_r101_fpn_ms-2x_coco.py',
        checkpoint='work_dirs/gflv2_r101_fpn_ms-2x_coco/epoch_24.pth',
    ),
    distillers=ld_full,
)
