# A small rotated RetinaNet with distributions from random weights on turned digits, the student
# alone: R-18 with half of its channels. tools/demo.py --rotated makes the digits and trains this
# config and those over it; DIGITS_ROOT names the digits when one is trained by hand.
_base_ = 'mmrotate::kld/rotated-retinanet-rbox-le90_r50_fpn_kld-stable_1x_dota.py'

data_root = """{{$DIGITS_ROOT:work_dirs/demo-rotated/digits}}"""  # so that a path may have quotes
metainfo = dict(
    classes=('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
)

model = dict(
    # no pretrained weights: so all stages learn, and batch norm keeps statistics
    backbone=dict(depth=18, base_channels=32, init_cfg=None, frozen_stages=-1, norm_eval=False),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    bbox_head=dict(
        type='mmdet.DistributionRotatedRetinaHead',
        num_classes=10,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        norm_cfg=dict(type='GN', num_groups=32, requires_grad=True),  # or it learns slowly
        # one prior per cell, as digits differ less in size and shape than ships and harbours do
        anchor_generator=dict(ratios=[1.0], octave_base_scale=5, scales_per_octave=1),
    ),
)

# no flip: a mirrored digit is another sign
train_pipeline = [
    dict(type='mmdet.LoadImageFromFile'),
    dict(type='mmdet.LoadAnnotations', with_bbox=True, box_type='qbox'),
    dict(type='ConvertBoxType', box_type_mapping=dict(gt_bboxes='rbox')),
    # images are used in the size that they were made in
    dict(type='mmdet.Resize', scale_factor=1.0),
    dict(type='mmdet.PackDetInputs'),
]
test_pipeline = [
    dict(type='mmdet.LoadImageFromFile'),
    dict(type='mmdet.Resize', scale_factor=1.0),
    dict(type='mmdet.LoadAnnotations', with_bbox=True, box_type='qbox'),
    dict(type='ConvertBoxType', box_type_mapping=dict(gt_bboxes='rbox')),
    dict(
        type='mmdet.PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
# without workers: images this small are read in a moment, and containers often lack shared memory
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root=data_root,
        ann_file='dota/train/annfiles/',
        data_prefix=dict(img_path='dota/train/images/'),
        img_suffix='jpg',
        metainfo=metainfo,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root=data_root,
        ann_file='dota/val/annfiles/',
        data_prefix=dict(img_path='dota/val/images/'),
        img_suffix='jpg',
        metainfo=metainfo,
        pipeline=test_pipeline,
    ),
)
test_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root=data_root,
        ann_file='dota/test/annfiles/',
        data_prefix=dict(img_path='dota/test/images/'),
        img_suffix='jpg',
        metainfo=metainfo,
        pipeline=test_pipeline,
    ),
)
val_evaluator = dict(iou_thrs=[0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95])
test_evaluator = val_evaluator

# AdamW, as SGD from random weights needs a longer schedule than this
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=0.001, weight_decay=0.05),
    clip_grad=dict(max_norm=35, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', begin=0, end=6, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=6, val_interval=6)
auto_scale_lr = dict(enable=False, base_batch_size=4)
# two, so that one is whole if a run ends while the other is being written
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2))
custom_imports = dict(imports=['ld_plugin'], allow_failed_imports=False)
runner_type = 'DistillationRunner'
