# What brought most by the short schedule: the four papers together, LD, rank mimicking and PFI at
# their published weights, BCKD and DeFeat at twice theirs, KD at a tenth.
_base_ = 'gfl_r18-half_fpn_6e_bccd.py'
from ld_plugin.recipes import bckd, defeat, ld_full, rm_pfi

model = dict(
    type='DistilledSingleStageDetector',
    teacher=dict(
        config='ld_plugin::bccd/gfl_r18_fpn_18e_bccd.py',
        checkpoint='work_dirs/gfl_r18_fpn_18e_bccd/epoch_18.pth',
    ),
    distillers=dict(
        **dict(
            ld_full,
            kd=dict(ld_full['kd'], schedule=dict(type='ConstantSchedule', value=0.1)),
        ),
        **rm_pfi,
        **{
            key: dict(distiller, schedule=dict(type='ConstantSchedule', value=2.0))
            for key, distiller in (bckd | defeat).items()
        },
    ),
)
custom_imports = dict(imports=['ld_plugin'], allow_failed_imports=False)
runner_type = 'DistillationRunner'
