"""Divergence between the sigmoid scores of student and teacher."""

from torch import Tensor

from ..checks import check_not_negative
from ..errors import ConfigError
from ..registry import LOSSES
from .base import DistillationLoss
from .functional import modulated_binary_cross_entropy


@LOSSES.register_module()
class BinaryKDLoss(DistillationLoss):
    """:func:`~ld_plugin.losses.modulated_binary_cross_entropy`, summed over the classes.

    ``dict(type='BinaryKDLoss', beta=1, loss_weight=1)`` is the binary classification distillation
    loss of BCKD, and the quality focal loss of CrossKD.

    Args:
        beta: Exponent of the score difference: 0 for plain binary cross entropy, or at least 1
            (between them its slope is infinite where the scores are equal). Published: 1.
        loss_weight: Factor of the whole loss. Published: 1.

    Raises:
        ConfigError: ``beta`` is out of its range, or ``loss_weight`` is out of its range.
    """

    def __init__(self, beta: float = 1.0, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight)
        check_not_negative(beta=beta)
        if 0 < beta < 1:
            raise ConfigError(f'beta: found {beta}, expected 0 or at least 1.')
        self.beta = beta

    def elementwise(self, student: Tensor, teacher: Tensor) -> Tensor:
        return modulated_binary_cross_entropy(student, teacher, self.beta).sum(dim=-1)
