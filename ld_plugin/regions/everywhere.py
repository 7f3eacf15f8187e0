"""All priors."""

from torch import Tensor

from ..checks import check_flag
from ..dense import DistillationContext
from ..registry import REGIONS
from .base import Region
from .vlr import ValuableLocalizationRegion


@REGIONS.register_module()
class EverywhereRegion(Region):
    """All priors of the image, not of its padding: ``dict(type='EverywhereRegion')``.

    Args:
        exclude_positives: Leave the student's positives out; the rest is what the LD authors take
            for the valuable localization region of point-based heads, and localization
            distillation divides by that region's constant.

    Raises:
        ConfigError: ``exclude_positives`` is neither True nor False.
    """

    whole_levels = True

    def __init__(self, exclude_positives: bool = False) -> None:
        check_flag(exclude_positives=exclude_positives)
        self.exclude_positives = exclude_positives

    @property
    def ld_divisor(self) -> float:
        of_all = super().ld_divisor
        return ValuableLocalizationRegion.ld_divisor if self.exclude_positives else of_all

    @property
    def reads_of_student(self) -> frozenset[str]:
        return frozenset({'priors'} if self.exclude_positives else ())

    def weights(self, context: DistillationContext) -> Tensor:
        valid = context.assignment.valid
        return valid & ~context.assignment.positive if self.exclude_positives else valid
