# PKD between unlike detectors: Faster R-CNN teaches RetinaNet.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
from ld_plugin.recipes import pkd

model = dict(
    type='DistilledSingleStageDetector',
    teacher=dict(config='mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py', checkpoint='auto'),
    distillers=pkd,
)
custom_imports = dict(imports=['ld_plugin'], allow_failed_imports=False)
runner_type = 'DistillationRunner'
