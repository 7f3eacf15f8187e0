# The student alone; boxes are learnt by the Gaussian Wasserstein distance.
_base_ = '../_base_/dist-rotated-retinanet_dota.py'

model = dict(bbox_head=dict(loss_bbox=dict(type='GDLoss', loss_type='gwd', loss_weight=5.0)))
