# DeFeat on one stage; the teacher is the deepest with published weights.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
from ld_plugin.recipes import defeat

model = dict(
    type='DistilledSingleStageDetector',
    teacher=dict(config='mmdet::retinanet/retinanet_r101_fpn_2x_coco.py', checkpoint='auto'),
    distillers=defeat,
)
custom_imports = dict(imports=['ld_plugin'], allow_failed_imports=False)
runner_type = 'DistillationRunner'
