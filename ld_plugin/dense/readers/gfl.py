"""GFL: one anchor per cell, quality-focal class scores, a distribution for every box side."""

from collections.abc import Sequence
from typing import ClassVar

from mmdet.structures.bbox import distance2bbox
from torch import Tensor

from ..context import Assignment
from ..outputs import HeadSpec
from ..recorder import HeadRecorder
from .base import ASSIGNER_METHODS, DenseReader, register_reader


@register_reader('GFLHead', 'GFLV2Head')
class GFLReader(DenseReader):
    """Reads ``GFLHead`` (Li et al., NeurIPS 2020) and that of GFL v2 (Li et al., CVPR 2021).

    Bins count strides from the anchor's centre.
    """

    has_distributions: ClassVar[bool] = True
    recorded_methods: ClassVar[tuple[str, ...]] = ASSIGNER_METHODS
    tower_names: ClassVar[tuple[str, ...]] = ('cls_convs', 'reg_convs')

    @property
    def spec(self) -> HeadSpec:
        return self.describe(num_bins=self.head.reg_max + 1, extras={'matched_gts'})

    def maps(self, outs: tuple) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        return outs

    def decode(self, rows: Tensor, priors: Tensor, strides: Tensor) -> Tensor:
        distances = self.head.integral(rows) * strides
        return distance2bbox(self.head.anchor_center(priors), distances)

    def assignment(self, record: HeadRecorder) -> Assignment:
        _, labels, label_weights, *_ = record.returned['get_targets'][-1]
        return self.assigned(record, labels, label_weights)
