"""What readers of heads share whose priors are points."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..boxes import upright
from .base import DenseReader


class PointReader(DenseReader):
    """Gives every point a square prior around it.

    Regions compare priors with ground truths by their overlap, which a point has none of.
    """

    #: side of the square, in strides: ATSS's and GFL's anchors have it too
    prior_scale: ClassVar[float] = 8

    def priors(self, sizes: Sequence[Any], device: torch.device) -> Tensor:
        levels = self.head.prior_generator.grid_priors(sizes, device=device, with_stride=True)
        points, strides = torch.cat(levels).split(2, dim=1)
        half = self.prior_scale / 2 * strides
        return torch.cat([points - half, points + half], dim=1)


class RotatedPointReader(PointReader):
    """Gives every point an upright square, as rotated box."""

    box_dim = 5
    #: that of rotated ATSS's anchors
    prior_scale: ClassVar[float] = 4

    def priors(self, sizes: Sequence[Any], device: torch.device) -> Tensor:
        return upright(super().priors(sizes, device))

    def decode_parts(self, distances: Tensor, angles: Tensor, priors: Tensor) -> Tensor:
        """Boxes (K, 5) by the head's own coder.

        Args:
            distances: (K, 4), from the point to the sides, along these, in pixels.
            angles: (K, 1), in radians.
            priors: (K, 5).
        """
        return self.head.bbox_coder.decode(priors[:, :2], torch.cat([distances, angles], dim=1))

    def decode(self, rows: Tensor, priors: Tensor, strides: Tensor) -> Tensor:
        angles = self.head.angle_coder.decode(rows[:, 4:], keepdim=True)
        return self.decode_parts(rows[:, :4], angles, priors)

    def join(self, box_maps: Sequence[Tensor], angle_maps: Sequence[Tensor]) -> list[Tensor]:
        """One regression map per level: distances, then the angle as it is encoded.

        Args:
            box_maps: Per level, (N, 4, H, W).
            angle_maps: Per level, (N, B, H, W), of B numbers that encode an angle.

        Returns:
            Per level, (N, 4 + B, H, W).
        """
        return [
            torch.cat([box_map, angle_map.to(box_map.dtype)], dim=1)
            for box_map, angle_map in zip(box_maps, angle_maps, strict=True)
        ]


def find_ground_truths(
    boxes: Tensor, labels: Tensor, gt_bboxes: Tensor, gt_labels: Tensor
) -> Tensor:
    """The index of the ground truth that each positive's box target came from.

    Args:
        boxes: (K, E), the targets, equal to a ground truth up to rounding.
        labels: (K,), their classes.
        gt_bboxes: (G, E), written as the targets are.
        gt_labels: (G,).

    Returns:
        (K,) int64.
    """
    if len(gt_bboxes) == 0:
        return labels.new_empty(0)
    distance = torch.cdist(boxes, gt_bboxes, p=1)
    # two classes may share a box
    other_class = labels[:, None] != gt_labels
    return distance.masked_fill(other_class, torch.inf).argmin(1)
