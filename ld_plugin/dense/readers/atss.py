"""ATSS: one anchor per cell, encoded offsets, and a branch for centerness."""

from collections.abc import Sequence
from typing import ClassVar

from mmdet.structures.bbox import get_box_tensor
from torch import Tensor

from ..context import Assignment
from ..outputs import HeadSpec
from ..recorder import HeadRecorder
from .base import ASSIGNER_METHODS, DenseReader, register_reader


@register_reader('ATSSHead')
class ATSSReader(DenseReader):
    """Reads ``ATSSHead`` (Zhang et al., CVPR 2020)."""

    recorded_methods: ClassVar[tuple[str, ...]] = ASSIGNER_METHODS
    tower_names: ClassVar[tuple[str, ...]] = ('cls_convs', 'reg_convs')
    rated_quality: ClassVar[str] = 'centerness'

    @property
    def box_dim(self) -> int:
        """What the coder encodes: 4 sides, or the 5 parameters of a rotated box."""
        return self.head.bbox_coder.encode_size

    @property
    def spec(self) -> HeadSpec:
        return self.describe(extras={'quality', 'matched_gts'})

    def maps(self, outs: tuple) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        class_maps, box_maps, _ = outs
        return class_maps, box_maps

    def quality(self, outs: tuple) -> Sequence[Tensor]:
        return outs[2]

    def decode(self, rows: Tensor, priors: Tensor, strides: Tensor) -> Tensor:
        return get_box_tensor(self.head.bbox_coder.decode(priors, rows))

    def assignment(self, record: HeadRecorder) -> Assignment:
        _, labels, label_weights, *_ = record.returned['get_targets'][-1]
        return self.assigned(record, labels, label_weights)
