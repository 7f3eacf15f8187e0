# The student alone; boxes are learnt by the Gaussian KL divergence.
_base_ = '../_base_/dist-rotated-retinanet_dota-train.py'

model = dict(
    bbox_head=dict(
        loss_bbox=dict(type='GDLoss_v1', loss_type='kld', fun='log1p', tau=1, loss_weight=1.0),
    ),
)
