# As gfl_1x_coco.py, over the stock GFL R-101 with 24 epochs and images of varying size.
_base_ = 'mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py'

train_dataloader = dict(batch_size=3)
auto_scale_lr = dict(enable=True, base_batch_size=16)
custom_imports = dict(imports=['ld_plugin'], allow_failed_imports=False)
runner_type = 'DistillationRunner'
