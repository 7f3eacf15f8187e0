# As the published FCOS runs: all negatives stand for the valuable localization region.
_base_ = 'ld_r50-dist-fcos-r101_fpn_1x_coco.py'

model = dict(
    distillers=dict(
        ld_vlr=dict(
            region=dict(_delete_=True, type='EverywhereRegion', exclude_positives=True),
        ),
    ),
)
