"""Classification distillation: the class logits."""

from typing import ClassVar

from torch import Tensor

from ..dense import DistillationContext
from ..dense.outputs import prior_views
from ..errors import ConfigError
from ..losses import DistillationLoss, eager_gradient, pieces_of
from ..regions import Region
from ..registry import DISTILLERS
from .base import Distiller
from .schedules import Schedule

NORMALIZERS = ('level_positions', 'positives')
WEIGHTS = ('labels', 'region')


@DISTILLERS.register_module()
class ClassificationDistiller(Distiller):
    """Class logits over a region.

    Each position counts with its label weight, so priors that the classification loss ignores do
    not count here either; or, if ``weights='region'``, with the weight that the region gives it.

    Of softened distributions at positives, averaged on every level (Zheng et al., CVPR 2022)::

        dict(type='ClassificationDistiller', region=dict(type='MainRegion'),
             loss=dict(type='DistributionKLLoss', temperature=2, loss_weight=10))

    Of sigmoid scores everywhere (BCKD, Yang et al., ICCV 2023)::

        dict(type='ClassificationDistiller', region=dict(type='EverywhereRegion'),
             loss=dict(type='BinaryKDLoss', beta=1, loss_weight=1), normalizer='positives')

    Args:
        region: Where; default the main region.
        loss: How; default KL divergence at temperature 2, weight 10.
        schedule: A factor over training.
        normalizer: What the sum over the region is divided by: ``'level_positions'``, on each level
            the region's positions there, or ``'positives'``, all positives of the batch, one at
            least for each image.
        weights: How much a position counts: ``'labels'``, its label weight, or ``'region'``, for
            regions that weight their priors.

    Raises:
        ConfigError: ``normalizer`` or ``weights`` is none of these.
    """

    reads = frozenset({'class_logits'})
    defaults: ClassVar = dict(
        region=dict(type='MainRegion'),
        loss=dict(type='DistributionKLLoss', temperature=2.0, loss_weight=10.0),
    )

    def __init__(
        self,
        region: Region,
        loss: DistillationLoss,
        schedule: Schedule | None = None,
        normalizer: str = 'level_positions',
        weights: str = 'labels',
    ) -> None:
        super().__init__(region, loss, schedule)
        if normalizer not in NORMALIZERS:
            raise ConfigError(f'normalizer: found {normalizer!r}, expected one of {NORMALIZERS}.')
        if weights not in WEIGHTS:
            raise ConfigError(f'weights: found {weights!r}, expected one of {WEIGHTS}.')
        self.normalizer = normalizer
        self.weights = weights

    def distill(self, context: DistillationContext) -> Tensor:
        if self.region.whole_levels:
            return self._on_whole_levels(context)
        at = context.select(self.region).priors
        per_level = self.normalizer == 'level_positions'
        divisor = at.mean_level_count if per_level else context.mean_num_positives
        return self.loss(
            context.student.class_logits(at),
            context.teacher.class_logits(at),
            weight=at.take(self._weights(context)) / divisor,
            avg_factor=1.0,
        )

    def _on_whole_levels(self, context: DistillationContext) -> Tensor:
        selection = context.select(self.region)
        weights = self._weights(context) * (selection.weights > 0)
        levels = zip(
            context.student.class_views,
            context.teacher.class_views,
            prior_views(weights, selection.shapes),
            self._level_divisors(context),
            strict=True,
        )
        return sum(
            eager_gradient(
                lambda *given, d=divisor: self.loss(*given, avg_factor=d),
                student,
                teacher,
                weight,
                modules=[self.loss],
                pieces=pieces_of(student, loss=self.loss),
            )
            for student, teacher, weight, divisor in levels
        )

    def _weights(self, context: DistillationContext) -> Tensor:
        """(N, P)."""
        if self.weights == 'region':
            weights = context.select(self.region).weights.float()
            return context.assignment.where_known(weights)
        return context.assignment.label_weights

    def _level_divisors(self, context: DistillationContext) -> Tensor:
        """(L,)."""
        if self.normalizer == 'level_positions':
            return context.select(self.region).mean_level_counts
        return context.mean_num_positives.expand(len(context.student.class_maps))
