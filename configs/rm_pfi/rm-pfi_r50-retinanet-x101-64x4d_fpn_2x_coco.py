# Rank mimicking and prediction-guided feature imitation with a stronger teacher.
_base_ = 'rm-pfi_r50-retinanet-r101_fpn_2x_coco.py'

model = dict(
    teacher=dict(config='mmdet::retinanet/retinanet_x101-64x4d_fpn_ms-640-800-3x_coco.py'),
)
