"""Cells that ground truths cover, each on the levels that are responsible for it."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..checks import check_above_zero
from ..dense import DistillationContext
from ..errors import ConfigError
from ..registry import REGIONS
from .base import Region
from .geometry import covered_cells, level_by_size

LEVELS = ('size', 'assigner')


@REGIONS.register_module()
class GTCellsRegion(Region):
    """Object cells of DeFeat (Guo et al., CVPR 2021): ``dict(type='GTCellsRegion')``.

    :class:`InsideGTRegion` takes ground truths on every level; this one only on their own.

    Args:
        levels: ``'size'`` puts every ground truth on one level by its size, as published;
            ``'assigner'`` on those where the student's assigner gave it positives.
        finest_scale: For ``'size'``: ground truths of up to twice that side, in pixels, go on the
            finest level that both models have; if None, 14 times that level's stride, which is
            FPN's rule and the published 56 at stride 4.

    Raises:
        ConfigError: A value out of its range, or ``finest_scale`` where sizes are not looked at.
    """

    def __init__(self, levels: str = 'size', finest_scale: float | None = None) -> None:
        if levels not in LEVELS:
            raise ConfigError(f'levels: found {levels!r}, expected one of {LEVELS}.')
        if finest_scale is not None:
            check_above_zero(finest_scale=finest_scale)
            if levels != 'size':
                raise ConfigError(
                    f'finest_scale: found {finest_scale} beside levels={levels!r}, which does not '
                    "look at sizes. Leave it out, or set levels='size'."
                )
        self.levels = levels
        self.finest_scale = finest_scale

    @property
    def reads_of_student(self) -> frozenset[str]:
        return frozenset({'matched_gts'} if self.levels == 'assigner' else ())

    def weights(self, context: DistillationContext) -> Tensor:
        student = context.student
        # all images together, with empty boxes where one has fewer than another
        gt_bboxes = pad_sequence(list(context.gt_bboxes), batch_first=True)
        if self.levels == 'size':
            responsible = self._by_size(context, gt_bboxes)
        else:
            responsible = _by_assigner(context, gt_bboxes.shape[1])
        parts = []
        for level, ((height, width, anchors), stride) in enumerate(
            zip(student.level_shapes, student.spec.strides, strict=True)
        ):
            # likewise in place of those that belong elsewhere
            here = gt_bboxes * responsible[..., level, None]
            cells = covered_cells(here, (height, width), stride)
            parts.append(cells[..., None].expand(-1, -1, -1, anchors).flatten(1))
        return torch.cat(parts, dim=1) & context.assignment.valid

    def _by_size(self, context: DistillationContext, gt_bboxes: Tensor) -> Tensor:
        """(N, G, L) bool, of (N, G, E)."""
        strides = context.student.spec.strides
        finest_scale = self.finest_scale or 14 * strides[0][0]
        level = level_by_size(gt_bboxes, len(strides), finest_scale)
        return level[..., None] == torch.arange(len(strides), device=level.device)


def _by_assigner(context: DistillationContext, num_gts: int) -> Tensor:
    """(N, G, L) bool."""
    counts, matched = context.student.num_level_priors, context.assignment.matched_gts
    # one row more takes the priors without a ground truth, whose index is -1
    responsible = matched.new_zeros(len(matched), num_gts + 1, len(counts), dtype=torch.bool)
    for level, part in enumerate((matched % (num_gts + 1)).split(counts, dim=1)):
        responsible[..., level].scatter_(1, part, True)
    return responsible[:, :num_gts]
