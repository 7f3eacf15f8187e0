"""A loss with trained parameters of its own: they learn wherever the loss looks."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from mmdet.models.losses import GIoULoss
from mmdet.registry import MODELS
from torch import Tensor, nn

from ld_plugin.losses import (
    BinaryKDLoss,
    DistributionKLLoss,
    FeatureMSELoss,
    PearsonFeatureLoss,
)
from ld_plugin.registry import LOSSES
from tests.families import tiny
from tests.models import batch, build, losses, tiny_distilled


class _Scaled(nn.Module):
    """Mixed into a loss: a trained factor, by whose slope the loss is as large as its value."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = nn.Parameter(torch.ones(()))


class TrainedFeatureLoss(_Scaled, FeatureMSELoss):
    def elementwise(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.factor * super().elementwise(student, teacher)


class TrainedMapLoss(_Scaled, PearsonFeatureLoss):
    def elementwise(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.factor * super().elementwise(student, teacher)


class TrainedClassLoss(_Scaled, BinaryKDLoss):
    def elementwise(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.factor * super().elementwise(student, teacher)


class TrainedBinLoss(_Scaled, DistributionKLLoss):
    def elementwise(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.factor * super().elementwise(student, teacher)


class TrainedBoxLoss(_Scaled, GIoULoss):
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.factor * super().forward(*args, **kwargs)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    of_maps = TrainedFeatureLoss, TrainedMapLoss, TrainedClassLoss, TrainedBinLoss
    own = *((LOSSES, loss) for loss in of_maps), (MODELS, TrainedBoxLoss)
    for registry, cls in own:
        registry.register_module(module=cls)
    yield
    for registry, cls in own:
        del registry.module_dict[cls.__name__]


_FEATURES = dict(loss=dict(type='TrainedFeatureLoss'))
_CLASSES = dict(loss=dict(type='TrainedClassLoss'))
_REGIONS = 'EverywhereRegion', 'BackgroundRegion', 'MainRegion', 'InsideGTRegion'


@pytest.mark.parametrize(
    'distiller',
    [
        *(
            dict(type='FeatureDistiller', region=dict(type=region), **_FEATURES)
            for region in _REGIONS
        ),
        dict(type='FeatureDistiller', loss=dict(type='TrainedMapLoss')),
        *(
            dict(type='ClassificationDistiller', region=dict(type=region), **_CLASSES)
            for region in ('EverywhereRegion', 'MainRegion')
        ),
        dict(type='PredictionGuidedFeatureDistiller', **_FEATURES),
        dict(
            type='DecoupledClassificationDistiller',
            loss=dict(
                type='DecoupledLoss',
                objects=dict(type='TrainedClassLoss'),
                background=dict(type='TrainedClassLoss'),
            ),
        ),
    ],
    ids=lambda distiller: '-'.join([distiller['type'], *distiller.get('region', {}).values()]),
)
def test_a_trained_factor_has_the_slope_of_the_value(distiller: dict) -> None:
    model = build(tiny_distilled(distillers=dict(own=distiller)))
    value = losses(model, batch())['loss_own']
    value.backward()
    slopes = [p.grad for name, p in model.named_parameters() if name.endswith('.factor')]
    torch.testing.assert_close(sum(slopes), value.detach())
    assert value > 0


@pytest.mark.parametrize(
    'distiller',
    [
        dict(type='CrossHeadDistiller', layer=1, box_loss=dict(type='TrainedBoxLoss'), **_CLASSES),
        dict(type='BoxDistiller', loss=dict(type='TrainedBoxLoss')),
    ],
    ids=lambda distiller: distiller['type'],
)
@pytest.mark.parametrize('family', ['retinanet', 'fcos'])
def test_losses_of_boxes(family: str, distiller: dict) -> None:
    stock = tiny(family, stacked_convs=2)
    teacher = dict(config=dict(model=stock), checkpoint=None)
    model = build(tiny_distilled(teacher, dict(own=distiller), stock))
    value = losses(model, batch())['loss_own']
    value.backward()
    slopes = [p.grad for name, p in model.named_parameters() if name.endswith('.factor')]
    assert all(slope > 0 for slope in slopes)
    torch.testing.assert_close(sum(slopes), value.detach())


def test_losses_of_distributions_of_boxes() -> None:
    losses = dict(box_loss=dict(type='TrainedBinLoss'), **_CLASSES)
    test_losses_of_boxes('gfl', dict(type='CrossHeadDistiller', layer=1, **losses))


@pytest.mark.parametrize(
    'distiller',
    [
        dict(type='BoxDistiller', region=dict(type='MainRegion'), loss=dict(type='TrainedBoxLoss')),
        dict(type='ClassificationDistiller', region=dict(type='MainRegion'), **_CLASSES),
        dict(type='FeatureDistiller', region=dict(type='MainRegion'), **_FEATURES),
        dict(type='PredictionGuidedFeatureDistiller', **_FEATURES),
    ],
    ids=lambda distiller: distiller['type'],
)
def test_without_objects_the_gradient_is_0_and_not_missing(distiller: dict) -> None:
    """As processes that share gradients need it, of which others may have objects."""
    teacher = dict(config=dict(model=tiny('fcos')), checkpoint=None)
    model = build(tiny_distilled(teacher, dict(own=distiller), tiny('fcos')))
    losses(model, batch(objects=[0, 0]))['loss_own'].backward()
    (slope,) = (p.grad for name, p in model.named_parameters() if name.endswith('.factor'))
    if 'region' in distiller:
        assert slope == 0
    else:
        assert slope.isfinite()
