# PKD between two GFL.
_base_ = 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'
from ld_plugin.recipes import pkd

model = dict(
    type='DistilledSingleStageDetector',
    teacher=dict(config='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py', checkpoint='auto'),
    distillers=pkd,
)
custom_imports = dict(imports=['ld_plugin'], allow_failed_imports=False)
runner_type = 'DistillationRunner'
