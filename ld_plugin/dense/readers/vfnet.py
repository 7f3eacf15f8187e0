"""VarifocalNet: points, and distances that are predicted twice."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..context import Assignment
from ..outputs import HeadSpec
from ..recorder import HeadRecorder
from .base import register_reader
from .fcos import FCOSReader


@register_reader('VFNetHead')
class VFNetReader(FCOSReader):
    """Reads ``VFNetHead`` (Zhang et al., CVPR 2021): boxes are the refined ones.

    Whether ATSS or FCOS assigned its labels, its targets have FCOS's form, in pixels. Its varifocal
    loss takes no label weights and counts padding as background.
    """

    @property
    def spec(self) -> HeadSpec:
        return self.describe(extras={'matched_gts'})

    def maps(self, outs: tuple) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        return outs[0], outs[-1]  # in training mode the first prediction stands between

    def quality(self, outs: tuple) -> Sequence[Tensor]:
        return ()

    def assignment(self, record: HeadRecorder) -> Assignment:
        labels, weights, targets, _ = record.returned['get_targets'][-1]
        if weights is None or self.head.use_vfl:
            weights = torch.ones_like(torch.cat(labels), dtype=torch.float32)
        by_level = weights.split([len(level) for level in labels])
        return self.assigned(record, labels, by_level, self.matched(record, labels, targets))
