# mmdet's Faster R-CNN R-50 on PASCAL VOC.
# VOC_ROOT names the folder that holds VOC2007/ and VOC2012/.
_base_ = 'mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py'

data_root = """{{$VOC_ROOT:data/VOCdevkit/}}"""  # so that a path may have quotes
train_dataloader = dict(
    dataset=dict(
        dataset=dict(
            datasets=[
                dict(year, data_root=data_root)
                for year in _base_.train_dataloader.dataset.dataset.datasets
            ],
        ),
    ),
)
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
