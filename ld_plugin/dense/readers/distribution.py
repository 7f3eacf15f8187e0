"""Stock heads made to predict distributions; see :mod:`ld_plugin.heads`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from mmdet.structures.bbox import distance2bbox
from torch import Tensor

from ..outputs import HeadSpec
from .anchor import AnchorReader
from .atss import ATSSReader
from .base import register_reader
from .fcos import FCOSReader
from .points import centres


class DistributionReader:
    """The part that differs from the stock head's reader: bins count strides from the centre."""

    has_distributions: ClassVar[bool] = True

    @property
    def spec(self) -> HeadSpec:
        return replace(super().spec, num_bins=self.head.reg_max + 1)

    def maps(self, outs: tuple) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        return outs[:2]

    def decode(self, rows: Tensor, priors: Tensor, strides: Tensor) -> Tensor:
        return distance2bbox(centres(priors), self.head.integral(rows) * strides)


@register_reader('DistributionRetinaHead')
class DistributionRetinaReader(DistributionReader, AnchorReader):
    """Reads ``DistributionRetinaHead``."""


@register_reader('DistributionATSSHead')
class DistributionATSSReader(DistributionReader, ATSSReader):
    """Reads ``DistributionATSSHead``."""


@register_reader('DistributionFCOSHead')
class DistributionFCOSReader(DistributionReader, FCOSReader):
    """Reads ``DistributionFCOSHead``."""
