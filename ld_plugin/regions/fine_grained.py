"""Fine-grained imitation region: priors that overlap an object nearly as well as the best one."""

from torch import Tensor

from ..checks import check_flag, check_share
from ..dense import DistillationContext
from ..registry import REGIONS
from .base import Region, of_all_images
from .geometry import fine_grained_region


@REGIONS.register_module()
class FineGrainedRegion(Region):
    """Priors whose IoU is above a share of the object's best IoU (Wang et al., CVPR 2019).

    ``dict(type='FineGrainedRegion')``.

    Args:
        share: Of the best IoU over all levels; in (0, 1).
        rotated: Compare rotated boxes as they are; otherwise horizontal boxes of the same centre,
            width and height (those of the box written with an angle above 0 and up to 90
            degrees). Where priors are horizontal, the smallest horizontal boxes around objects
            are compared, whatever this says.

    Raises:
        ConfigError: A value out of its range.
    """

    def __init__(self, share: float = 0.5, rotated: bool = False) -> None:
        check_share(share=share)
        check_flag(rotated=rotated)
        self.share = share
        self.rotated = rotated

    def weights(self, context: DistillationContext) -> Tensor:
        return of_all_images(fine_grained_region, context, self.rotated, share=self.share)
