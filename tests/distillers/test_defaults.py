"""What a config leaves out is as published: regions, losses and weights."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from ld_plugin.dense.rois import RoISpec, RoIStage
from ld_plugin.distillers import build_distillers
from tests.contexts import context

MAIN, EVERYWHERE = dict(type='MainRegion'), dict(type='EverywhereRegion')


def kl(temperature: float, loss_weight: float, class_reduction: str = 'mean') -> dict[str, Any]:
    return dict(
        type='DistributionKLLoss',
        temperature=temperature,
        loss_weight=loss_weight,
        class_reduction=class_reduction,
    )


def squared_error(loss_weight: float) -> dict[str, Any]:
    return dict(type='FeatureMSELoss', loss_weight=loss_weight)


DECOUPLED = dict(type='DecoupledLoss', objects=kl(1, 2, 'sum'), background=kl(1, 2, 'sum'))
DEFAULTS = dict(
    LocalizationDistiller=dict(
        region=MAIN, loss=kl(10, 0.25), divisor=4, reference_images=3, normalizer='images'
    ),
    ClassificationDistiller=dict(
        region=MAIN, loss=kl(2, 10), normalizer='level_positions', weights='labels'
    ),
    QualityDistiller=dict(region=MAIN, loss=dict(type='BinaryKDLoss', beta=0, loss_weight=1)),
    BoxDistiller=dict(region=EVERYWHERE, loss=dict(type='GIoULoss', loss_weight=4)),
    FeatureDistiller=dict(region=EVERYWHERE, loss=squared_error(2)),
    PredictionGuidedFeatureDistiller=dict(region=EVERYWHERE, loss=squared_error(1.5), on='logit'),
    RankDistiller=dict(loss=dict(type='RankKLLoss', loss_weight=4), on='score'),
    DecoupledFeatureDistiller=dict(
        region=dict(type='GTCellsRegion', levels='size', finest_scale=14 * 8),
        loss=squared_error(1),
        object_weight=3,
        background_weight=12,
    ),
    DecoupledClassificationDistiller=dict(loss=DECOUPLED),
)


ROI_DEFAULTS = dict(
    RoIClassificationDistiller=kl(1, 1, 'sum'), DecoupledRoIClassificationDistiller=DECOUPLED
)


def loss_of(cfg: dict[str, Any]) -> torch.Tensor:
    step = context(images=3)
    torch.manual_seed(0)  # of the adapter
    return build_distillers(dict(x=cfg), step.student.spec, step.teacher.spec)['x'](step)


@pytest.mark.parametrize('name', DEFAULTS)
def test_defaults(name: str) -> None:
    found, expected = loss_of(dict(type=name)), loss_of(dict(type=name, **DEFAULTS[name]))
    assert expected > 0
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('name', ROI_DEFAULTS)
def test_defaults_of_proposals(name: str) -> None:
    spec = replace(context().student.spec, rois=RoISpec(3, 1, True, (4,)))
    student, teacher, labels = torch.randn(9, 4), torch.randn(9, 4), torch.arange(9) % 4
    stage = RoIStage(torch.zeros(9, 5), student, teacher, labels, torch.ones(9), loss_weight=1)
    found, expected = (
        build_distillers(dict(x=cfg), spec, spec)['x'].of_stage(stage)
        for cfg in (dict(type=name), dict(type=name, loss=ROI_DEFAULTS[name]))
    )
    assert expected > 0
    torch.testing.assert_close(found, expected)


def test_positions_of_regions_that_weight_them_count_alike_unless_asked() -> None:
    def loss(**options: str) -> torch.Tensor:
        region = dict(type='ValuableLocalizationRegion')
        return loss_of(dict(type='ClassificationDistiller', region=region, **options))

    assert loss() == loss(weights='labels') > loss(weights='region') > 0


def test_divisor_and_reference_images_are_factors() -> None:
    def loss(**options: float) -> torch.Tensor:
        return loss_of(dict(type='LocalizationDistiller', **options))

    torch.testing.assert_close(loss(reference_images=6), 2 * loss())
    torch.testing.assert_close(loss(divisor=8), loss() / 2)
