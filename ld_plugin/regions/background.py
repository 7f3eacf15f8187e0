"""The complement of :class:`~ld_plugin.regions.InsideGTRegion`."""

from torch import Tensor

from ..dense import DistillationContext
from ..registry import REGIONS
from .inside_gt import InsideGTRegion


@REGIONS.register_module()
class BackgroundRegion(InsideGTRegion):
    """Priors of the image (not of its padding) whose centre lies in no ground-truth box.

    ``dict(type='BackgroundRegion')``; with :class:`InsideGTRegion` it makes decoupled imitation
    (Guo et al., CVPR 2021).
    """

    whole_levels = True

    def weights(self, context: DistillationContext) -> Tensor:
        return context.assignment.valid & ~super().weights(context)
