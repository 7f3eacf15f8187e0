# GFL R-50 on PASCAL VOC: trained on 2007 + 2012 trainval, tested on 2007 test. Data, image size and
# repetition are those of mmdet's own VOC configs; the metric also has the strict IoU thresholds.
# VOC_ROOT names the folder that holds VOC2007/ and VOC2012/.
_base_ = 'gfl_1x_coco.py'

model = dict(bbox_head=dict(num_classes=20))

dataset_type = 'VOCDataset'
data_root = """{{$VOC_ROOT:data/VOCdevkit/}}"""  # so that a path may have quotes
image_scale = (1000, 600)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),  # behind Resize: these boxes are not resized
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]


def _trainval(year):
    return dict(
        type=dataset_type,
        data_root=data_root,
        ann_file=f'{year}/ImageSets/Main/trainval.txt',
        data_prefix=dict(sub_data_root=f'{year}/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=32, bbox_min_size=32),
        pipeline=train_pipeline,
    )


train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='RepeatDataset',
        times=3,
        dataset=dict(
            type='ConcatDataset',
            ignore_keys=['dataset_type'],  # the years differ in it, nothing else
            datasets=[_trainval('VOC2007'), _trainval('VOC2012')],
        ),
    ),
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type=dataset_type,
        data_root=data_root,
        ann_file='VOC2007/ImageSets/Main/test.txt',
        data_prefix=dict(sub_data_root='VOC2007/'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    _delete_=True,
    type='VOCMetric',
    metric='mAP',
    iou_thrs=[0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95],
    eval_mode='11points',
)
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=4)  # of three rounds each
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=4, by_epoch=True, milestones=[3], gamma=0.1),
]
