"""PAA: ATSS's predictions, labels assigned by the likelihood of their losses."""

from typing import ClassVar

import torch
from torch import Tensor

from ..context import Assignment
from ..recorder import HeadRecorder
from .atss import ATSSReader
from .base import register_reader


@register_reader('PAAHead')
class PAAReader(ATSSReader):
    """Reads ``PAAHead`` (Kim and Lee, ECCV 2020); its quality branch rates the IoU.

    ``get_targets`` names candidates, per image; ``paa_reassign`` makes some of them background.
    """

    recorded_methods: ClassVar[tuple[str, ...]] = ('loss_by_feat', 'get_targets', 'paa_reassign')
    rated_quality: ClassVar[str] = 'IoU'

    def assignment(self, record: HeadRecorder) -> Assignment:
        *_, candidates, candidate_gts = record.returned['get_targets'][-1]
        labels, label_weights, *_ = zip(*record.returned['paa_reassign'], strict=True)
        kept = [
            gts[self._is_object(image[at])]
            for image, at, gts in zip(labels, candidates, candidate_gts, strict=True)
        ]
        return self.assigned(record, [torch.stack(labels)], [torch.stack(label_weights)], kept)

    def _is_object(self, labels: Tensor) -> Tensor:
        return (labels < self.head.num_classes).nonzero().squeeze(1)
