# Rotated LD.
_base_ = 'dist-rotated-retinanet_r18_fpn_gwd_1x_dota.py'
from ld_plugin.recipes import rotated_ld_gwd

model = dict(
    type='mmdet.DistilledSingleStageDetector',
    teacher=dict(
        config='ld_plugin::rotated_ld/dist-rotated-retinanet_r34_fpn_gwd_2x_dota.py',
        checkpoint='work_dirs/dist-rotated-retinanet_r34_fpn_gwd_2x_dota/epoch_24.pth',
    ),
    distillers=rotated_ld_gwd,
)
