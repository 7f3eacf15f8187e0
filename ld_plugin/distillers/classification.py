"""Classification distillation: the class logits."""

from typing import ClassVar

from torch import Tensor

from ..dense import DistillationContext
from ..registry import DISTILLERS
from .base import Distiller


@DISTILLERS.register_module()
class ClassificationDistiller(Distiller):
    """Softened class logits, averaged over the region on every level (Zheng et al., CVPR 2022).

    The levels' means are added. Each position counts with its label weight, so priors that the
    classification loss ignores do not count here either.

    ``dict(type='ClassificationDistiller', region=dict(type='MainRegion'),
    loss=dict(type='DistributionKLLoss', temperature=2, loss_weight=10))``

    Args:
        region: Where; default the main region.
        loss: How; default KL divergence at temperature 2, weight 10.
        schedule: A factor over training.
    """

    reads = frozenset({'class_logits'})
    defaults: ClassVar = dict(
        region=dict(type='MainRegion'),
        loss=dict(type='DistributionKLLoss', temperature=2.0, loss_weight=10.0),
    )

    def distill(self, context: DistillationContext) -> Tensor:
        at = context.select(self.region).priors
        return self.loss(
            context.student.class_logits(at),
            context.teacher.class_logits(at),
            weight=at.take(context.assignment.label_weights) / at.mean_level_count,
            avg_factor=1.0,
        )
