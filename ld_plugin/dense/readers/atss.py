"""ATSS: one anchor per cell, encoded offsets, and a branch for centerness."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from ..context import Assignment
from ..outputs import HeadSpec
from ..recorder import HeadRecorder
from .anchor import AnchorReader
from .base import register_reader


@register_reader('ATSSHead')
class ATSSReader(AnchorReader):
    """Reads ``ATSSHead`` (Zhang et al., CVPR 2020)."""

    rated_quality: ClassVar[str] = 'centerness'

    @property
    def spec(self) -> HeadSpec:
        return self.describe(extras={'quality', 'matched_gts'})

    def maps(self, outs: tuple) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        class_maps, box_maps, _ = outs
        return class_maps, box_maps

    def quality(self, outs: tuple) -> Sequence[Tensor]:
        return outs[2]

    def assignment(self, record: HeadRecorder) -> Assignment:
        _, labels, label_weights, *_ = record.returned['get_targets'][-1]
        return self.assigned(record, labels, label_weights)
