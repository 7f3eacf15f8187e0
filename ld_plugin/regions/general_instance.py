"""General instances: boxes on which teacher and student disagree most."""

import torch
from torch import Tensor

from ..checks import check_count, check_share
from ..dense import DistillationContext
from ..errors import ConfigError
from ..registry import REGIONS
from .base import Region
from .geometry import level_instance_scores, select_top_boxes

SCOPES = ('image', 'batch')


@REGIONS.register_module()
class GIRegion(Region):
    """General instances (Dai et al., CVPR 2021): ``dict(type='GIRegion')``.

    On every level, priors are ranked by how much the class scores of teacher and student differ;
    each brings the box of the model that scores higher, and boxes that overlap a better one drop
    out.

    Args:
        topk: Priors kept per level.
        iou_threshold: A box that overlaps a better one by more is dropped; in (0, 1).
        scope: ``'image'`` keeps ``topk`` per level and image. ``'batch'`` keeps ``topk`` per level
            for the whole batch and lets boxes of different images suppress each other, as the LD
            authors' implementation does; its loss depends on how images are batched.

    Raises:
        ConfigError: A value out of its range.
    """

    reads = frozenset({'class_logits', 'boxes'})

    def __init__(self, topk: int = 10, iou_threshold: float = 0.3, scope: str = 'image') -> None:
        check_count(1, topk=topk)
        check_share(iou_threshold=iou_threshold)
        if scope not in SCOPES:
            raise ConfigError(f'scope: found {scope!r}, expected one of {SCOPES}.')
        self.topk = topk
        self.iou_threshold = iou_threshold
        self.scope = scope

    def weights(self, context: DistillationContext) -> Tensor:
        valid = context.assignment.valid.split(context.student.num_level_priors, dim=1)
        levels = [self._level(context, level, valid[level]) for level in range(len(valid))]
        return torch.cat(levels, dim=1)

    def _level(self, context: DistillationContext, level: int, valid: Tensor) -> Tensor:
        student, teacher = context.student, context.teacher
        found = level_instance_scores(student.class_views[level], teacher.class_views[level])
        scores, teacher_wins = (x.movedim(1, -1).flatten(1) for x in found)
        boxes = torch.where(
            teacher_wins[..., None], teacher.level_boxes(level), student.level_boxes(level)
        )
        scores = scores.masked_fill(~valid, -1)  # differences are at least 0
        if self.scope == 'batch':
            scores, boxes = scores.flatten()[None], boxes.flatten(0, 1)[None]
        kept, _ = select_top_boxes(boxes, scores, self.iou_threshold, self.topk)
        return kept.reshape(valid.shape)
