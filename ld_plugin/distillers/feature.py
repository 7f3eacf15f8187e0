"""Feature imitation: the levels of the neck."""

from typing import ClassVar

from torch import Tensor, nn

from ..dense import DistillationContext, HeadSpec
from ..losses.functional import at_least_float32
from ..registry import DISTILLERS
from .base import Distiller


@DISTILLERS.register_module()
class FeatureDistiller(Distiller):
    """The neck's features at the cells of a region, averaged on every level; the means are added.

    Where student and teacher have different widths, a trainable 1x1 convolution, shared by the
    levels, takes the student's features to the teacher's. It lives under ``distillers.`` in the
    checkpoint and ``tools/publish_student.py`` drops it.

    ``dict(type='FeatureDistiller', region=dict(type='FineGrainedRegion'),
    loss=dict(type='FeatureMSELoss', loss_weight=2))``

    PKD (Cao et al., NeurIPS 2022) compares whole maps with
    ``loss=dict(type='PearsonFeatureLoss', loss_weight=6)``.

    Args:
        region: Where; default everywhere (FitNets).
        loss: How, level by level; default the mean squared error, weight 2.
        schedule: A factor over training.
    """

    reads = frozenset({'features'})
    defaults: ClassVar = dict(
        region=dict(type='EverywhereRegion'),
        loss=dict(type='FeatureMSELoss', loss_weight=2.0),
    )

    def prepare(self, student: HeadSpec, teacher: HeadSpec, key: str) -> None:
        super().prepare(student, teacher, key)
        widths = student.feature_channels, teacher.feature_channels
        self.adapter = nn.Identity() if widths[0] == widths[1] else nn.Conv2d(*widths, 1)

    def distill(self, context: DistillationContext) -> Tensor:
        at = context.select(self.region).cells
        # the adapter's weights are float32; under mixed precision the features are not
        features = [at_least_float32(level) for level in context.student.features]
        counts = at.mean_level_counts
        levels = zip(
            at.gather_levels([self.adapter(level) for level in features]),
            at.gather_levels(context.teacher.features),
            counts.where(counts > 0, 1),
            strict=True,
        )
        return sum(
            self.loss(student, teacher, avg_factor=count) for student, teacher, count in levels
        )
