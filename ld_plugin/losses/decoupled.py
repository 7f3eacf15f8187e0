"""A loss for objects beside another for background."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..registry import LOSSES, build
from .base import DistillationLoss

_PUBLISHED = dict(
    type='DistributionKLLoss', temperature=1.0, loss_weight=2.0, class_reduction='sum'
)


@LOSSES.register_module()
class DecoupledLoss(nn.Module):
    """Objects and background, each with its own loss (DeFeat; Guo et al., CVPR 2021).

    ``dict(type='DecoupledLoss',
    objects=dict(type='DistributionKLLoss', temperature=1, loss_weight=2, class_reduction='sum'),
    background=dict(type='DistributionKLLoss', temperature=1, loss_weight=2,
    class_reduction='sum'))``, the default, is as published.

    Args:
        objects: Config of the loss of rows that show objects; as published if None.
        background: Config of the loss of the others; as published if None.

    Raises:
        ConfigError: A loss cannot be built, or compares something else than rows.
    """

    def __init__(
        self,
        objects: Mapping[str, Any] | None = None,
        background: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.objects, self.background = (
            build(LOSSES, _PUBLISHED if cfg is None else cfg, name, DistillationLoss)
            for name, cfg in (('objects', objects), ('background', background))
        )

    def forward(
        self, student: Tensor, teacher: Tensor, object_weight: Tensor, background_weight: Tensor
    ) -> Tensor:
        """The sum of both.

        Args:
            student: (..., D), carries the gradient.
            teacher: (..., D), detached inside.
            object_weight: (...), 0 outside objects. To average each part over rows of its own, give
                masks divided by :func:`ld_plugin.dense.positions.mean_counts` of them.
            background_weight: (...), 0 outside background.
        """
        return self.objects(student, teacher, object_weight, avg_factor=1.0) + self.background(
            student, teacher, background_weight, avg_factor=1.0
        )
