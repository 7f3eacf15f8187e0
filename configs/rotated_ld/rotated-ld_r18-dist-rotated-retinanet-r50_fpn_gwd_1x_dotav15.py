# Rotated LD.
_base_ = 'dist-rotated-retinanet_r18_fpn_gwd_1x_dotav15.py'
from ld_plugin.recipes import rotated_ld_gwd

model = dict(
    type='mmdet.DistilledSingleStageDetector',
    teacher=dict(
        config='ld_plugin::rotated_ld/dist-rotated-retinanet_r50_fpn_gwd_2x_dotav15.py',
        checkpoint='work_dirs/dist-rotated-retinanet_r50_fpn_gwd_2x_dotav15/epoch_24.pth',
    ),
    distillers=rotated_ld_gwd,
)
