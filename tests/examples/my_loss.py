"""A loss of one's own: how much probability two distributions put in different places."""

from torch import Tensor

from ld_plugin.losses import DistillationLoss
from ld_plugin.registry import LOSSES


@LOSSES.register_module()
class TotalVariationLoss(DistillationLoss):
    """Half the absolute difference of two distributions: ``dict(type='TotalVariationLoss')``."""

    def elementwise(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Logits (..., B) of both to the loss of every row, (...)."""
        difference = student.softmax(-1) - teacher.detach().softmax(-1)
        return difference.abs().sum(-1) / 2
