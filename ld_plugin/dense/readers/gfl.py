"""GFL: one anchor per cell, quality-focal class scores, a distribution for every box side."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from mmdet.structures.bbox import distance2bbox
from torch import Tensor

from ..context import Assignment
from ..outputs import HeadSpec
from ..recorder import HeadRecorder
from .base import DenseReader, register_reader


@register_reader('GFLHead')
class GFLReader(DenseReader):
    """Reads ``GFLHead`` (Li et al., NeurIPS 2020): bins count strides from the anchor's centre."""

    has_distributions: ClassVar[bool] = True
    recorded_methods: ClassVar[tuple[str, ...]] = ('get_targets', 'sampler.sample')

    @property
    def spec(self) -> HeadSpec:
        head = self.head
        return HeadSpec(
            name=type(head).__name__,
            num_classes=head.num_classes,
            strides=tuple(tuple(stride) for stride in head.prior_generator.strides),
            num_base_priors=tuple(head.prior_generator.num_base_priors),
            num_bins=head.reg_max + 1,
            box_dim=4,
            feature_channels=head.in_channels,
            extras=frozenset({'matched_gts'}),
        )

    def maps(self, outs: tuple) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        return outs

    def decode(self, rows: Tensor, priors: Tensor, strides: Tensor) -> Tensor:
        distances = self.head.integral(rows) * strides
        return distance2bbox(self.head.anchor_center(priors), distances)

    def assignment(self, record: HeadRecorder) -> Assignment:
        _, labels, label_weights, *_ = record.returned['get_targets'][-1]
        label_weights = torch.cat(label_weights, dim=1)
        return Assignment(
            labels=torch.cat(labels, dim=1),
            label_weights=label_weights,
            valid=label_weights > 0,  # its assigner ignores nothing: weight 0 means padding
            num_classes=self.head.num_classes,
            positive_gts=[
                sampled.pos_assigned_gt_inds for sampled in record.returned['sampler.sample']
            ],
        )
