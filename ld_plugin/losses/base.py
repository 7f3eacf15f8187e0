"""What every distillation loss shares: a weight, and the reduction of MMDetection's losses."""

from abc import ABC, abstractmethod
from typing import ClassVar

from mmdet.models.losses.utils import weight_reduce_loss
from torch import Tensor, nn

from ..checks import check_not_negative


class WeightedLoss(nn.Module):
    """A loss with a weight.

    Args:
        loss_weight: Factor of the whole loss, at least 0.

    Raises:
        ConfigError: ``loss_weight`` is out of its range.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        check_not_negative(loss_weight=loss_weight)
        self.loss_weight = loss_weight


class DistillationLoss(WeightedLoss, ABC):
    """Base of the losses that compare rows; a subclass says only how one differs from another.

    Attributes:
        rows_are_independent: Whether the loss of a row depends on that row alone, so that many rows
            may be given in pieces.
        channels_are_independent: Whether the loss of several channels is the mean of what each of
            them gives alone.
    """

    rows_are_independent: ClassVar[bool] = True
    channels_are_independent: ClassVar[bool] = False

    @abstractmethod
    def elementwise(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The unweighted loss of every row: (..., D) and (..., D) to (...)."""

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor | None = None,
        avg_factor: Tensor | float | None = None,
    ) -> Tensor:
        """Reduce the rows to a scalar.

        Args:
            student: (..., D), carries the gradient.
            teacher: (..., D), detached inside.
            weight: (...), a factor per row; all 1 if None.
            avg_factor: What the weighted sum is divided by; the number of rows if None.

        Returns:
            A scalar; 0 with a defined gradient when there are no rows and ``avg_factor`` is given.

        Raises:
            ValueError: ``elementwise`` gave something else than one number for every row.
        """
        loss = self.elementwise(student, teacher)
        if loss.shape != student.shape[:-1]:  # which the weights' shape might be broadcast to
            raise ValueError(
                f'{type(self).__name__}.elementwise: found the shape {tuple(loss.shape)} for rows '
                f'of the shape {tuple(student.shape)}, expected {tuple(student.shape[:-1])}: one '
                'number for every row.'
            )
        return self.loss_weight * weight_reduce_loss(loss, weight, 'mean', avg_factor)
