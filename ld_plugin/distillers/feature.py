"""Feature imitation: the levels of the neck."""

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..dense import DistillationContext, HeadSpec
from ..dense.positions import mean_counts
from ..losses import eager_gradient, pieces_of
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
        if self.region.whole_levels and self.loss.rows_are_independent:
            return self._on_whole_levels(context)
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
            eager_gradient(lambda *rows, n=count: self.loss(*rows, avg_factor=n), student, teacher)
            for student, teacher, count in levels
        )

    def _on_whole_levels(self, context: DistillationContext) -> Tensor:
        masks = context.select(self.region).cell_masks
        levels = zip(
            context.student.features,
            context.teacher.features,
            masks,
            mean_counts(masks),
            strict=True,
        )
        return sum(
            self.eager_loss(self.adapter(at_least_float32(student)), teacher, mask.float(), count)
            for student, teacher, mask, count in levels
        )

    def eager_loss(
        self, student: Tensor, teacher: Tensor, weight: Tensor, avg_factor: Tensor | float
    ) -> Tensor:
        """The loss of a level, by :func:`~ld_plugin.losses.eager_gradient`.

        Args:
            student: Of the teacher's width, (N, F, H, W).
            teacher: (N, F, H, W).
            weight: A factor per cell, (N, H, W).
            avg_factor: What the weighted sum is divided by.
        """
        student, teacher = student.movedim(1, -1), teacher.movedim(1, -1)
        return eager_gradient(
            partial(self.loss, avg_factor=avg_factor),
            student,
            teacher,
            weight,
            pieces=self._pieces_of(student),
        )

    def errors(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The unweighted loss of every cell of a level, (N, H, W), without a gradient.

        Args:
            student: Of the teacher's width, (N, F, H, W).
            teacher: (N, F, H, W).
        """
        maps = student.detach().movedim(1, -1), teacher.movedim(1, -1)
        cut = zip(*(x.chunk(self._pieces_of(x), dim=1) for x in maps), strict=True)
        return torch.cat([self.loss.elementwise(*piece) for piece in cut], dim=1)

    def _pieces_of(self, features: Tensor) -> int:
        """Of (N, H, W, F)."""
        return pieces_of(features) if self.loss.rows_are_independent else 1
