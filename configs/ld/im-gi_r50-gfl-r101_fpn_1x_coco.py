# Feature imitation on general instances, ten per level and batch as in the published runs.
_base_ = '../_base_/gfl_1x_coco.py'
from ld_plugin.recipes import imitation_gi

model = dict(
    type='DistilledSingleStageDetector',
    teacher=dict(config='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py', checkpoint='auto'),
    distillers=dict(
        im=dict(imitation_gi['im'], region=dict(type='GIRegion', scope='batch')),
    ),
)
