"""Valuable localization region: priors near an object that the assigner left out."""

from torch import Tensor

from ..checks import check_count, check_flag, check_share
from ..dense import DistillationContext
from ..errors import ConfigError
from ..registry import REGIONS
from .base import Region, of_all_images
from .geometry import OVERLAPS, valuable_localization_region


@REGIONS.register_module()
class ValuableLocalizationRegion(Region):
    """Priors that overlap an object, but less than positives do (Zheng et al., CVPR 2022, Alg. 1).

    ``dict(type='ValuableLocalizationRegion')``. Localization distillation, and that of classes with
    ``weights='region'``, count each prior with its IoU; the other distillers count all alike.

    Args:
        alpha: Lower bound of the overlap, as a share of the assigner's threshold; in (0, 1).
        topk: Nearest priors per level that the threshold is taken from (ATSS uses 9). Of levels
            that the teacher lacks, as with ``image_scale``, none are.
        overlap: ``'iof'`` compares intersection over the prior's area, less the centre distance, as
            the published implementation does; ``'diou'`` is the paper's text.
        exclude_positives: Leave the student's positives out. The published implementation keeps
            those that qualify for anchor-free-like heads (GFL) and drops them for RetinaNet.
        rotated: Compare rotated boxes as they are; otherwise, as published, horizontal boxes of the
            same centre, width and height (those of the box written with an angle above 0 and up
            to 90 degrees). Where priors are horizontal, the smallest horizontal boxes around
            objects are compared, whatever this says.

    Raises:
        ConfigError: A value out of its range.
    """

    ld_divisor = 16.0

    def __init__(
        self,
        alpha: float = 0.25,
        topk: int = 9,
        overlap: str = 'iof',
        exclude_positives: bool = False,
        rotated: bool = False,
    ) -> None:
        check_share(alpha=alpha)
        check_count(2, topk=topk)
        check_flag(exclude_positives=exclude_positives, rotated=rotated)
        if overlap not in OVERLAPS:
            raise ConfigError(f'overlap: found {overlap!r}, expected one of {OVERLAPS}.')
        self.alpha = alpha
        self.topk = topk
        self.overlap = overlap
        self.exclude_positives = exclude_positives
        self.rotated = rotated

    def weights(self, context: DistillationContext) -> Tensor:
        weights = of_all_images(
            valuable_localization_region,
            context,
            self.rotated,
            num_level_priors=context.student.num_level_priors,
            alpha=self.alpha,
            topk=self.topk,
            overlap=self.overlap,
        )
        if self.exclude_positives:
            weights = weights.masked_fill(context.assignment.positive, 0)
        return weights
