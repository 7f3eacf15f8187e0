"""MMRotate's heads with a branch for the angle; its other heads read like their horizontal kin.

Rotated RetinaNet and rotated ATSS need no reader of their own: their coders decode five parameters.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from mmdet.structures.bbox import BaseBoxes, get_box_tensor
from torch import Tensor

from ..boxes import upright, without_angle
from ..context import Assignment
from ..outputs import HeadSpec
from ..recorder import HeadRecorder
from .anchor import AnchorReader
from .base import register_reader
from .fcos import FCOSReader
from .points import RotatedPointReader
from .rtmdet import RTMDetReader


@register_reader('AngleBranchRetinaHead')
class AngleBranchRetinaReader(AnchorReader):
    """Reads ``AngleBranchRetinaHead``: circular smooth labels (CSL) and phase shifting (PSC).

    Its regression maps hold, for every anchor, the five encoded offsets and then the angle as its
    coder encodes it. The angle that the offsets say is not used. That of circular smooth labels
    carries no gradient, as in the stock head: it is the best of several bins.
    """

    def maps(self, outs: tuple) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        class_maps, box_maps, angle_maps = outs
        joined = [
            torch.cat([x.unflatten(1, (anchors, -1)) for x in (box_map, angle_map)], dim=2)
            for box_map, angle_map, anchors in zip(
                box_maps, angle_maps, self.head.prior_generator.num_base_priors, strict=True
            )
        ]
        return class_maps, [level.flatten(1, 2) for level in joined]

    def decode(self, rows: Tensor, priors: Tensor, strides: Tensor) -> Tensor:
        offsets, encoded = rows[:, : self.box_dim], rows[:, self.box_dim :]
        angle = self.head.angle_coder.decode(encoded, keepdim=True)
        if self.head.use_encoded_angle:
            return super().decode(torch.cat([offsets[:, :-1], angle], dim=1), priors, strides)
        return torch.cat([super().decode(offsets, priors, strides)[:, :-1], angle], dim=1)


@register_reader('OrientedRPNHead')
class OrientedRPNReader(AnchorReader):
    """Reads ``OrientedRPNHead``: six offsets, of upright anchors.

    Its coder has no gradient, so regions can look at its boxes, but they cannot learn.
    """

    box_dim = 5

    @property
    def spec(self) -> HeadSpec:
        return replace(super().spec, boxes_have_gradient=False)

    def priors(self, sizes: Sequence[Any], device: torch.device) -> Tensor:
        return upright(super().priors(sizes, device))

    def decode(self, rows: Tensor, priors: Tensor, strides: Tensor) -> Tensor:
        return super().decode(rows.detach(), without_angle(priors), strides)


@register_reader('RotatedFCOSHead')
class RotatedFCOSReader(RotatedPointReader, FCOSReader):
    """Reads ``RotatedFCOSHead`` with any angle coder, trained by rotated or horizontal boxes."""

    def maps(self, outs: tuple) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        class_maps, box_maps, angle_maps, centerness_maps = outs
        _, box_maps = super().maps((class_maps, box_maps, centerness_maps))
        return class_maps, self.join(box_maps, angle_maps)

    def quality(self, outs: tuple) -> Sequence[Tensor]:
        return outs[3]

    def assignment(self, record: HeadRecorder) -> Assignment:
        labels, distances, angles = record.returned['get_targets'][-1]
        units = [x if self.head.norm_on_bbox else 1 for x, _ in self.head.prior_generator.strides]
        targets = [
            torch.cat([level * unit, angle], dim=-1)
            for level, angle, unit in zip(distances, angles, units, strict=True)
        ]
        weights = [torch.ones_like(level, dtype=torch.float32) for level in labels]
        return self.assigned(record, labels, weights, self.matched(record, labels, targets))

    def target_boxes(self, targets: Tensor, priors: Tensor) -> Tensor:
        return self.decode_parts(targets[:, :4], targets[:, 4:], priors)

    def gt_boxes(self, boxes: BaseBoxes) -> Tensor:
        return get_box_tensor(boxes.regularize_boxes(self.head.angle_version))


@register_reader('RotatedRTMDetHead')
class RotatedRTMDetReader(RotatedPointReader, RTMDetReader):
    """Reads ``RotatedRTMDetHead`` and ``RotatedRTMDetSepBNHead``."""

    def maps(self, outs: tuple) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        class_maps, box_maps, angle_maps = outs
        return class_maps, self.join(box_maps, angle_maps)
