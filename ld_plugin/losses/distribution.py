"""KL divergence between the distributions of student and teacher."""

from torch import Tensor

from ..checks import check_above_zero
from ..errors import ConfigError
from ..registry import LOSSES
from .base import DistillationLoss
from .functional import distribution_kl


@LOSSES.register_module()
class DistributionKLLoss(DistillationLoss):
    """:func:`~ld_plugin.losses.distribution_kl` as a loss.

    ``dict(type='DistributionKLLoss', temperature=10, loss_weight=0.25)``

    CrossKD (Wang et al., CVPR 2024) adds the bins up instead of averaging them:
    ``dict(type='DistributionKLLoss', temperature=1, loss_weight=4, class_reduction='sum')``

    Args:
        temperature: tau > 0; larger values soften both distributions. Published: 10 for box sides,
            2 for classes.
        loss_weight: Factor of the whole loss. Published: 0.25 for box sides, 10 for classes.
        class_reduction: ``'mean'`` or ``'sum'`` over the bins or classes.

    Raises:
        ConfigError: ``temperature`` or ``loss_weight`` is out of its range, or
            ``class_reduction`` is neither.
    """

    def __init__(
        self,
        temperature: float = 10.0,
        loss_weight: float = 0.25,
        class_reduction: str = 'mean',
    ) -> None:
        super().__init__(loss_weight)
        check_above_zero(temperature=temperature)
        if class_reduction not in ('mean', 'sum'):
            raise ConfigError(
                f"class_reduction: found {class_reduction!r}, expected 'mean' or 'sum'."
            )
        self.temperature = temperature
        self.class_reduction = class_reduction

    def elementwise(self, student: Tensor, teacher: Tensor) -> Tensor:
        mean = distribution_kl(student, teacher, self.temperature)
        return mean * student.shape[-1] if self.class_reduction == 'sum' else mean
