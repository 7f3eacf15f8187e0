"""KL divergence between the distributions of student and teacher."""

from torch import Tensor

from ..errors import ConfigError
from ..registry import LOSSES
from .base import DistillationLoss
from .functional import distribution_kl


@LOSSES.register_module()
class DistributionKLLoss(DistillationLoss):
    """:func:`~ld_plugin.losses.distribution_kl` as a loss.

    ``dict(type='DistributionKLLoss', temperature=10, loss_weight=0.25)``

    Args:
        temperature: tau > 0; larger values soften both distributions. Published: 10 for box sides,
            2 for classes.
        loss_weight: Factor of the whole loss. Published: 0.25 for box sides, 10 for classes.

    Raises:
        ConfigError: ``temperature`` is not above 0, or ``loss_weight`` is negative.
    """

    def __init__(self, temperature: float = 10.0, loss_weight: float = 0.25) -> None:
        super().__init__(loss_weight)
        if not temperature > 0:  # refuses NaN, too
            raise ConfigError(f'temperature: found {temperature}, expected a number above 0.')
        self.temperature = temperature

    def elementwise(self, student: Tensor, teacher: Tensor) -> Tensor:
        return distribution_kl(student, teacher, self.temperature)
