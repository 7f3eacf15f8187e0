# Main LD and main KD.
_base_ = 'gfl_r18_fpn_12e_bccd.py'
from ld_plugin.recipes import ld_kd

model = dict(
    type='DistilledSingleStageDetector',
    teacher=dict(
        config='ld_plugin::bccd/gfl_r34_fpn_36e_bccd.py',
        checkpoint='work_dirs/gfl_r34_fpn_36e_bccd/epoch_36.pth',
    ),
    distillers=ld_kd,
)
custom_imports = dict(imports=['ld_plugin'], allow_failed_imports=False)
runner_type = 'DistillationRunner'
