# The stock GFL R-50 on COCO with the images per GPU of the published LD runs. No number of GPUs
# makes 16 images out of 3 each, so the stock learning rate for 16 is always scaled to the batch.
_base_ = 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'

train_dataloader = dict(batch_size=3)
auto_scale_lr = dict(enable=True, base_batch_size=16)
custom_imports = dict(imports=['ld_plugin'], allow_failed_imports=False)
runner_type = 'DistillationRunner'
