# Rotated RetinaNet R-18 with distributions on DOTA-1.0: trained on train, evaluated on val from
# AP50 to AP95. A config over it chooses the loss of boxes.
_base_ = 'mmrotate::rotated_retinanet/rotated-retinanet-hbox-oc_r50_fpn_1x_dota.py'

model = dict(
    backbone=dict(depth=18, init_cfg=dict(checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=[64, 128, 256, 512]),
    bbox_head=dict(type='mmdet.DistributionRotatedRetinaHead', reg_decoded_bbox=True),
)
train_dataloader = dict(
    dataset=dict(ann_file='train/annfiles/', data_prefix=dict(img_path='train/images/'))
)
val_dataloader = dict(
    dataset=dict(ann_file='val/annfiles/', data_prefix=dict(img_path='val/images/'))
)
test_dataloader = val_dataloader
train_cfg = dict(val_interval=12)  # an evaluation at ten thresholds takes minutes
val_evaluator = dict(iou_thrs=[0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95])
test_evaluator = val_evaluator
auto_scale_lr = dict(enable=False, base_batch_size=2)
custom_imports = dict(imports=['ld_plugin'], allow_failed_imports=False)
runner_type = 'DistillationRunner'
