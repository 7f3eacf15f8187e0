# The recipe published for ATSS and FCOS, with the region of virtual priors.
_base_ = 'dist-fcos_r50-caffe_fpn_gn-head_1x_coco.py'
from ld_plugin.recipes import ld_point

model = dict(
    type='DistilledSingleStageDetector',
    teacher=dict(
        config='ld_plugin::ld/dist-fcos_r101-caffe_fpn_gn-head_ms-640-800-2x_coco.py',
        checkpoint='work_dirs/dist-fcos_r101-caffe_fpn_gn-head_ms-640-800-2x_coco/epoch_24.pth',
    ),
    distillers=ld_point,
)
