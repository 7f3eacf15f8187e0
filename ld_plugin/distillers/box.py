"""Box distillation: the decoded boxes."""

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from mmdet.models.losses import (
    BoundedIoULoss,
    CIoULoss,
    DIoULoss,
    EIoULoss,
    GIoULoss,
    IoULoss,
    SIoULoss,
)
from mmdet.registry import MODELS
from torch import Tensor, nn

from ..checks import check_not_negative
from ..dense import DenseOutputs, DistillationContext, HeadSpec
from ..dense.outputs import prior_views
from ..errors import ConfigError
from ..losses import eager_gradient, pieces_of
from ..losses.box import with_extent
from ..losses.eager_gradient import levels_at_once, numbers_at_once
from ..regions.geometry import general_instance_scores, level_instance_scores
from ..registry import DISTILLERS
from .base import KINDS, Distiller

_PER_PRIOR = 16  # numbers that decoding and comparing boxes makes of each

OF_HORIZONTAL_BOXES = (BoundedIoULoss, CIoULoss, DIoULoss, EIoULoss, GIoULoss, IoULoss, SIoULoss)
OF_OFFSETS = ('GHMR', 'KFLoss')  # the latter of MMRotate, an optional package


@DISTILLERS.register_module()
class BoxDistiller(Distiller):
    r"""IoU-based localization distillation of BCKD (Yang et al., ICCV 2023).

    .. math:: \frac{1}{n} \sum_{i \in \text{region}} v_i \, \ell(b_{S,i}, b_{T,i}),
              \quad v_i = w_i \max_c |s_{T,ic} - s_{S,ic}|

    with the boxes b, the label weights w, the sigmoid scores s and the number n of positives, one
    at least for each image; v carries no gradient. Boxes are compared decoded, so the head needs no
    distributions.

    ``dict(type='BoxDistiller', region=dict(type='EverywhereRegion'),
    loss=dict(type='BoxLoss', loss_weight=4))``

    Args:
        region: Where; default everywhere.
        loss: A regression loss for boxes out of MMDetection's ``MODELS`` (or ``'mmrotate.GDLoss'``
            and the like for rotated boxes); default GIoU, or its counterpart for rotated boxes,
            weight 4.
        schedule: A factor over training.

    Raises:
        ConfigError: The loss is not one of boxes, or its weight is out of its range, or the boxes
            are rotated and the loss is one of horizontal boxes.
    """

    reads = frozenset({'class_logits', 'boxes'})
    loss_registry = MODELS
    loss_base = nn.Module
    defaults: ClassVar = dict(
        region=dict(type='EverywhereRegion'), loss=dict(type='BoxLoss', loss_weight=4.0)
    )

    def prepare(self, student: HeadSpec, teacher: HeadSpec, key: str) -> None:
        super().prepare(student, teacher, key)
        check_box_loss(self.loss, student, f'{key}.loss')

    def distill(self, context: DistillationContext) -> Tensor:
        if self.region.whole_levels:
            total = self._of_levels(context)
        else:
            total = self._of_positions(context)
        return total / context.mean_num_positives

    def _of_positions(self, context: DistillationContext) -> Tensor:
        at = context.select(self.region).priors
        student, teacher = context.student, context.teacher
        weights = at.take(context.assignment.label_weights)
        with torch.no_grad():
            logits = student.class_logits(at), teacher.class_logits(at)
            differences, _ = general_instance_scores(*logits)
        boxes = student.boxes(at), teacher.boxes(at)
        return weighted_box_loss(self.loss, *boxes, weights * differences)

    def _of_levels(self, context: DistillationContext) -> Tensor:
        student, teacher = context.student, context.teacher
        selection = context.select(self.region)
        weights = context.assignment.label_weights * (selection.weights > 0)
        levels = zip(
            prior_views(weights, selection.shapes),
            student.class_views,
            teacher.class_views,
            strict=True,
        )
        with torch.no_grad():
            weights = [w * level_instance_scores(*logits)[0] for w, *logits in levels]
        sizes = [_PER_PRIOR * level.numel() for level in weights]
        return sum(
            level_box_loss(self.loss, student, teacher, levels, [weights[x] for x in levels])
            for levels in levels_at_once(sizes, numbers_at_once(weights[0]))
        )


