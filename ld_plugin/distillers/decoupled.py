"""DeFeat: objects and background apart, in features and in classes."""

from typing import ClassVar

from torch import Tensor, nn

from ..checks import check_not_negative
from ..dense import DistillationContext, HeadSpec
from ..dense.outputs import prior_views
from ..dense.positions import mean_counts
from ..losses import DecoupledLoss, DistillationLoss, eager_gradient, pieces_of
from ..regions import Region
from ..registry import DISTILLERS
from .base import Distiller, adapted
from .feature import FeatureDistiller
from .schedules import Schedule


@DISTILLERS.register_module()
class DecoupledFeatureDistiller(FeatureDistiller):
    r"""Decoupled features of the neck, DeFeat (Guo et al., CVPR 2021).

    .. math:: \frac{1}{L} \sum_l \Big[ \frac{a_\text{obj}}{2 n_\text{obj}} \sum M d^2
              + \frac{a_\text{bg}}{2 n_\text{bg}} \sum (1 - M) d^2 \Big],
              \quad d = \varphi(f_S) - f_T

    with the mask M of object cells, the counts n of cells times channels, averaged over the GPUs,
    and a trainable 3x3 convolution phi that the levels share. Cells in the padding count nowhere.

    ``dict(type='DecoupledFeatureDistiller', region=dict(type='GTCellsRegion'),
    object_weight=3, background_weight=12)``

    Args:
        region: The object cells; default ground truths on one level each, by their size.
        loss: d^2 averaged over the channels, a loss of single cells; default the mean squared
            error, weight 1.
        schedule: A factor over training, such as the published linear decay.
        object_weight: a_obj, at least 0.
        background_weight: a_bg, at least 0.

    Raises:
        ConfigError: A weight is out of its range, or the loss compares whole maps.
    """

    compares_maps = False
    defaults: ClassVar = dict(
        region=dict(type='GTCellsRegion'), loss=dict(type='FeatureMSELoss', loss_weight=1.0)
    )

    def __init__(
        self,
        region: Region,
        loss: DistillationLoss,
        schedule: Schedule | None = None,
        object_weight: float = 3.0,
        background_weight: float = 12.0,
    ) -> None:
        super().__init__(region, loss, schedule)
        check_not_negative(object_weight=object_weight, background_weight=background_weight)
        self.object_weight = object_weight
        self.background_weight = background_weight

    def prepare(self, student: HeadSpec, teacher: HeadSpec, key: str) -> None:
        super().prepare(student, teacher, key)
        widths = student.feature_channels, teacher.feature_channels
        self.adapter = nn.Conv2d(*widths, 3, padding=1)

    def distill(self, context: DistillationContext) -> Tensor:
        objects = context.select(self.region).cell_masks
        valid = prior_views(context.assignment.valid, context.student.level_shapes)
        background = [v.any(1) & ~m for v, m in zip(valid, objects, strict=True)]
        counts = mean_counts([*objects, *background]).unflatten(0, (2, -1))
        levels = zip(
            context.student.features,
            context.teacher.features,
            [self.object_weight * m / n for m, n in zip(objects, counts[0], strict=True)],
            [self.background_weight * m / n for m, n in zip(background, counts[1], strict=True)],
            strict=True,
        )
        return sum(
            self._of_level(student, teacher, of_objects + of_background)
            for student, teacher, of_objects, of_background in levels
        ) / (2 * len(objects))

    def _of_level(self, student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
        return self.eager_loss(adapted(self.adapter, student), teacher, weight, avg_factor=1.0)


@DISTILLERS.register_module()
class DecoupledClassificationDistiller(Distiller):
    """Class logits of positives and of negatives, each averaged over their own number (DeFeat).

    The published divergence is between softmax distributions. Of a head that scores classes with
    sigmoids it compares the logits' differences among the classes only;
    ``dict(type='BinaryKDLoss', beta=0)`` for both parts compares the scores themselves.

    ``dict(type='DecoupledClassificationDistiller', loss=dict(type='DecoupledLoss'))``

    Args:
        loss: One loss for positives and one for negatives; default as published.
        schedule: A factor over training.
    """

    reads = frozenset({'class_logits'})
    loss_base = DecoupledLoss
    loss_of_scores = (
        "dict(type='DecoupledLoss', objects=dict(type='BinaryKDLoss'), "
        "background=dict(type='BinaryKDLoss'))"
    )
    defaults: ClassVar = dict(loss=dict(type='DecoupledLoss'))

    def __init__(self, loss: DecoupledLoss, schedule: Schedule | None = None) -> None:
        super().__init__(None, loss, schedule)

    def distill(self, context: DistillationContext) -> Tensor:
        assigned = context.assignment
        masks = (
            assigned.positive,
            assigned.valid & (assigned.label_weights > 0) & ~assigned.positive,
        )
        weights = [
            prior_views(mask / count, context.student.level_shapes)
            for mask, count in zip(masks, mean_counts(masks), strict=True)
        ]
        levels = zip(
            context.student.class_views, context.teacher.class_views, *weights, strict=True
        )
        return sum(
            eager_gradient(
                self.loss, *level, modules=[self.loss], pieces=pieces_of(level[0], loss=self.loss)
            )
            for level in levels
        )
