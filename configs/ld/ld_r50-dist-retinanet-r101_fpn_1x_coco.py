# The recipe published for RetinaNet.
_base_ = 'dist-retinanet_r50_fpn_1x_coco.py'
from ld_plugin.recipes import ld_retina

model = dict(
    type='DistilledSingleStageDetector',
    teacher=dict(
        config='ld_plugin::ld/dist-retinanet_r101_fpn_2x_coco.py',
        checkpoint='work_dirs/dist-retinanet_r101_fpn_2x_coco/epoch_24.pth',
    ),
    distillers=ld_retina,
)
