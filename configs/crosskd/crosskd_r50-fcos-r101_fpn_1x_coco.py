# CrossKD with boxes instead of distributions.
_base_ = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'
from ld_plugin.recipes import crosskd

model = dict(
    type='DistilledSingleStageDetector',
    teacher=dict(
        config='mmdet::fcos/fcos_r101-caffe_fpn_gn-head_ms-640-800-2x_coco.py',
        checkpoint='auto',
    ),
    distillers=crosskd,
)
custom_imports = dict(imports=['ld_plugin'], allow_failed_imports=False)
runner_type = 'DistillationRunner'
