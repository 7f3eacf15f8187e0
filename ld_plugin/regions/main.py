"""Main region: the positives of the student's own assigner."""

from torch import Tensor

from ..dense import DistillationContext
from ..registry import REGIONS
from .base import Region, Selection


@REGIONS.register_module()
class MainRegion(Region):
    """The student's positives (Zheng et al., CVPR 2022, sec. 3.3): ``dict(type='MainRegion')``.

    Localization distillation weights each by the student's highest class score, as GFL weights its
    box loss.
    """

    def weights(self, context: DistillationContext) -> Tensor:
        return context.assignment.positive

    def position_weight(self, context: DistillationContext, selection: Selection) -> Tensor:
        logits = context.student.class_logits(selection.priors).detach().float()
        return logits.max(dim=-1).values.sigmoid()
