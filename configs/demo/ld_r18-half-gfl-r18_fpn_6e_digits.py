# The distilled student: main LD, valuable localization region LD, main KD.
_base_ = 'gfl_r18-half_fpn_6e_digits.py'
from ld_plugin.recipes import ld_full

model = dict(
    type='DistilledSingleStageDetector',
    teacher=dict(
        config='ld_plugin::demo/gfl_r18_fpn_8e_digits.py',
        checkpoint='work_dirs/gfl_r18_fpn_8e_digits/epoch_8.pth',
    ),
    distillers=ld_full,
)
custom_imports = dict(imports=['ld_plugin'], allow_failed_imports=False)
runner_type = 'DistillationRunner'
