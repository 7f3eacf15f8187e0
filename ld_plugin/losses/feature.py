"""Distances between features of student and teacher."""

from torch import Tensor

from ..registry import LOSSES
from .base import DistillationLoss
from .functional import feature_squared_error, pearson_feature_error


@LOSSES.register_module()
class FeatureMSELoss(DistillationLoss):
    """Mean squared error over channels: ``dict(type='FeatureMSELoss', loss_weight=2)``.

    Args:
        loss_weight: Factor of the whole loss. The LD authors' imitation losses use 2.

    Raises:
        ConfigError: ``loss_weight`` is out of its range.
    """

    def __init__(self, loss_weight: float = 2.0) -> None:
        super().__init__(loss_weight)

    def elementwise(self, student: Tensor, teacher: Tensor) -> Tensor:
        return feature_squared_error(student, teacher)


@LOSSES.register_module()
class PearsonFeatureLoss(DistillationLoss):
    """PKD (Cao et al., NeurIPS 2022): ``dict(type='PearsonFeatureLoss', loss_weight=6)``.

    One minus the Pearson correlation of every channel: magnitudes do not matter, so features of
    unlike detectors can be compared. See :func:`~ld_plugin.losses.pearson_feature_error`.

    As published, means and deviations are those of all rows given at once, here of one level of one
    process's batch. Other images therefore change what an image contributes, and halves of a batch
    do not average to the loss of the whole; the order of the images is of no account, and repeating
    them changes the loss only through the unbiased deviation, by a share of 1 / (2 K) for K rows.

    Args:
        loss_weight: Factor of the whole loss. Of the CrossKD authors: 6.

    Raises:
        ConfigError: ``loss_weight`` is out of its range.
    """

    rows_are_independent = False
    channels_are_independent = True

    def __init__(self, loss_weight: float = 6.0) -> None:
        super().__init__(loss_weight)

    def elementwise(self, student: Tensor, teacher: Tensor) -> Tensor:
        return pearson_feature_error(student, teacher)
