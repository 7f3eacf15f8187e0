# The distilled rotated student: LD and KD around every object.
_base_ = 'dist-rotated-retinanet_r18-half_fpn_kld_6e_digits.py'
from ld_plugin.recipes import rotated_ld_kld

model = dict(
    type='mmdet.DistilledSingleStageDetector',
    teacher=dict(
        config='ld_plugin::demo/dist-rotated-retinanet_r18_fpn_kld_8e_digits.py',
        checkpoint='work_dirs/dist-rotated-retinanet_r18_fpn_kld_8e_digits/epoch_8.pth',
    ),
    distillers=rotated_ld_kld,
)
