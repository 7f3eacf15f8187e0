# As oriented-rcnn_dota.py, on DOTA-1.5: the same images, one more class, and more of the small
# objects.
_base_ = 'oriented-rcnn_dota.py'

model = dict(roi_head=dict(bbox_head=dict(num_classes=16)))
train_dataloader = dict(dataset=dict(type='DOTAv15Dataset', data_root='data/split_ss_dota1_5/'))
test_dataloader = dict(dataset=dict(type='DOTAv15Dataset', data_root='data/split_ss_dota1_5/'))
test_evaluator = dict(outfile_prefix='work_dirs/dotav15_submission/Task1')
