"""Localization distillation: the distributions of the box sides."""

from typing import ClassVar

from torch import Tensor

from ..checks import check_above_zero
from ..dense import DistillationContext
from ..errors import ConfigError
from ..losses import DistillationLoss
from ..regions import Region
from ..registry import DISTILLERS
from .base import Distiller
from .schedules import Schedule

NORMALIZERS = ('images', 'level_positions')


@DISTILLERS.register_module()
class LocalizationDistiller(Distiller):
    r"""Localization distillation, LD (Zheng et al., CVPR 2022; TPAMI 2023).

    .. math:: \frac{R}{N D} \sum_{i \in \text{region}} w_i \sum_e \mathrm{LD}(z_{S,ie}, z_{T,ie})

    over the N images of the batch, with the region's weights w. The published loss is the plain
    sum divided by the constant D, which grows with the images per GPU; it was tuned at R of them.
    With the factor R / N the loss has the published value at the published batch size, and does not
    change when the same images are split or repeated.

    ``dict(type='LocalizationDistiller', region=dict(type='MainRegion'),
    loss=dict(type='DistributionKLLoss', temperature=10, loss_weight=0.25))``

    Rotated localization distillation divides by the region's positions on each level instead::

        dict(type='LocalizationDistiller', region=dict(type='OverlapRegion'),
             loss=dict(type='DistributionKLLoss', temperature=5, loss_weight=10),
             normalizer='level_positions')

    Args:
        region: Where; default the main region.
        loss: How; default KL divergence at temperature 10, weight 0.25.
        schedule: A factor over training.
        divisor: D; if None the region's published constant: 16 for the valuable localization region
            and for all negatives, which stand in for it, and 4 for the others.
        reference_images: R, images per GPU at which the loss weight was chosen; if None the
            published 3.
        normalizer: What the sum over the region is divided by: ``'images'``, N D / R, or
            ``'level_positions'``, on each level the region's positions there, for which neither D
            nor R has a meaning.

    Raises:
        ConfigError: ``divisor`` or ``reference_images`` is not above 0, or is given where it has no
            meaning, or ``normalizer`` is neither.
    """

    reads = frozenset({'distributions'})
    defaults: ClassVar = dict(
        region=dict(type='MainRegion'),
        loss=dict(type='DistributionKLLoss', temperature=10.0, loss_weight=0.25),
    )

    def __init__(
        self,
        region: Region,
        loss: DistillationLoss,
        schedule: Schedule | None = None,
        divisor: float | None = None,
        reference_images: float | None = None,
        normalizer: str = 'images',
    ) -> None:
        super().__init__(region, loss, schedule)
        if normalizer not in NORMALIZERS:
            raise ConfigError(f'normalizer: found {normalizer!r}, expected one of {NORMALIZERS}.')
        for name, value in (('divisor', divisor), ('reference_images', reference_images)):
            if value is None:
                continue
            check_above_zero(**{name: value})
            if normalizer != 'images':
                raise ConfigError(
                    f'{name}: found {value} beside normalizer={normalizer!r}, which divides by the '
                    "region's positions alone. Leave it out, or set normalizer='images'."
                )
        self.divisor = region.ld_divisor if divisor is None else divisor
        self.reference_images = 3 if reference_images is None else reference_images
        self.normalizer = normalizer

    def distill(self, context: DistillationContext) -> Tensor:
        selection = context.select(self.region)
        at = selection.priors
        per_level = self.normalizer == 'level_positions'
        divisor = (
            at.mean_level_count
            if per_level
            else self.divisor * context.mean_num_images / self.reference_images
        )
        weight = self.region.position_weight(context, selection) / divisor
        return self.loss(
            context.student.distribution_logits(at),
            context.teacher.distribution_logits(at),
            weight=weight[:, None],
            avg_factor=1.0,
        )
