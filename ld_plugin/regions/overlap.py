"""Priors that overlap an object, positives and the valuable localization region together."""

from torch import Tensor

from ..checks import check_count, check_flag, check_share
from ..dense import DistillationContext
from ..registry import REGIONS
from .base import Region, of_all_images
from .geometry import overlap_region


@REGIONS.register_module()
class OverlapRegion(Region):
    """Region of rotated localization distillation (Zheng et al., TPAMI 2023).

    Priors whose IoU with an object is at least a share of the assigner's threshold, without an
    upper bound. Localization distillation, and that of classes with ``weights='region'``, count
    each with that IoU; the other distillers count all alike.

    ``dict(type='OverlapRegion')``

    Args:
        alpha: Lower bound of the IoU, as a share of the assigner's threshold; in (0, 1).
        topk: Nearest priors per level that the threshold is taken from (ATSS uses 9).
        rotated: Compare rotated boxes as they are; otherwise, as published, horizontal boxes of the
            same centre, width and height (those of the box written with an angle above 0 and up
            to 90 degrees). Where priors are horizontal, the smallest horizontal boxes around
            objects are compared, whatever this says.

    Raises:
        ConfigError: A value out of its range.
    """

    def __init__(self, alpha: float = 0.25, topk: int = 9, rotated: bool = False) -> None:
        check_share(alpha=alpha)
        check_count(2, topk=topk)
        check_flag(rotated=rotated)
        self.alpha = alpha
        self.topk = topk
        self.rotated = rotated

    def weights(self, context: DistillationContext) -> Tensor:
        return of_all_images(
            overlap_region,
            context,
            self.rotated,
            num_level_priors=context.student.num_level_priors,
            alpha=self.alpha,
            topk=self.topk,
        )
