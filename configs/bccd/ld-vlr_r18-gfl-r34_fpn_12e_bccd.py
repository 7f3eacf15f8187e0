# The full recipe without main KD.
_base_ = 'ld_r18-gfl-r34_fpn_12e_bccd.py'

model = dict(distillers=dict(kd=None))
