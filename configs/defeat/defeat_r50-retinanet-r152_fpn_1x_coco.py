# DeFeat on one stage: the published pair of networks, with the weights published for VOC.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
from ld_plugin.recipes import defeat

model = dict(
    type='DistilledSingleStageDetector',
    teacher=dict(
        config='ld_plugin::defeat/retinanet_r152_fpn_1x_coco.py',
        checkpoint='work_dirs/retinanet_r152_fpn_1x_coco/epoch_12.pth',
    ),
    distillers=defeat,
)
custom_imports = dict(imports=['ld_plugin'], allow_failed_imports=False)
runner_type = 'DistillationRunner'
