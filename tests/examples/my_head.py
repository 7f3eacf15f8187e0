"""A head of one's own, and the reader that tells the plugin what it predicts."""

import torch
from mmdet.models.dense_heads import AnchorHead
from mmdet.registry import MODELS
from torch import Tensor

from ld_plugin.dense import Assignment, DenseReader, HeadRecorder, HeadSpec, register_reader


@MODELS.register_module()
class LinearHead(AnchorHead):
    """Class scores and box offsets of several anchors per cell, each by one convolution."""


@register_reader('LinearHead')
class LinearHeadReader(DenseReader):
    @property
    def spec(self) -> HeadSpec:
        return HeadSpec(
            name='LinearHead',
            num_classes=self.head.num_classes,
            strides=tuple(self.head.prior_generator.strides),
            num_base_priors=tuple(self.head.prior_generator.num_base_priors),
            num_bins=None,  # it predicts boxes directly, so localization distillation is refused
            box_dim=4,
            feature_channels=self.head.in_channels,
        )

    def maps(self, outs: tuple) -> tuple:
        return outs  # class maps and box maps, a list over the levels each

    def decode(self, rows: Tensor, priors: Tensor, strides: Tensor) -> Tensor:
        return self.head.bbox_coder.decode(priors, rows)

    def assignment(self, record: HeadRecorder) -> Assignment:
        labels, weights, *_ = record.returned['get_targets'][-1]
        labels, weights = torch.cat(labels, 1), torch.cat(weights, 1)
        return Assignment(labels, weights, valid=weights > 0, num_classes=self.head.num_classes)
