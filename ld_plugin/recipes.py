"""The published combinations of distillers, as plain dicts for configs to import.

    _base_ = 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'
    from ld_plugin.recipes import ld_full
    custom_imports = dict(imports=['ld_plugin'], allow_failed_imports=False)
    runner_type = 'DistillationRunner'
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

ld_retina = dict(
    ld=dict(
        type='LocalizationDistiller',
        region=dict(type='MainRegion'),
        loss=dict(type='DistributionKLLoss', temperature=10, loss_weight=5),
    ),
    ld_vlr=dict(
        type='LocalizationDistiller',
        region=dict(type='ValuableLocalizationRegion', exclude_positives=True),
        loss=dict(type='DistributionKLLoss', temperature=10, loss_weight=0.15),
    ),
    kd=dict(
        type='ClassificationDistiller',
        region=dict(type='MainRegion'),
        loss=dict(type='DistributionKLLoss', temperature=8, loss_weight=10),
    ),
)
"""The full recipe as published for RetinaNet; its head needs distributions.

The published implementation multiplies the region's loss of weight 5 by 0.03.
"""

ld_point = dict(
    ld=_main_ld,
    ld_vlr=dict(
        type='LocalizationDistiller',
        region=dict(type='ValuableLocalizationRegion'),
        loss=dict(type='DistributionKLLoss', temperature=10, loss_weight=0.0625),
    ),
    kd=_main_kd,
)
"""The full recipe as published for ATSS and FCOS; their heads need distributions.

The published implementation multiplies the region's loss of weight 0.25 by 0.15 to 0.25; here it is
0.25. Points have square priors of eight strides here (four in rotated heads), so FCOS has a region
of its own instead of all negatives.
"""


def _rotated_ld(localization: float, classes: float) -> dict:
    region = dict(type='OverlapRegion')
    return dict(
        ld=dict(
            type='LocalizationDistiller',
            region=region,
            loss=dict(type='DistributionKLLoss', temperature=5, loss_weight=localization),
            normalizer='level_positions',
        ),
        kd=dict(
            type='ClassificationDistiller',
            region=region,
            loss=dict(type='DistributionKLLoss', temperature=5, loss_weight=classes),
            weights='region',
        ),
    )


rotated_ld_gwd = _rotated_ld(localization=10, classes=20)
"""Rotated LD as published for RetinaNet that learns boxes by the Gaussian Wasserstein distance.

Its head needs distributions: ``DistributionRotatedRetinaHead``.
"""

rotated_ld_kld = _rotated_ld(localization=15, classes=15)
"""Rotated LD as published for RetinaNet that learns boxes by the Gaussian KL divergence."""

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
        loss=dict(type='BoxLoss', loss_weight=4),  # GIoU, if the boxes are not rotated
    ),
)
"""Binary classification and IoU-based localization distillation (Yang et al., ICCV 2023)."""

rm_pfi = dict(
    rm=dict(type='RankDistiller', on='score', loss=dict(type='RankKLLoss', loss_weight=4)),
    rm_box=dict(type='RankDistiller', on='iou', loss=dict(type='RankKLLoss', loss_weight=4)),
    pfi=dict(
        type='PredictionGuidedFeatureDistiller',
        region=dict(type='EverywhereRegion'),
        loss=dict(type='FeatureMSELoss', loss_weight=1.5),
    ),
)
"""Rank mimicking and prediction-guided feature imitation (Li et al., AAAI 2022), for RetinaNet."""

defeat = dict(
    defeat_neck=dict(
        type='DecoupledFeatureDistiller',
        region=dict(type='GTCellsRegion'),
        object_weight=3,
        background_weight=12,
    ),
    defeat_cls=dict(type='DecoupledClassificationDistiller', loss=dict(type='DecoupledLoss')),
)
"""Decoupled features and classes for one-stage detectors (Guo et al., CVPR 2021).

The weights are those published for Faster R-CNN on VOC.
"""

defeat_two_stage = dict(
    defeat_neck=dict(
        type='DecoupledFeatureDistiller',
        region=dict(type='GTCellsRegion'),
        object_weight=3,
        background_weight=12,
    ),
    defeat_roi=dict(type='DecoupledRoIClassificationDistiller', loss=dict(type='DecoupledLoss')),
)
"""Decoupled features, and classes of proposals, for two-stage detectors (Guo et al., CVPR 2021)."""

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

crosskd = dict(crosskd=dict(type='CrossHeadDistiller', layer=3))
"""Cross-head distillation of classes and boxes (CrossKD; Wang et al., CVPR 2024)."""

# a config that imports all of this module would otherwise hold functions, and could not be written
del _imitation, _rotated_ld
