# DeFeat on two stages: the published pair of networks, with the weights published for VOC.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
from ld_plugin.recipes import defeat_two_stage

model = dict(
    type='DistilledTwoStageDetector',
    teacher=dict(
        config='ld_plugin::defeat/faster-rcnn_r152_fpn_1x_coco.py',
        checkpoint='work_dirs/faster-rcnn_r152_fpn_1x_coco/epoch_12.pth',
    ),
    distillers=defeat_two_stage,
)
custom_imports = dict(imports=['ld_plugin'], allow_failed_imports=False)
runner_type = 'DistillationRunner'
