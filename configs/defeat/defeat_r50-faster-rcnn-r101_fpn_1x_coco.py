# DeFeat on two stages; the teacher is the deepest ResNet with published weights.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
from ld_plugin.recipes import defeat_two_stage

model = dict(
    type='DistilledTwoStageDetector',
    teacher=dict(config='mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py', checkpoint='auto'),
    distillers=defeat_two_stage,
)
custom_imports = dict(imports=['ld_plugin'], allow_failed_imports=False)
runner_type = 'DistillationRunner'
