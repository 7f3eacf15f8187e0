"""Distances between features of student and teacher."""

from torch import Tensor

from ..registry import LOSSES
from .base import DistillationLoss
from .functional import feature_squared_error


@LOSSES.register_module()
class FeatureMSELoss(DistillationLoss):
    """Mean squared error over channels: ``dict(type='FeatureMSELoss', loss_weight=2)``.

    Args:
        loss_weight: Factor of the whole loss. The LD authors' imitation losses use 2.
    """

    def __init__(self, loss_weight: float = 2.0) -> None:
        super().__init__(loss_weight)

    def elementwise(self, student: Tensor, teacher: Tensor) -> Tensor:
        return feature_squared_error(student, teacher)
