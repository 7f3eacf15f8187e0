# The recipe published for ATSS and FCOS.
_base_ = 'dist-atss_r50_fpn_1x_coco.py'
from ld_plugin.recipes import ld_point

model = dict(
    type='DistilledSingleStageDetector',
    teacher=dict(
        config='ld_plugin::ld/dist-atss_r101_fpn_1x_coco.py',
        checkpoint='work_dirs/dist-atss_r101_fpn_1x_coco/epoch_12.pth',
    ),
    distillers=ld_point,
)
