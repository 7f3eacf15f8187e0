# Rotated RetinaNet R-18 with distributions on DOTA-1.0: trained on train and val; testing writes
# the test server's submission. A config over it chooses the loss of boxes.
_base_ = 'mmrotate::rotated_retinanet/rotated-retinanet-hbox-oc_r50_fpn_1x_dota.py'

model = dict(
    backbone=dict(depth=18, init_cfg=dict(checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=[64, 128, 256, 512]),
    bbox_head=dict(type='mmdet.DistributionRotatedRetinaHead', reg_decoded_bbox=True),
)
# Without published annotations there is nothing to validate on.
val_cfg = None
val_dataloader = None
val_evaluator = None
test_dataloader = dict(
    dataset=dict(
        ann_file='', data_prefix=dict(img_path='test/images/'), pipeline=_base_.test_pipeline
    ),
)
test_evaluator = dict(
    format_only=True, merge_patches=True, outfile_prefix='work_dirs/dota_submission/Task1'
)
auto_scale_lr = dict(enable=False, base_batch_size=2)
custom_imports = dict(imports=['ld_plugin'], allow_failed_imports=False)
runner_type = 'DistillationRunner'
