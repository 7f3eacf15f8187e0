# BCKD; 8 x 2 images at a learning rate of 0.01, as GFL's own.
_base_ = 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'
from ld_plugin.recipes import bckd

model = dict(
    type='DistilledSingleStageDetector',
    teacher=dict(config='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py', checkpoint='auto'),
    distillers=bckd,
)
custom_imports = dict(imports=['ld_plugin'], allow_failed_imports=False)
runner_type = 'DistillationRunner'
