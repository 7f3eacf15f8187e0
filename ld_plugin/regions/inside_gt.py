"""Priors inside a ground-truth box."""

import torch
from torch import Tensor

from ..dense import DistillationContext
from ..registry import REGIONS
from .base import Region
from .geometry import inside_gt_region


@REGIONS.register_module()
class InsideGTRegion(Region):
    """Priors whose centre lies strictly inside any ground-truth box, on every level.

    The region of feature imitation that the published localization distillation (Zheng et al.,
    TPAMI 2023) compares with: ``dict(type='InsideGTRegion')``.
    """

    reads_of_student = frozenset()

    def weights(self, context: DistillationContext) -> Tensor:
        return torch.stack(
            [
                inside_gt_region(context.student.priors, gt_bboxes, valid)
                for gt_bboxes, valid in self.per_image(context)
            ]
        )
