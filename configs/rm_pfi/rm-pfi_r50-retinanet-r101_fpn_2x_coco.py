# Rank mimicking and prediction-guided feature imitation.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_2x_coco.py'
from ld_plugin.recipes import rm_pfi

model = dict(
    type='DistilledSingleStageDetector',
    teacher=dict(config='mmdet::retinanet/retinanet_r101_fpn_2x_coco.py', checkpoint='auto'),
    distillers=rm_pfi,
)
custom_imports = dict(imports=['ld_plugin'], allow_failed_imports=False)
runner_type = 'DistillationRunner'
