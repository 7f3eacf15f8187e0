# CrossKD with boxes instead of distributions.
_base_ = 'mmdet::atss/atss_r50_fpn_1x_coco.py'
from ld_plugin.recipes import crosskd

model = dict(
    type='DistilledSingleStageDetector',
    teacher=dict(config='mmdet::atss/atss_r101_fpn_1x_coco.py', checkpoint='auto'),
    distillers=crosskd,
)
custom_imports = dict(imports=['ld_plugin'], allow_failed_imports=False)
runner_type = 'DistillationRunner'
