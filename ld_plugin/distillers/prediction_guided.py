"""Prediction-guided feature imitation: features, most where the predictions differ."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from ..dense import DistillationContext
from ..dense.positions import mean_counts
from ..errors import ConfigError
from ..losses import DistillationLoss, eager_gradient, feature_squared_error, pieces_of
from ..losses.functional import at_least_float32
from ..regions import Region
from ..registry import DISTILLERS
from .base import adapted
from .feature import FeatureDistiller
from .schedules import Schedule


def _scores(logits: Tensor) -> Tensor:
    return at_least_float32(logits).sigmoid()


# named functions, as students are pickled
_PREDICTIONS: dict[str, Callable[[Tensor], Tensor]] = {'logit': at_least_float32, 'score': _scores}


@DISTILLERS.register_module()
class PredictionGuidedFeatureDistiller(FeatureDistiller):
    r"""Prediction-guided feature imitation, PFI (Li et al., AAAI 2022).

    .. math:: \frac{1}{L} \sum_l \mathrm{mean}_{hw} (P_\text{dif} F_\text{dif}), \quad
              P_\text{dif} = \mathrm{mean}_c (p_S - p_T)^2, \quad
              F_\text{dif} = \mathrm{mean}_q (f_S - f_T)^2

    over the cells of the images, not of their padding; P averages over the anchors of a cell, too.
    The gradient reaches both the features and the classifier. An adapter as in
    :class:`FeatureDistiller` takes the student's features to another width.

    ``dict(type='PredictionGuidedFeatureDistiller',
    loss=dict(type='FeatureMSELoss', loss_weight=1.5))``

    Args:
        region: Where; default everywhere.
        loss: F, a loss of single cells; default the mean squared error, weight 1.5.
        schedule: A factor over training.
        on: What p is, which the paper leaves open: ``'logit'``, as in the draft whose numbers the
            tests have, or ``'score'``, the sigmoid score, whose squared differences are smaller by
            orders of magnitude, so that the published weight would do next to nothing.

    Raises:
        ConfigError: ``on`` is neither, or the loss compares whole maps.
    """

    reads = frozenset({'class_logits', 'features'})
    compares_maps = False
    loss_compares_classes = False
    defaults: ClassVar = dict(
        region=dict(type='EverywhereRegion'),
        loss=dict(type='FeatureMSELoss', loss_weight=1.5),
    )

    def __init__(
        self,
        region: Region,
        loss: DistillationLoss,
        schedule: Schedule | None = None,
        on: str = 'logit',
    ) -> None:
        super().__init__(region, loss, schedule)
        if on not in _PREDICTIONS:
            raise ConfigError(f'on: found {on!r}, expected one of {tuple(_PREDICTIONS)}.')
        self.predictions = _PREDICTIONS[on]

    def distill(self, context: DistillationContext) -> Tensor:
        masks = context.select(self.region).cell_masks
        counts = mean_counts(masks) * len(masks)
        return sum(
            self._of_level(context, level, mask, count)
            for level, (mask, count) in enumerate(zip(masks, counts, strict=True))
        )

    def _of_level(
        self, context: DistillationContext, level: int, mask: Tensor, count: Tensor
    ) -> Tensor:
        student, teacher = context.student, context.teacher
        logits = student.class_views[level], teacher.class_views[level]  # (N, A, H, W, C)
        features = adapted(self.adapter, student.features[level]), teacher.features[level]
        anchors, pieces = logits[0].shape[1], pieces_of(logits[0])

        # the product rule: each factor is differentiated while the other one stands still
        with torch.no_grad():
            errors = self.loss.loss_weight * self.errors(*features) * mask / count
            cut = zip(*(x.chunk(pieces, dim=1) for x in logits), strict=True)
            differences = sum(self._differences(*piece).sum(1) for piece in cut) / anchors
        of_logits = eager_gradient(
            lambda *given: (self._differences(*given[:2]) * given[2]).sum(),
            *logits,
            (errors / anchors)[:, None].expand(-1, anchors, -1, -1),
            pieces=pieces,
        )
        of_features = self.eager_loss(*features, differences * mask, avg_factor=count)
        return of_logits + of_features - of_features.detach()

    def _differences(self, student: Tensor, teacher: Tensor) -> Tensor:
        """P of every prior: logits (..., C) of both to (...)."""
        return feature_squared_error(self.predictions(student), self.predictions(teacher))
