"""Feature imitation: the levels of the neck."""

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..dense import DistillationContext, HeadSpec, Positions
from ..dense.positions import mean_counts
from ..losses import eager_gradient, pieces_of
from ..registry import DISTILLERS
from .base import Distiller, adapted


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
    compares_maps = True
    defaults: ClassVar = dict(
        region=dict(type='EverywhereRegion'),
        loss=dict(type='FeatureMSELoss', loss_weight=2.0),
    )

    def prepare(self, student: HeadSpec, teacher: HeadSpec, key: str) -> None:
        super().prepare(student, teacher, key)
        widths = student.feature_channels, teacher.feature_channels
        self.adapter = nn.Identity() if widths[0] == widths[1] else nn.Conv2d(*widths, 1)

    def distill(self, context: DistillationContext) -> Tensor:
        selection = context.select(self.region)
        features = [adapted(self.adapter, level) for level in context.student.features]
        if self.region.whole_levels and self.loss.rows_are_independent:
            masks = selection.cell_masks
            levels = zip(features, context.teacher.features, masks, mean_counts(masks), strict=True)
            return sum(self.eager_loss(*maps, mask.float(), n) for *maps, mask, n in levels)
        counts = selection.cells.mean_level_counts
        levels = zip(features, context.teacher.features, counts.where(counts > 0, 1), strict=True)
        return sum(self._at(selection.cells, number, *level) for number, level in enumerate(levels))

    def _at(
        self, cells: Positions, level: int, student: Tensor, teacher: Tensor, count: Tensor
    ) -> Tensor:
        """The loss of a level's selected cells."""
        width = student.shape[1]

        def of_channels(*maps: Tensor) -> Tensor:
            rows = (cells.gather_level(level, x) for x in maps)
            return self.loss(*rows, avg_factor=count) * (maps[0].shape[1] / width)

        if not self.region.whole_levels:
            return of_channels(student, teacher)  # of few cells, what autograd keeps is less
        pieces = pieces_of(student) if self.loss.channels_are_independent else 1
        return eager_gradient(of_channels, student, teacher, modules=[self.loss], pieces=pieces)

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
            modules=[self.loss],
            pieces=pieces_of(student, loss=self.loss),
        )

    def errors(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The unweighted loss of every cell of a level, (N, H, W), without a gradient.

        Args:
            student: Of the teacher's width, (N, F, H, W).
            teacher: (N, F, H, W).
        """
        maps = student.detach().movedim(1, -1), teacher.movedim(1, -1)
        pieces = pieces_of(maps[0], loss=self.loss)
        cut = zip(*(x.chunk(pieces, dim=1) for x in maps), strict=True)
        return torch.cat([self.loss.elementwise(*piece) for piece in cut], dim=1)
