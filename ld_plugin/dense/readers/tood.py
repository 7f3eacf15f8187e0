"""TOOD: aligned classes and boxes, which its forward returns as probabilities and decoded boxes."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..outputs import HeadSpec
from .atss import ATSSReader
from .base import register_reader

#: probabilities below are taken for it; its logit is -27.6
SMALLEST_PROBABILITY = 1e-12


@register_reader('TOODHead')
class TOODReader(ATSSReader):
    """Reads ``TOODHead`` (Feng et al., ICCV 2021), anchor-free and anchor-based, in both phases.

    Its boxes have been decoded and resampled, and are divided by the stride.
    """

    float32_methods: ClassVar[tuple[str, ...]] = ('deform_sampling',)

    @property
    def spec(self) -> HeadSpec:
        return self.describe(extras={'matched_gts'})

    def maps(self, outs: tuple) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        probabilities, box_maps = outs
        return [logits(level) for level in probabilities], box_maps

    def quality(self, outs: tuple) -> Sequence[Tensor]:
        return ()

    def decode(self, rows: Tensor, priors: Tensor, strides: Tensor) -> Tensor:
        return rows * strides


def logits(probabilities: Tensor) -> Tensor:
    """The logits of probabilities in [0, 1], in at least float32, finite even of 0 and 1."""
    largest = 1 - torch.finfo(probabilities.dtype).eps / 2  # the largest number below 1
    wide = torch.promote_types(probabilities.dtype, torch.float32)
    p = probabilities.to(wide).clamp(min=SMALLEST_PROBABILITY, max=largest)
    return p.log() - (-p).log1p()
