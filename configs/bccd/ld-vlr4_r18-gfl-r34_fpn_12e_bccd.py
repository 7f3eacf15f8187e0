# As good as the full recipe on this data: no KD, and four times the published weight of VLR LD.
_base_ = 'gfl_r18_fpn_12e_bccd.py'
from ld_plugin.recipes import ld_full

model = dict(
    type='DistilledSingleStageDetector',
    teacher=dict(
        config='ld_plugin::bccd/gfl_r34_fpn_36e_bccd.py',
        checkpoint='work_dirs/gfl_r34_fpn_36e_bccd/epoch_36.pth',
    ),
    distillers=dict(
        ld=ld_full['ld'],
        ld_vlr=dict(
            ld_full['ld_vlr'],
            loss=dict(type='DistributionKLLoss', temperature=10, loss_weight=1.0),
        ),
    ),
)
custom_imports = dict(imports=['ld_plugin'], allow_failed_imports=False)
