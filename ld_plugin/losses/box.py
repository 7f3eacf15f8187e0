"""A loss between decoded boxes, whichever kind they are of."""

from functools import cache
from typing import Any

import torch
from mmdet.models.losses import GIoULoss
from mmdet.registry import MODELS
from torch import Tensor, nn

from ..dense.boxes import is_rotated
from ..errors import ConfigError
from .base import WeightedLoss

#: losses of MMRotate between rotated boxes; the Gaussian KL divergence is smooth at equal boxes
ROTATED = {
    'iou': dict(type='mmrotate.RotatedIoULoss', mode='linear'),
    'kld': dict(type='mmrotate.GDLoss', loss_type='kld', fun='log1p', tau=1.0, sqrt=False),
    'gwd': dict(type='mmrotate.GDLoss', loss_type='gwd', fun='log1p', tau=1.0),
}

#: in pixels: what sides are taken for if they are shorter or longer
SIDES = 1e-2, 1e5


@MODELS.register_module()
class BoxLoss(WeightedLoss):
    """GIoU loss between horizontal boxes, and between rotated ones a loss of MMRotate.

    ``dict(type='BoxLoss', loss_weight=4)``

    Args:
        loss_weight: Factor of the whole loss.
        rotated: Between rotated boxes: ``'iou'``, one less the overlap, for which mmcv has an
            operator on CUDA devices alone; ``'kld'`` or ``'gwd'``, the KL divergence or the
            Wasserstein distance of Gaussians with the boxes' extent, as ``1 - 1 / (1 + log(1 +
            d))``. By default ``'iou'`` on a CUDA device and ``'kld'`` elsewhere.

    Raises:
        ConfigError: ``rotated`` is none of them, or ``loss_weight`` is negative.
    """

    def __init__(self, loss_weight: float = 1.0, rotated: str | None = None) -> None:
        super().__init__(loss_weight)
        if rotated is not None and rotated not in ROTATED:
            raise ConfigError(f'rotated: found {rotated!r}, expected one of {tuple(ROTATED)}.')
        self.rotated = rotated
        self.horizontal = GIoULoss()

    def forward(self, pred: Tensor, target: Tensor, **kwargs: Any) -> Tensor:
        """As the stock losses.

        Args:
            pred: (K, E), carries the gradient.
            target: (K, E).
            kwargs: ``weight``, ``avg_factor`` and ``reduction_override``.
        """
        if not is_rotated(pred):
            return self.loss_weight * self.horizontal(pred, target, **kwargs)
        kind = self.rotated or ('iou' if pred.is_cuda else 'kld')
        if kind == 'iou':
            return self.loss_weight * _rotated_loss(kind)(pred, target, **kwargs)
        pair = (_with_extent(boxes) for boxes in (pred, target))
        return self.loss_weight * _rotated_loss(kind)(*pair, **kwargs).to(pred.dtype)


def _with_extent(boxes: Tensor) -> Tensor:
    """Boxes whose Gaussians' covariances have determinants that do not round to 0, in float64.

    Untrained heads predict boxes without a width, and float32 knows no long thin ones.
    """
    boxes = boxes.double()
    return torch.cat([boxes[:, :2], boxes[:, 2:4].clamp(*SIDES), boxes[:, 4:]], dim=1)


@cache
def _rotated_loss(kind: str) -> nn.Module:
    return MODELS.build(ROTATED[kind])
