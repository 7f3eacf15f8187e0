# The COCO recipe, and imitation on general instances.
_base_ = 'ld_r50-gfl-r101_fpn_1x_coco.py'
from ld_plugin.recipes import imitation_gi

model = dict(
    distillers=dict(
        im=dict(imitation_gi['im'], region=dict(type='GIRegion', scope='batch')),
    ),
)
