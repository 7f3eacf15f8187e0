"""What readers of heads share whose priors are points."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import DenseReader

#: side of the square that stands for a point, in strides: ATSS's and GFL's anchors have it too
PRIOR_SCALE = 8


class PointReader(DenseReader):
    """Gives every point a square prior around it.

    Regions compare priors with ground truths by their overlap, which a point has none of.
    """

    def priors(self, sizes: Sequence[Any], device: torch.device) -> Tensor:
        levels = self.head.prior_generator.grid_priors(sizes, device=device, with_stride=True)
        points, strides = torch.cat(levels).split(2, dim=1)
        half = PRIOR_SCALE / 2 * strides
        return torch.cat([points - half, points + half], dim=1)


def centres(priors: Tensor) -> Tensor:
    """(K, 2), the centres of priors (K, 4); of square priors, their points."""
    return (priors[:, :2] + priors[:, 2:]) / 2


def find_ground_truths(
    boxes: Tensor, labels: Tensor, gt_bboxes: Tensor, gt_labels: Tensor
) -> Tensor:
    """The index of the ground truth that each positive's box target came from.

    Args:
        boxes: (K, 4), the targets, equal to a ground truth up to rounding.
        labels: (K,), their classes.
        gt_bboxes: (G, 4).
        gt_labels: (G,).

    Returns:
        (K,) int64.
    """
    if len(gt_bboxes) == 0:
        return labels.new_empty(0)
    distance = (boxes[:, None] - gt_bboxes).abs().sum(-1)
    # two classes may share a box
    other_class = labels[:, None] != gt_labels
    return distance.masked_fill(other_class, torch.inf).argmin(1)
