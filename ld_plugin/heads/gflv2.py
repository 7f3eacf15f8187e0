"""GFL v2: the shape of the box distributions tells how good a box is."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import Scale
from mmdet.models.dense_heads import GFLHead
from mmdet.registry import MODELS
from torch import Tensor, nn

from ..errors import ConfigError
from .arguments import check_whole


@MODELS.register_module()
class GFLV2Head(GFLHead):
    """``GFLHead`` with the distribution-guided quality predictor (Li et al., CVPR 2021).

    Per side of a box, the largest probabilities of its distribution and their mean say how flat it
    is; a small network turns these statistics into a quality. Class score times quality is the
    joint score, which quality focal loss trains. The head returns the joint score's *logit*, so
    losses, prediction and distillation are GFL's own; the values are the paper's, which works on
    the probabilities. Keys of ``state_dict()`` are those of the authors' code.

    Over a stock GFL config::

        bbox_head=dict(type='GFLV2Head')

    Args:
        num_classes: C.
        in_channels: Channels of the neck's levels.
        reg_max: The largest distance of a box side in strides.
        reg_topk: How many of a side's probabilities are looked at.
        reg_channels: Hidden channels of the small network.
        loss_cls: Quality focal loss of logits.
        kwargs: As in ``GFLHead``.

    Raises:
        ConfigError: A number is below 1 or above the number of bins, or ``loss_cls`` expects
            probabilities.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        reg_max: int = 16,
        reg_topk: int = 4,
        reg_channels: int = 64,
        loss_cls: Mapping[str, Any] = dict(
            type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0
        ),
        **kwargs: Any,
    ) -> None:
        check_whole('reg_max', reg_max, 'the largest distance of a box side, in strides')
        check_whole('reg_topk', reg_topk, 'how many probabilities of a side tell its quality')
        check_whole('reg_channels', reg_channels, 'hidden channels')
        if reg_topk > reg_max + 1:
            raise ConfigError(
                f'model.bbox_head.reg_topk: found {reg_topk}, expected at most the number of bins, '
                f'reg_max + 1 = {reg_max + 1}.'
            )
        if loss_cls.get('activated'):
            raise ConfigError(
                'model.bbox_head.loss_cls.activated: found True, expected False: GFLV2Head returns '
                'the logits of its joint scores.'
            )
        self.reg_topk = reg_topk
        self.reg_channels = reg_channels
        super().__init__(num_classes, in_channels, reg_max=reg_max, loss_cls=loss_cls, **kwargs)

    def _init_layers(self) -> None:
        super()._init_layers()
        self.reg_conf = nn.Sequential(
            nn.Conv2d(4 * (self.reg_topk + 1), self.reg_channels, 1),
            nn.ReLU(),
            nn.Conv2d(self.reg_channels, 1, 1),
        )

    def forward_single(self, x: Tensor, scale: Scale) -> tuple[Tensor, Tensor]:
        """Logits of the joint scores (N, C, H, W) and of the distributions (N, 4 * B, H, W)."""
        cls_score, bbox_pred = super().forward_single(x, scale)
        statistics = distribution_statistics(bbox_pred, self.reg_max, self.reg_topk)
        # GFLHead gives the distributions in float32 even where its weights are not
        quality = self.reg_conf(statistics.to(self.reg_conf[0].weight.dtype))
        return joint_logits(cls_score.float(), quality.float()), bbox_pred


def distribution_statistics(logits: Tensor, reg_max: int, topk: int) -> Tensor:
    """How peaked the distributions are, the paper's equation 4.

    Args:
        logits: (N, 4 * (reg_max + 1), H, W).
        reg_max: Number of bins less one.
        topk: How many probabilities.

    Returns:
        (N, 4 * (topk + 1), H, W): per side the largest probabilities, descending, and their mean.
    """
    probabilities = logits.unflatten(1, (4, reg_max + 1)).softmax(dim=2)
    largest = probabilities.topk(topk, dim=2).values
    return torch.cat([largest, largest.mean(dim=2, keepdim=True)], dim=2).flatten(1, 2)


def joint_logits(classes: Tensor, quality: Tensor) -> Tensor:
    r"""The logit of :math:`\sigma(a) \, \sigma(b)`, exact where either is nearly 0 or 1.

    .. math:: -\log(e^{-a} + e^{-b} (1 + e^{-a}))

    Args:
        classes: a, (N, C, H, W).
        quality: b, (N, 1, H, W).
    """
    return -torch.logaddexp(-classes, F.softplus(-classes) - quality)
