# The stock Oriented R-CNN R-50 on DOTA-1.0: trained on train and val; testing writes the test
# server's submission.
_base_ = 'mmrotate::oriented_rcnn/oriented-rcnn-le90_r50_fpn_1x_dota.py'

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
