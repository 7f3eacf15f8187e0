# The VOC recipe, and imitation on general instances.
_base_ = 'ld_r18-gfl-r101_fpn_4e_voc0712.py'
from ld_plugin.recipes import imitation_gi

model = dict(
    distillers=dict(
        im=dict(imitation_gi['im'], region=dict(type='GIRegion', scope='batch')),
    ),
)
