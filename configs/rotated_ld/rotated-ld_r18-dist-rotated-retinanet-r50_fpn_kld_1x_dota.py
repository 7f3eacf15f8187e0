# Rotated LD.
_base_ = 'dist-rotated-retinanet_r18_fpn_kld_1x_dota.py'
from ld_plugin.recipes import rotated_ld_kld

model = dict(
    type='mmdet.DistilledSingleStageDetector',
    teacher=dict(
        config='ld_plugin::rotated_ld/dist-rotated-retinanet_r50_fpn_kld_2x_dota.py',
        checkpoint='work_dirs/dist-rotated-retinanet_r50_fpn_kld_2x_dota/epoch_24.pth',
    ),
    distillers=rotated_ld_kld,
)
