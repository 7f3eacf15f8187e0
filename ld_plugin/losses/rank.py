"""Divergence between the rankings that student and teacher give to the same positions."""

from torch import Tensor

from ..registry import LOSSES
from .base import WeightedLoss
from .functional import rank_kl


@LOSSES.register_module()
class RankKLLoss(WeightedLoss):
    """:func:`~ld_plugin.losses.rank_kl`, summed over groups.

    ``dict(type='RankKLLoss', loss_weight=4)``

    Args:
        loss_weight: Factor of the whole loss. Published: 4 (Li et al., AAAI 2022).

    Raises:
        ConfigError: ``loss_weight`` is out of its range.
    """

    def __init__(self, loss_weight: float = 4.0) -> None:
        super().__init__(loss_weight)

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        group: Tensor,
        num_groups: int,
        avg_factor: Tensor | float,
    ) -> Tensor:
        """The sum over groups, divided by ``avg_factor``; 0 with a gradient if there are none.

        Args:
            student: (K,), carries the gradient.
            teacher: (K,), detached inside.
            group: (K,) int64 in 0..num_groups-1.
            num_groups: How many groups there are, those without members included.
            avg_factor: What the sum is divided by.
        """
        return self.loss_weight * rank_kl(student, teacher, group, num_groups).sum() / avg_factor
