"""Stock heads made to predict distributions; see :mod:`ld_plugin.heads`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from mmdet.structures.bbox import distance2bbox
from torch import Tensor

from ..boxes import centres
from ..outputs import HeadSpec, OffsetCoding
from .anchor import AnchorReader
from .atss import ATSSReader
from .base import register_reader
from .fcos import FCOSReader
from .rotated import RotatedFCOSReader


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


@register_reader('DistributionRotatedRetinaHead')
class DistributionRotatedRetinaReader(AnchorReader):
    """Reads ``DistributionRotatedRetinaHead``: bins are values of the encoded offsets."""

    has_distributions: ClassVar[bool] = True

    @property
    def spec(self) -> HeadSpec:
        return replace(
            super().spec,
            num_bins=self.head.reg_max + 1,
            bin_ranges=self.head.bin_ranges,
            offset_coding=self._offset_coding,
        )

    @property
    def _offset_coding(self) -> OffsetCoding:
        coder = self.head.bbox_coder  # that of horizontal anchors has no proj_xy
        return OffsetCoding(
            means=tuple(getattr(coder, 'means', ())),
            stds=tuple(getattr(coder, 'stds', ())),
            norm_factor=getattr(coder, 'norm_factor', None),
            edge_swap=getattr(coder, 'edge_swap', False),
            proj_xy=getattr(coder, 'proj_xy', False),
            angle_version=getattr(self.head.prior_generator, 'angle_version', None),
        )

    def decode(self, rows: Tensor, priors: Tensor, strides: Tensor) -> Tensor:
        return super().decode(self.head.expected_offsets(rows), priors, strides)


@register_reader('DistributionRotatedFCOSHead')
class DistributionRotatedFCOSReader(RotatedFCOSReader):
    """Reads ``DistributionRotatedFCOSHead``: distances and angle have equally many bins."""

    has_distributions: ClassVar[bool] = True

    @property
    def spec(self) -> HeadSpec:
        bins, angle_range = self.head.reg_max + 1, self.head.angle_coder.angle_range
        ranges = (*((0.0, float(self.head.reg_max)),) * 4, angle_range)
        return replace(super().spec, num_bins=bins, bin_ranges=ranges)

    def maps(self, outs: tuple) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        class_maps, box_maps, angle_maps, _ = outs
        return class_maps, self.join(box_maps, angle_maps)

    def decode(self, rows: Tensor, priors: Tensor, strides: Tensor) -> Tensor:
        bins = self.head.reg_max + 1  # not of the spec, which would be described anew each time
        sides, angle = rows.split([4 * bins, bins], dim=1)
        distances = self.head.integral(sides) * strides
        return self.decode_parts(
            distances, self.head.angle_coder.decode(angle, keepdim=True), priors
        )
