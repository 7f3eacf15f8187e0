# The teacher of R-101: deformable convolutions in the last three stages.
_base_ = 'gfl_r101_fpn_4e_voc0712.py'

model = dict(
    backbone=dict(
        dcn=dict(type='DCN', deform_groups=1, fallback_on_stride=False),
        stage_with_dcn=(False, True, True, True),
    ),
)
