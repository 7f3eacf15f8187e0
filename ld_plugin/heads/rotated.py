"""Rotated heads whose box parameters are distributions, for rotated localization distillation.

Imported only where MMRotate is installed. As in :mod:`ld_plugin.heads.distribution`, nothing but
the form of the predictions differs from the stock heads.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn import Scale
from mmdet.models.dense_heads import FCOSHead, RetinaHead
from mmdet.models.task_modules.coders.base_bbox_coder import BaseBBoxCoder
from mmdet.registry import MODELS as MMDET_MODELS
from mmrotate.models.dense_heads import RotatedFCOSHead
from mmrotate.registry import MODELS
from torch import Tensor

from ..errors import ConfigError
from .arguments import check_range, check_whole
from .distribution import DistributionPointMixin, over_expectations, widened

Range = tuple[float, float]


def expected_values(logits: Tensor, ranges: Sequence[Range]) -> Tensor:
    """Expectations over bins that lie evenly in a range of their own for every parameter.

    Args:
        logits: (..., E, B).
        ranges: Of every parameter, the values of its first and last bin.

    Returns:
        (..., E), in float32: as a matrix product, autocast would round it.
    """
    steps = logits.shape[-1]
    values = torch.stack([torch.linspace(*r, steps, device=logits.device) for r in ranges])
    with torch.autocast(logits.device.type, enabled=False):
        return (logits.float().softmax(-1) * values).sum(-1)


# under both names, with and without 'mmdet.', as configs of MMRotate write the plugin's other types
@MMDET_MODELS.register_module()
@MODELS.register_module()
class DistributionRotatedRetinaHead(RetinaHead):
    """``RetinaHead`` over rotated anchors with distributions (Zheng et al., TPAMI 2023).

    Each of the five encoded offsets is the expectation over reg_max + 1 bins; the stock coder
    decodes them, and the stock losses see them: L1 between offsets, or with
    ``reg_decoded_bbox=True`` a loss between boxes, such as MMRotate's Gaussian distances.

    Over a stock config of MMRotate::

        bbox_head=dict(type='mmdet.DistributionRotatedRetinaHead')

    Args:
        args, kwargs: Of the stock head.
        reg_max: Number of bins less one; published 8.
        delta_range: First and last bin of the offsets of centre and sides; published -2 to 2.
        angle_range: First and last bin of the angle's offset, in radians; published -5 to 2. Where
            the loss is between offsets, those of angle version le135 reach up to 3 pi / 4.

    Raises:
        ConfigError: ``reg_max`` is below 1, a range is empty, or the coder is not one of rotated
            boxes.
    """

    def __init__(
        self,
        *args: Any,
        reg_max: int = 8,
        delta_range: Range = (-2.0, 2.0),
        angle_range: Range = (-5.0, 2.0),
        **kwargs: Any,
    ) -> None:
        check_whole('reg_max', reg_max, 'the number of bins less one')
        check_range('delta_range', delta_range)
        check_range('angle_range', angle_range)
        self.reg_max = reg_max
        self.bin_ranges = (*(tuple(delta_range),) * 4, tuple(angle_range))
        super().__init__(*args, **kwargs)
        if self.bbox_coder.encode_size != len(self.bin_ranges):
            raise ConfigError(
                f'model.bbox_head.bbox_coder: found {type(self.bbox_coder).__name__}, expected a '
                'coder of rotated boxes, such as DeltaXYWHTRBBoxCoder; for horizontal ones there '
                'is DistributionRetinaHead.'
            )

    def _init_layers(self) -> None:
        super()._init_layers()
        self.retina_reg = widened(self.retina_reg, self.reg_max + 1)

    def expectations(self, bbox_preds: Sequence[Tensor]) -> list[Tensor]:
        """Expected offsets.

        Args:
            bbox_preds: Per level, logits (N, A * 5 * B, H, W), channel (a * 5 + offset) * B + bin.

        Returns:
            Per level, (N, A * 5, H, W), as the stock head's regression.
        """
        return [
            self.expected_offsets(level.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            for level in bbox_preds
        ]

    def expected_offsets(self, logits: Tensor) -> Tensor:
        """(..., A * 5) from logits (..., A * 5 * B)."""
        by_offset = logits.unflatten(-1, (-1, len(self.bin_ranges), self.reg_max + 1))
        return expected_values(by_offset, self.bin_ranges).flatten(-2)

    loss_by_feat = over_expectations(RetinaHead.loss_by_feat)
    predict_by_feat = over_expectations(RetinaHead.predict_by_feat)


class ExpectedAngleCoder(BaseBBoxCoder):
    """An angle as the expectation over bins.

    Args:
        num_bins: B.
        angle_range: First and last bin, in radians.
    """

    def __init__(self, num_bins: int, angle_range: Range) -> None:
        super().__init__()
        self.encode_size = num_bins
        self.angle_range = angle_range

    def encode(self, angle_targets: Tensor) -> Tensor:
        """Angles are compared as they are."""
        return angle_targets

    def decode(self, angle_preds: Tensor, keepdim: bool = False) -> Tensor:
        """Angles (..., 1), or (...) without ``keepdim``, from logits (..., B)."""
        angle = expected_values(angle_preds[..., None, :], [self.angle_range])
        return angle if keepdim else angle[..., 0]


@MMDET_MODELS.register_module()
@MODELS.register_module()
class DistributionRotatedFCOSHead(DistributionPointMixin, RotatedFCOSHead):
    """``RotatedFCOSHead`` whose four distances and angle are distributions of equally many bins.

    Distances are expected bins in strides, the angle is an expectation over a range of angles, and
    the stock config's losses see both: focal loss, a rotated box loss and centerness. The angle has
    no loss of its own: that of the boxes teaches it.

    Over a stock config of MMRotate::

        bbox_head=dict(type='mmdet.DistributionRotatedFCOSHead', reg_max=16)

    Args:
        args, kwargs: Of the stock head; its ``angle_coder`` is replaced.
        reg_max: The largest distance in strides; there are reg_max + 1 bins.
        angle_range: First and last bin of the angle, in radians. The default leaves room on both
            sides of every range that boxes are written in.
        loss_bbox: A loss of rotated boxes.

    Raises:
        ConfigError: ``reg_max`` is below 1, the range is empty, ``loss_bbox`` compares coordinates,
            or the config trains horizontal boxes and the angle apart.
    """

    regression_layer = 'conv_reg'
    loss_by_feat = over_expectations(RotatedFCOSHead.loss_by_feat)
    predict_by_feat = over_expectations(RotatedFCOSHead.predict_by_feat)

    def __init__(
        self,
        *args: Any,
        reg_max: int = 16,
        angle_range: Range = (-math.pi, math.pi),
        loss_bbox: Mapping[str, Any] = dict(type='mmrotate.RotatedIoULoss', loss_weight=1.0),
        **kwargs: Any,
    ) -> None:
        check_whole('reg_max', reg_max, 'the largest distance of a box side, in strides')
        check_range('angle_range', angle_range)
        for name in ('use_hbbox_loss', 'loss_angle'):
            if kwargs.get(name):
                raise ConfigError(
                    f'model.bbox_head.{name}: found {kwargs[name]!r}, expected none: '
                    f'{type(self).__name__} learns its angle from the loss of rotated boxes. '
                    'Stand it over a config with use_hbbox_loss=False and loss_angle=None.'
                )
        kwargs['angle_coder'] = dict(
            type=ExpectedAngleCoder, num_bins=reg_max + 1, angle_range=tuple(angle_range)
        )
        super().__init__(*args, reg_max=reg_max, loss_bbox=loss_bbox, **kwargs)

    def forward_single(
        self, x: Tensor, scale: Scale, stride: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Class logits, logits of the distances (N, 4 * B, H, W) and of the angle (N, B, H, W), and
        centerness logits of a level."""
        # of AnchorFreeHead: RotatedFCOSHead's own would make positive distances of the logits
        cls_score, bbox_pred, cls_feat, reg_feat = super(FCOSHead, self).forward_single(x)
        centerness = self.conv_centerness(reg_feat if self.centerness_on_reg else cls_feat)
        angle_pred = self.conv_angle(reg_feat)
        if self.is_scale_angle:
            angle_pred = self.scale_angle(angle_pred)
        return cls_score, scale(bbox_pred).float(), angle_pred.float(), centerness
