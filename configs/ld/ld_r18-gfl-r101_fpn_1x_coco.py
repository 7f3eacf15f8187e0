# The COCO recipe: main LD, main KD and valuable localization region LD.
_base_ = 'gfl_r18_fpn_1x_coco.py'
from ld_plugin.recipes import ld_full

model = dict(
    type='DistilledSingleStageDetector',
    teacher=dict(config='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py', checkpoint='auto'),
    distillers=ld_full,
)
