# DeFeat on two stages on VOC, for which its weights were published.
_base_ = '../_base_/faster-rcnn_1x_voc0712.py'
from ld_plugin.recipes import defeat_two_stage

model = dict(
    type='DistilledTwoStageDetector',
    teacher=dict(
        config='ld_plugin::defeat/faster-rcnn_r101_fpn_1x_voc0712.py',
        checkpoint='work_dirs/faster-rcnn_r101_fpn_1x_voc0712/epoch_4.pth',
    ),
    distillers=defeat_two_stage,
)
custom_imports = dict(imports=['ld_plugin'], allow_failed_imports=False)
runner_type = 'DistillationRunner'
