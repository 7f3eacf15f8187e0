# Main LD only.
_base_ = 'gfl_r18_fpn_4e_voc0712.py'
from ld_plugin.recipes import ld_main

model = dict(
    type='DistilledSingleStageDetector',
    teacher=dict(
        config='ld_plugin::ld/gfl_r101_fpn_4e_voc0712.py',
        checkpoint='work_dirs/gfl_r101_fpn_4e_voc0712/epoch_4.pth',
    ),
    distillers=ld_main,
)
