"""The interface of a region."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..dense import DistillationContext, Positions
from ..dense.boxes import bounds, in_first_quarter, in_kind_of, is_rotated, without_angle
from ..dense.outputs import prior_views
from ..dense.positions import LevelShape, mean_counts
from ..losses.eager_gradient import numbers_at_once


@dataclass(eq=False)  # frozen, Python 3.12 could not compile its cached properties
class Selection:
    """What a region selected in one batch.

    Attributes:
        weights: (N, P), bool or float; a prior is in the region where it is above 0.
        shapes: (H, W, A) of every level.
    """

    weights: Tensor
    shapes: Sequence[LevelShape]

    @cached_property
    def priors(self) -> Positions:
        """The selected priors."""
        return Positions.from_mask(self.weights > 0, self.shapes)

    @cached_property
    def cells(self) -> Positions:
        """The cells that hold a selected prior, for what a cell has once: its features."""
        if all(anchors == 1 for _, _, anchors in self.shapes):
            return self.priors
        return Positions.cells_from_mask(self.weights > 0, self.shapes)

    @cached_property
    def mean_level_counts(self) -> Tensor:
        """(L,), selected priors of every level, averaged over the GPUs; 1 where there are none.

        For regions that are read as whole levels; :attr:`Positions.mean_level_counts` is the same
        for gathered positions. Every process must ask for it.
        """
        return mean_counts(prior_views(self.weights > 0, self.shapes))

    @cached_property
    def cell_masks(self) -> list[Tensor]:
        """Per level, (N, H, W) bool: the cell holds a selected prior."""
        return [level.any(1) for level in prior_views(self.weights > 0, self.shapes)]


class Region(ABC):
    """Selects priors of a batch. Equal configs share one region, computed once per batch.

    Attributes:
        ld_divisor: The constant under localization distillation's sum over the region (published: 4
            for positives, 16 for the valuable localization region and what stands in for it).
        whole_levels: Whether it holds so many priors that reading whole levels costs less than
            gathering.
        reads: Which of the teacher's outputs the region looks at, in the words of
            :attr:`ld_plugin.distillers.Distiller.reads`.
        reads_of_student: What it needs of the student besides, likewise. By default ``'priors'``:
            those of its head, or what they are assigned to; one that compares cells with ground
            truths does without.
    """

    ld_divisor: float = 4.0
    whole_levels: ClassVar[bool] = False
    reads: ClassVar[frozenset[str]] = frozenset()
    reads_of_student: frozenset[str] = frozenset({'priors'})

    @abstractmethod
    def weights(self, context: DistillationContext) -> Tensor:
        """(N, P), bool or float; a prior is in the region where it is above 0. No gradient."""

    def position_weight(self, context: DistillationContext, selection: Selection) -> Tensor:
        """(K,), how much each selected prior counts for localization distillation. No gradient."""
        known = context.assignment.where_known(selection.weights)
        return selection.priors.take(known).float()

    @torch.no_grad()
    def __call__(self, context: DistillationContext) -> Selection:
        weights, expected = self.weights(context), context.assignment.valid.shape
        if weights.shape != expected:  # one row for all images would select in the first alone
            raise ValueError(
                f'{type(self).__name__}.weights: found the shape {tuple(weights.shape)}, expected '
                f'{tuple(expected)}: a row for every image, and all of its priors in it.'
            )
        return Selection(weights, context.student.level_shapes)

    def per_image(self, context: DistillationContext) -> list[tuple[Tensor, Tensor]]:
        """Ground truth boxes (G, E) and valid priors (P,) of every image."""
        return list(zip(context.gt_bboxes, context.assignment.valid, strict=True))


def comparable_boxes(context: DistillationContext, rotated: bool) -> tuple[Tensor, list[Tensor]]:
    """Priors (P, E) and per image ground truths (G, E), in the form that a region compares.

    Args:
        context: Of the training step.
        rotated: Rotated boxes stay so. Otherwise ground truths lose their angle, as in the
            published rotated localization distillation, after they were written with one above 0
            and up to a right angle, as there; priors are upright anyway. Beside horizontal priors
            ground truths become the smallest horizontal boxes around them, with which assigners
            compare those.
    """
    priors, gt_bboxes = context.student.priors, list(context.gt_bboxes)
    if rotated or not is_rotated(priors):
        return priors, [in_kind_of(priors, boxes) for boxes in gt_bboxes]
    # an upright prior may be written as a lying one, turned by a right angle
    return bounds(priors), [without_angle(in_first_quarter(boxes)) for boxes in gt_bboxes]


def of_all_images(
    region: Callable[..., Tensor], context: DistillationContext, rotated: bool, **options: Any
) -> Tensor:
    """(N, P), from as many images at once as the device takes: few operators, no large array.

    Args:
        region: Such as :func:`~ld_plugin.regions.geometry.fine_grained_region`.
        context: Of the training step.
        rotated: See :func:`comparable_boxes`.
        options: What ``region`` takes besides.
    """
    priors, gt_bboxes = comparable_boxes(context, rotated)
    most, groups = numbers_at_once(priors) // len(priors), [[]]
    for boxes in gt_bboxes:
        if groups[-1] and sum(map(len, groups[-1])) + len(boxes) > most:
            groups.append([])
        groups[-1].append(boxes)
    valid = context.assignment.valid.split([len(group) for group in groups])
    return torch.cat(
        [
            region(priors, torch.cat(group), valid=rows, image=_image_of_each(group), **options)
            for group, rows in zip(groups, valid, strict=True)
        ]
    )


def _image_of_each(gt_bboxes: Sequence[Tensor]) -> Tensor | None:
    """(G,) int64, of all ground truths of some images; None if there is a single image."""
    if len(gt_bboxes) == 1:
        return None
    # filled, as to copy it from the host would be to wait for the device
    return torch.cat(
        [b.new_full((len(b),), image, dtype=torch.int64) for image, b in enumerate(gt_bboxes)]
    )
