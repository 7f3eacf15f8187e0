"""Heads whose anchors are moved and scaled by encoded offsets: RetinaNet's and the RPN's."""

from collections.abc import Sequence
from typing import ClassVar

from mmdet.structures.bbox import get_box_tensor
from torch import Tensor

from ..context import Assignment
from ..outputs import HeadSpec
from ..recorder import HeadRecorder
from .base import ASSIGNER_METHODS, DenseReader, register_reader


@register_reader('RetinaHead', 'RetinaSepBNHead', 'RPNHead')
class AnchorReader(DenseReader):
    """Reads heads of any number of anchors per cell that use ``AnchorHead``'s own targets.

    Their assigners ignore some priors, and the RPN's sampler all but a few hundred: these have
    label weight 0 and stay valid.
    """

    recorded_methods: ClassVar[tuple[str, ...]] = ASSIGNER_METHODS
    tower_names: ClassVar[tuple[str, ...]] = ('cls_convs', 'reg_convs')

    @property
    def box_dim(self) -> int:
        """What the coder encodes: 4 sides, or the 5 parameters of a rotated box."""
        return self.head.bbox_coder.encode_size

    @property
    def spec(self) -> HeadSpec:
        return self.describe(extras={'matched_gts'})

    def maps(self, outs: tuple) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        return outs

    def decode(self, rows: Tensor, priors: Tensor, strides: Tensor) -> Tensor:
        return get_box_tensor(self.head.bbox_coder.decode(priors, rows))

    def assignment(self, record: HeadRecorder) -> Assignment:
        labels, label_weights, *_ = record.returned['get_targets'][-1]
        return self.assigned(record, labels, label_weights)
