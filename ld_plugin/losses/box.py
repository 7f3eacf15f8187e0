"""A loss between decoded boxes, whichever kind they are of."""

from collections.abc import Callable
from functools import cache

import torch
from mmdet.models.losses import GIoULoss
from mmdet.models.losses.utils import weight_reduce_loss
from mmdet.registry import MODELS
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..dense.boxes import is_rotated, overlaps
from ..errors import ConfigError
from .base import WeightedLoss

#: losses of MMRotate between rotated boxes; the Gaussian KL divergence is smooth at equal boxes
GAUSSIAN = {
    'kld': dict(type='mmrotate.GDLoss', loss_type='kld', fun='log1p', tau=1.0, sqrt=False),
    'gwd': dict(type='mmrotate.GDLoss', loss_type='gwd', fun='log1p', tau=1.0),
}
ROTATED = ('iou', *GAUSSIAN)

#: in pixels: what sides are taken for if they are shorter or longer
SIDES = 1e-2, 1e5

_PAIRS = 1 << 16  # of rotated boxes at once: the gradient of one pair's overlap takes 1.6 KB


@MODELS.register_module()
class BoxLoss(WeightedLoss):
    """GIoU loss between horizontal boxes, and between rotated ones IoU or a distance of Gaussians.

    ``dict(type='BoxLoss', loss_weight=4)``

    Args:
        loss_weight: Factor of the whole loss.
        rotated: Between rotated boxes: ``'iou'``, one less the overlap; ``'kld'`` or ``'gwd'``, the
            KL divergence or the Wasserstein distance of Gaussians with the boxes' extent, as
            ``1 - 1 / (1 + log(1 + d))``. By default ``'iou'`` on a CUDA device and ``'kld'``
            elsewhere: on a processor overlaps take six times as long.

    Raises:
        ConfigError: ``rotated`` is none of them, or ``loss_weight`` is out of its range.
    """

    def __init__(self, loss_weight: float = 1.0, rotated: str | None = None) -> None:
        super().__init__(loss_weight)
        if rotated is not None and rotated not in ROTATED:
            raise ConfigError(f'rotated: found {rotated!r}, expected one of {ROTATED}.')
        self.rotated = rotated
        self.horizontal = GIoULoss()

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: Tensor | float | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """As the stock losses.

        Args:
            pred: (K, E), carries the gradient.
            target: (K, E).
            weight: (K,), a factor per pair; all 1 if None.
            avg_factor: What the weighted sum is divided by; K if None.
            reduction_override: ``'none'``, ``'mean'`` or ``'sum'``; ``'mean'`` if None.
        """
        how = weight, avg_factor, reduction_override
        if not is_rotated(pred):
            return self.loss_weight * self.horizontal(pred, target, *how)
        kind = self.rotated or ('iou' if pred.is_cuda else 'kld')
        compare = _overlap_loss if kind == 'iou' else _gaussian_loss(kind)
        return self.loss_weight * compare(pred, target, *how).to(pred.dtype)


def _overlap_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None,
    avg_factor: Tensor | float | None,
    reduction: str | None,
) -> Tensor:
    # not mmcv's operator: it is for CUDA devices alone and finds nothing in common between some
    # equal boxes
    pairs = zip(pred.float().split(_PAIRS), target.float().split(_PAIRS), strict=True)
    rows = 1 - torch.cat([_overlaps(*pair) for pair in pairs])
    return weight_reduce_loss(rows, weight, reduction or 'mean', avg_factor)


def _overlaps(pred: Tensor, target: Tensor) -> Tensor:
    """Of some of the pairs, computed again in the backward pass instead of kept."""
    return checkpoint(overlaps, pred, target, use_reentrant=False, preserve_rng_state=False)


@cache
def _gaussian_loss(kind: str) -> Callable[..., Tensor]:
    loss = MODELS.build(GAUSSIAN[kind])
    return lambda pred, target, *how: loss(with_extent(pred), with_extent(target), *how)


def with_extent(boxes: Tensor) -> Tensor:
    """Boxes (K, E) that losses can compare, whatever an untrained head predicts.

    Far from objects a head whose distances may be negative predicts boxes inside out, on which the
    overlaps of the stock losses are unbounded, and one whose distances are clamped boxes without
    extent, on which some divide by 0; exponentials of offsets make sides whose product float32
    does not hold. Sides are not shorter here than a hundredth of a pixel, and neither coordinates
    of horizontal boxes nor sides of rotated ones larger than 1e5 pixels. Rotated boxes are given in
    float64, in which the determinants of long thin Gaussians' covariances do not round to 0.
    """
    if is_rotated(boxes):
        boxes = boxes.double()
        return torch.cat([boxes[:, :2], boxes[:, 2:4].clamp(*SIDES), boxes[:, 4:]], dim=1)
    shortest, longest = SIDES
    first, second = boxes.clamp(-longest, longest).split(2, dim=-1)
    return torch.cat([first, torch.maximum(first + shortest, second)], dim=-1)
