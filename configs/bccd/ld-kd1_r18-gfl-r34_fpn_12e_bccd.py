# The full recipe with a tenth of main KD's published weight, which is too much for three classes.
_base_ = 'ld_r18-gfl-r34_fpn_12e_bccd.py'

model = dict(distillers=dict(kd=dict(loss=dict(loss_weight=1.0))))
