# The student alone; boxes are learnt by the Gaussian KL divergence.
_base_ = '../_base_/dist-rotated-retinanet_hrsc.py'

model = dict(
    bbox_head=dict(
        loss_bbox=dict(
            type='GDLoss', loss_type='kld', fun='log1p', tau=1, sqrt=False, loss_weight=5.5
        ),
    ),
)
