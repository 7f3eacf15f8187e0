"""Stock heads whose box sides are distributions, so that localization distillation reaches them.

A side is predicted as B = reg_max + 1 logits and read as the expected bin, the distance of the side
from the prior's centre in strides, as in GFL (Li et al., NeurIPS 2020). Nothing else differs from
the stock head: its own losses see the expected distances, without the distribution focal loss.
Zheng et al. (TPAMI 2023) distil RetinaNet, FCOS and ATSS in this form.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ClassVar

import torch
from mmcv.cnn import Scale
from mmdet.models.dense_heads import ATSSHead, FCOSHead, RetinaHead
from mmdet.models.dense_heads.gfl_head import Integral
from mmdet.models.task_modules.coders import DistancePointBBoxCoder
from mmdet.registry import MODELS, TASK_UTILS
from torch import Tensor, nn

from ..errors import ConfigError
from ..registry import type_name
from .arguments import check_whole

#: losses of coordinates' differences, which would be differences in pixels here
COORDINATE_LOSSES = {'L1Loss', 'SmoothL1Loss', 'BalancedL1Loss', 'MSELoss', 'GHMR'}


class CentreDistanceCoder(DistancePointBBoxCoder):
    """Decodes distances from the centres of anchors, in pixels."""

    def decode(self, anchors: Tensor, distances: Tensor, max_shape: Any = None) -> Tensor:
        """Boxes (K, 4) from anchors (K, 4) and distances (K, 4); clipped to ``max_shape``."""
        return super().decode((anchors[:, :2] + anchors[:, 2:]) / 2, distances, max_shape)


def widened(layer: nn.Conv2d, factor: int) -> nn.Conv2d:
    """A new convolution like ``layer`` with ``factor`` times as many outputs."""
    return nn.Conv2d(
        layer.in_channels, layer.out_channels * factor, layer.kernel_size, padding=layer.padding
    )


def over_expectations(stock: Callable) -> Callable:
    """A head's loss or prediction, fed with the expectations of its distributions."""

    @wraps(stock)  # recorders read the names of its arguments
    def with_expectations(
        self: 'DistributionMixin',
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        return stock(self, cls_scores, self.expectations(bbox_preds), *args, **kwargs)

    return with_expectations


class DistributionMixin:
    """Makes the regression branch of a stock head predict distributions.

    Args:
        reg_max: The largest distance in strides; there are reg_max + 1 bins.
        loss_bbox: As in the stock head, but on boxes in pixels: one of the IoU losses.
        args, kwargs: Of the stock head.

    Attributes:
        regression_layer: Name of the stock head's last convolution of the branch.

    Raises:
        ConfigError: ``reg_max`` is below 1, or ``loss_bbox`` compares coordinates.
    """

    regression_layer: ClassVar[str]

    def __init__(
        self,
        *args: Any,
        reg_max: int = 16,
        loss_bbox: Mapping[str, Any] = dict(type='GIoULoss', loss_weight=2.0),
        **kwargs: Any,
    ) -> None:
        check_whole('reg_max', reg_max, 'the largest distance of a box side, in strides')
        name = type_name(loss_bbox['type'])
        if name in COORDINATE_LOSSES:
            raise ConfigError(
                f'model.bbox_head.loss_bbox: found {name}, which compares coordinates, but '
                f'{type(self).__name__} compares boxes in pixels. Expected an IoU loss, such as '
                "dict(type='GIoULoss', loss_weight=2.0, _delete_=True)."
            )
        self.reg_max = reg_max
        super().__init__(*args, loss_bbox=loss_bbox, **kwargs)
        self.integral = Integral(reg_max)

    def _init_layers(self) -> None:
        super()._init_layers()
        stock = getattr(self, self.regression_layer)
        setattr(self, self.regression_layer, widened(stock, self.reg_max + 1))

    @property
    def units(self) -> list[float]:
        """What a bin is in the stock head's boxes, level by level: the stride, in pixels."""
        return [stride[0] for stride in self.prior_generator.strides]

    def expectations(self, bbox_preds: Sequence[Tensor]) -> list[Tensor]:
        """Expected distances of the sides.

        Args:
            bbox_preds: Per level, logits (N, A * 4 * B, H, W), channel (a * 4 + side) * B + bin.

        Returns:
            Per level, (N, A * 4, H, W) in :attr:`units`.
        """
        return [
            self._expected_bins(level) * unit
            for level, unit in zip(bbox_preds, self.units, strict=True)
        ]

    def _expected_bins(self, logits: Tensor) -> Tensor:
        images, _, height, width = logits.shape
        # the expectation is a matrix product, which autocast would round to a tenth of a bin
        with torch.autocast(logits.device.type, enabled=False):
            bins = self.integral(logits.float().permute(0, 2, 3, 1))
        return bins.reshape(images, height, width, -1).permute(0, 3, 1, 2)


class DistributionAnchorMixin(DistributionMixin):
    """For heads over anchors: distances from their centres replace the encoded offsets.

    Whatever ``bbox_coder`` a stock config names is replaced, and losses see decoded boxes.

    Raises:
        ConfigError: It is a coder of rotated boxes, which have more parameters than sides.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        coder = TASK_UTILS.build(kwargs.get('bbox_coder') or dict(type=CentreDistanceCoder))
        if coder.encode_size != CentreDistanceCoder.encode_size:
            raise ConfigError(
                f'model.bbox_head.bbox_coder: found {type(coder).__name__}, a coder of rotated '
                f'boxes, but {type(self).__name__} predicts horizontal ones. Of rotated boxes '
                'DistributionRotatedRetinaHead and DistributionRotatedFCOSHead predict '
                'distributions.'
            )
        kwargs.update(bbox_coder=dict(type=CentreDistanceCoder), reg_decoded_bbox=True)
        super().__init__(*args, **kwargs)


class DistributionPointMixin(DistributionMixin):
    """For heads over points, with or without ``norm_on_bbox``."""

    @property
    def units(self) -> list[float]:
        """As the stock forward: normalised boxes are in strides while training, else in pixels."""
        if self.norm_on_bbox and self.training:
            return [1.0 for _ in self.prior_generator.strides]
        return super().units


@MODELS.register_module()
class DistributionRetinaHead(DistributionAnchorMixin, RetinaHead):
    """``RetinaHead`` with distributions; focal loss and GIoU loss.

    Over a stock config::

        bbox_head=dict(
            type='DistributionRetinaHead',
            reg_max=16,
            loss_bbox=dict(type='GIoULoss', loss_weight=2.0, _delete_=True))

    Args:
        reg_max: The largest distance in strides; there are reg_max + 1 bins.
        loss_bbox: On boxes in pixels: one of the IoU losses; default GIoU, weight 2.
        args, kwargs: Of the stock head.

    Raises:
        ConfigError: ``reg_max`` is below 1, or ``loss_bbox`` compares coordinates.
    """

    regression_layer = 'retina_reg'
    loss_by_feat = over_expectations(RetinaHead.loss_by_feat)
    predict_by_feat = over_expectations(RetinaHead.predict_by_feat)


@MODELS.register_module()
class DistributionATSSHead(DistributionAnchorMixin, ATSSHead):
    """``ATSSHead`` with distributions; focal loss, GIoU loss and centerness.

    Over a stock config::

        bbox_head=dict(type='DistributionATSSHead', reg_max=16)

    Args:
        reg_max: The largest distance in strides; there are reg_max + 1 bins.
        loss_bbox: On boxes in pixels: one of the IoU losses; default GIoU, weight 2.
        args, kwargs: Of the stock head.

    Raises:
        ConfigError: ``reg_max`` is below 1, or ``loss_bbox`` compares coordinates.
    """

    regression_layer = 'atss_reg'
    loss_by_feat = over_expectations(ATSSHead.loss_by_feat)
    predict_by_feat = over_expectations(ATSSHead.predict_by_feat)


@MODELS.register_module()
class DistributionFCOSHead(DistributionPointMixin, FCOSHead):
    """``FCOSHead`` with distributions; focal loss, the stock config's IoU loss and centerness.

    Over a stock config, with or without ``norm_on_bbox``::

        bbox_head=dict(type='DistributionFCOSHead', reg_max=16)

    Args:
        reg_max: The largest distance in strides; there are reg_max + 1 bins.
        loss_bbox: On boxes in pixels: one of the IoU losses; default GIoU, weight 2.
        args, kwargs: Of the stock head.

    Raises:
        ConfigError: ``reg_max`` is below 1, or ``loss_bbox`` compares coordinates.
    """

    regression_layer = 'conv_reg'
    loss_by_feat = over_expectations(FCOSHead.loss_by_feat)
    predict_by_feat = over_expectations(FCOSHead.predict_by_feat)

    def forward_single(self, x: Tensor, scale: Scale, stride: int) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits, distribution logits (N, 4 * B, H, W) and centerness logits of a level."""
        # of AnchorFreeHead: FCOSHead's own would make positive distances of the logits
        cls_score, bbox_pred, cls_feat, reg_feat = super(FCOSHead, self).forward_single(x)
        centerness = self.conv_centerness(reg_feat if self.centerness_on_reg else cls_feat)
        return cls_score, scale(bbox_pred).float(), centerness
