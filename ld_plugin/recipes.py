"""The published combinations of distillers, as plain dicts for configs to import.

    _base_ = 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'
    from ld_plugin.recipes import ld_full
    model = dict(type='DistilledSingleStageDetector', teacher=dict(...), distillers=ld_full)

``_base_`` must come first: mmengine takes a file that begins with an import for a config of another
kind. Weights and temperatures are those of Zheng et al., CVPR 2022 and TPAMI 2023, unless a recipe
names another source.
"""

_main_ld = dict(
    type='LocalizationDistiller',
    region=dict(type='MainRegion'),
    loss=dict(type='DistributionKLLoss', temperature=10, loss_weight=0.25),
)
_vlr_ld = dict(
    type='LocalizationDistiller',
    region=dict(type='ValuableLocalizationRegion'),
    loss=dict(type='DistributionKLLoss', temperature=10, loss_weight=0.25),
)
_main_kd = dict(
    type='ClassificationDistiller',
    region=dict(type='MainRegion'),
    loss=dict(type='DistributionKLLoss', temperature=2, loss_weight=10),
)
_vlr_kd = dict(
    type='ClassificationDistiller',
    region=dict(type='ValuableLocalizationRegion'),
    loss=dict(type='DistributionKLLoss', temperature=2, loss_weight=10),
)


def _imitation(region: str, loss_weight: float = 2) -> dict:
    return dict(
        type='FeatureDistiller',
        region=dict(type=region),
        loss=dict(type='FeatureMSELoss', loss_weight=loss_weight),
    )


ld_main = dict(ld=_main_ld)
"""Localization distillation on the positives."""

ld_kd = dict(ld=_main_ld, kd=_main_kd)
"""Localization and classification distillation on the positives."""

ld_full = dict(ld=_main_ld, ld_vlr=_vlr_ld, kd=_main_kd)
"""The COCO recipe: main LD, valuable localization region LD, main KD."""

ld_voc = dict(ld=_main_ld, ld_vlr=_vlr_ld, kd_vlr=_vlr_kd)
"""The VOC recipe: main LD, valuable localization region LD and KD."""

imitation_everywhere = dict(im=_imitation('EverywhereRegion'))
"""Feature imitation on whole maps (FitNets)."""

fitnet = imitation_everywhere
"""Feature imitation on whole maps (Romero et al., ICLR 2015), with the LD authors' weight."""

imitation_inside_gt = dict(im=_imitation('InsideGTRegion'))
"""Feature imitation inside ground-truth boxes."""

imitation_main = dict(im=_imitation('MainRegion'))
"""Feature imitation on the positives."""

imitation_fine_grained = dict(im=_imitation('FineGrainedRegion'))
"""Fine-grained feature imitation."""

imitation_decoupled = dict(
    im_fg=_imitation('InsideGTRegion'), im_bg=_imitation('BackgroundRegion', loss_weight=4)
)
"""Decoupled feature imitation: objects and background, the latter with twice the weight."""

imitation_gi = dict(im=_imitation('GIRegion'))
"""Feature imitation on general instances."""

bckd = dict(
    bckd_cls=dict(
        type='ClassificationDistiller',
        region=dict(type='EverywhereRegion'),
        loss=dict(type='BinaryKDLoss', beta=1, loss_weight=1),
        normalizer='positives',
    ),
    bckd_box=dict(
        type='BoxDistiller',
        region=dict(type='EverywhereRegion'),
        loss=dict(type='GIoULoss', loss_weight=4),
    ),
)
"""Binary classification and IoU-based localization distillation (Yang et al., ICCV 2023)."""

pkd = dict(
    pkd=dict(
        type='FeatureDistiller',
        region=dict(type='EverywhereRegion'),
        loss=dict(type='PearsonFeatureLoss', loss_weight=6),
    )
)
"""Pearson correlation of whole feature maps, also of unlike detectors (Cao et al., NeurIPS 2022).

The weight is that of the CrossKD authors' comparison.
"""
