# A small GFL from random weights on handwritten digits, the student alone: R-18 with half of its
# channels. tools/demo.py makes the digits and trains all configs of this folder; DIGITS_ROOT names
# the digits when one is trained by hand.
_base_ = 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'

data_root = """{{$DIGITS_ROOT:work_dirs/demo/digits}}"""  # so that a path may have quotes
metainfo = dict(
    classes=('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
)

model = dict(
    # no pretrained weights: so all stages learn, and batch norm keeps statistics
    backbone=dict(depth=18, base_channels=32, init_cfg=None, frozen_stages=-1, norm_eval=False),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    bbox_head=dict(num_classes=10, in_channels=64, feat_channels=64, stacked_convs=2),
)

# no flip: a mirrored digit is another sign
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale_factor=1.0),  # images are used in the size that they were made in
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale_factor=1.0),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
# without workers: images this small are read in a moment, and containers often lack shared memory
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root=data_root,
        ann_file='annotations/train.json',
        data_prefix=dict(img='JPEGImages/'),
        metainfo=metainfo,
        filter_cfg=dict(min_size=0),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root=data_root,
        ann_file='annotations/val.json',
        data_prefix=dict(img='JPEGImages/'),
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
        ann_file='annotations/test.json',
        data_prefix=dict(img='JPEGImages/'),
        metainfo=metainfo,
        pipeline=test_pipeline,
    ),
)
val_evaluator = dict(ann_file=f'{data_root}/annotations/val.json')
test_evaluator = dict(ann_file=f'{data_root}/annotations/test.json')

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
auto_scale_lr = dict(base_batch_size=8)
# two, so that one is whole if a run ends while the other is being written
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2))
