"""YOLOX: points, encoded boxes, and a branch for objectness."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from ..boxes import centres
from ..context import Assignment
from ..outputs import HeadSpec
from ..recorder import HeadRecorder
from .base import register_reader
from .points import PointReader

#: the logarithm of a side in strides, which untrained heads exceed up to infinity
_LARGEST = 10.0


@register_reader('YOLOXHead')
class YOLOXReader(PointReader):
    """Reads ``YOLOXHead`` (Ge et al., 2021).

    Its classification loss sees positives alone, so all others have label weight 0: what its class
    branch says there is rated by the objectness, which alone learns what is background.
    """

    recorded_methods: ClassVar[tuple[str, ...]] = (
        'loss_by_feat',
        '_get_targets_single',
        'sampler.sample',
    )
    tower_names: ClassVar[tuple[str, ...]] = ('multi_level_cls_convs', 'multi_level_reg_convs')
    rated_quality: ClassVar[str] = 'objectness'

    @property
    def spec(self) -> HeadSpec:
        spec = self.describe(extras={'quality', 'matched_gts'})
        return replace(spec, rates_objects_alone=True)

    def maps(self, outs: tuple) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        class_maps, box_maps, _ = outs
        return class_maps, box_maps

    def quality(self, outs: tuple) -> Sequence[Tensor]:
        return outs[2]

    def decode(self, rows: Tensor, priors: Tensor, strides: Tensor) -> Tensor:
        centre = rows[:, :2] * strides + centres(priors)
        half = rows[:, 2:].clamp(max=_LARGEST).exp() * strides / 2
        return torch.cat([centre - half, centre + half], dim=1)

    def assignment(self, record: HeadRecorder) -> Assignment:
        positive = torch.stack([found[0] for found in record.returned['_get_targets_single']])
        # an image without ground truth does not reach the sampler
        samples = iter(record.returned['sampler.sample'])
        calls = record.arguments['_get_targets_single']
        sampled = [next(samples) if len(call['gt_instances']) else None for call in calls]
        labels = torch.full_like(positive, self.head.num_classes, dtype=torch.int64)
        for image, found in zip(labels, sampled, strict=True):
            if found is not None:
                image[found.pos_inds] = found.pos_gt_labels
        none = labels.new_empty(0)
        return self.assigned(
            record,
            [labels],
            [positive.float()],
            [none if found is None else found.pos_assigned_gt_inds for found in sampled],
        )
