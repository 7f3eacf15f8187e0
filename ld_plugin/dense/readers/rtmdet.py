"""RTMDet: points, and distances in pixels."""

from collections.abc import Sequence
from typing import ClassVar

from mmdet.structures.bbox import distance2bbox
from torch import Tensor

from ..boxes import centres
from ..context import Assignment
from ..outputs import HeadSpec
from ..recorder import HeadRecorder
from .base import ASSIGNER_METHODS, register_reader
from .points import PointReader


@register_reader('RTMDetHead')
class RTMDetReader(PointReader):
    """Reads ``RTMDetHead`` and ``RTMDetSepBNHead`` (Lyu et al., 2022).

    An objectness branch, which is off in the stock configs, is part of its class logits.
    """

    recorded_methods: ClassVar[tuple[str, ...]] = ASSIGNER_METHODS
    tower_names: ClassVar[tuple[str, ...]] = ('cls_convs', 'reg_convs')

    @property
    def spec(self) -> HeadSpec:
        return self.describe(extras={'matched_gts'})

    def maps(self, outs: tuple) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        return outs

    def decode(self, rows: Tensor, priors: Tensor, strides: Tensor) -> Tensor:
        return distance2bbox(centres(priors), rows)

    def assignment(self, record: HeadRecorder) -> Assignment:
        _, labels, label_weights, *_ = record.returned['get_targets'][-1]
        return self.assigned(record, labels, label_weights)
