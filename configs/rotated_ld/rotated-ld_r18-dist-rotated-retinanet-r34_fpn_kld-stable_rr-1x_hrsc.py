# Rotated LD without KD: a softmax over the only class says nothing.
_base_ = 'dist-rotated-retinanet_r18_fpn_kld-stable_rr-1x_hrsc.py'
from ld_plugin.recipes import rotated_ld_kld

model = dict(
    type='mmdet.DistilledSingleStageDetector',
    teacher=dict(
        config='ld_plugin::rotated_ld/dist-rotated-retinanet_r34_fpn_kld-stable_rr-2x_hrsc.py',
        checkpoint='work_dirs/dist-rotated-retinanet_r34_fpn_kld-stable_rr-2x_hrsc/epoch_24.pth',
    ),
    distillers=dict(rotated_ld_kld, kd=None),
)