def check_box_loss(loss: nn.Module, student: HeadSpec, key: str) -> None:
    """Refuse negative weights, and losses of anything but boxes such as the head's.

    Raises:
        ConfigError: It is one of these.
    """
    check_not_negative(**{f'{key}.loss_weight': getattr(loss, 'loss_weight', 1)})
    if hasattr(loss, 'use_sigmoid') or hasattr(loss, 'T'):
        raise ConfigError(
            f'{key}: found {type(loss).__name__}, which compares class scores, expected a loss '
            "between boxes such as dict(type='BoxLoss')."
        )
    if type(loss).__name__ in OF_OFFSETS:
        raise ConfigError(
            f'{key}: found {type(loss).__name__}, which compares encoded offsets, but boxes are '
            "compared decoded. Expected dict(type='BoxLoss'), or for rotated boxes a loss of "
            "MMRotate's such as dict(type='mmrotate.GDLoss', loss_type='kld')."
        )
    if student.box_dim == 5 and isinstance(loss, OF_HORIZONTAL_BOXES):
        raise ConfigError(
            f'{key}: found {type(loss).__name__}, which compares horizontal boxes, but '
            f"{student.name} predicts rotated ones. Expected dict(type='BoxLoss'), or a loss of "
            "MMRotate's such as dict(type='mmrotate.GDLoss', loss_type='kld')."
        )
    if problem := _problem_with_boxes(loss, student.box_dim):
        raise ConfigError(
            f'{key}: found {type(loss).__name__}, which does not compare {KINDS[student.box_dim]} '
            f"boxes ({problem}). Expected dict(type='BoxLoss'), or another loss between them."
        )


def _problem_with_boxes(loss: nn.Module, box_dim: int) -> str:
    """Why a stock loss cannot compare two pairs of boxes (2, E), if it cannot."""
    boxes = torch.tensor([[8.0, 8.0, 24.0, 16.0, 0.5], [4.0, 4.0, 9.0, 8.0, 0.1]])[:, :box_dim]
    refusals = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
    if box_dim == 4:  # some of rotated boxes have no operator for a processor
        refusals += (RuntimeError,)
    try:
        rows = loss(boxes, boxes + 1, reduction_override='none')
    except refusals as error:
        return f'{type(error).__name__}: {error}'.rstrip(': ')
    except RuntimeError:
        return ''
    shape = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
    fits = shape in ((2,), (2, 1), (2, box_dim))
    return '' if fits else f'of two pairs it makes {shape}, expected a number each'


def level_box_loss(
    loss: nn.Module,
    student: DenseOutputs,
    teacher: DenseOutputs,
    levels: Sequence[int],
    weights: Sequence[Tensor],
) -> Tensor:
    """The weighted sum of a stock loss over all priors of some levels.

    Args:
        loss: A regression loss out of MMDetection's ``MODELS``.
        student: Carries the gradient.
        teacher: With as many priors, which may lie elsewhere in their cells.
        levels: Which; small ones, or a single one.
        weights: Of each, (N, A, H, W).

    Returns:
        A scalar.
    """

    def of_rows(box_map: Tensor, reference: Tensor, weights: Tensor, *grids: Tensor) -> Tensor:
        boxes = student.decode_rows(box_map, *grids[:2])
        references = teacher.decode_rows(reference, *grids[2:])
        return weighted_box_loss(loss, boxes, references, weights.flatten())

    def joined(parts: Iterable[Tensor]) -> Tensor:
        """One level (N, H, W, ...) as it is, several as the rows of their priors (N, n, ...)."""
        parts = list(parts)
        if len(parts) == 1:
            return parts[0]
        numbers = (student.num_level_priors[level] for level in levels)
        rows = [x.reshape(len(x), n, -1) for x, n in zip(parts, numbers, strict=True)]
        return torch.cat(rows, dim=1)

    box_map, reference = (
        joined(outputs.box_maps[level].movedim(1, -1) for level in levels)
        for outputs in (student, teacher)
    )
    weights = joined(level.movedim(1, -1) for level in weights)
    grids = [
        joined(grid)
        for outputs in (student, teacher)
        for grid in zip(*map(outputs.level_grids, levels), strict=True)
    ]
    pieces = pieces_of(box_map, numbers=_PER_PRIOR * weights.numel())
    return eager_gradient(
        of_rows, box_map, reference, weights, *grids, modules=[loss], pieces=pieces
    )


def weighted_box_loss(loss: nn.Module, student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of a stock loss over pairs of boxes.

    Args:
        loss: A regression loss out of MMDetection's ``MODELS``.
        student: (K, E).
        teacher: (K, E).
        weights: (K,).
    """
    if len(student) == 0:
        # the stock IoU of no boxes has no gradient, which boxes and a loss's own parameters need
        # where other processes have boxes
        return student.sum() + sum(p.flatten()[:0].sum() for p in loss.parameters())
    student, teacher = with_extent(student), with_extent(teacher.detach())
    # some stock losses divide 0 by 0 between equal boxes, and what does not count may be anything:
    # in place of these stand others
    unused = (student == teacher).all(-1) | (weights == 0)
    student = student.where(~unused[:, None], teacher + 1)
    # weighted here: the stock losses look at their weights, for which they wait for the device
    rows = loss(student, teacher, reduction_override='none')
    rows = rows.flatten(1).sum(1) if rows.dim() > 1 else rows
    return (rows.to(weights.dtype) * weights.masked_fill(unused, 0)).sum()
