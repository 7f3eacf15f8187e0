"""Rank mimicking: the order of the positives of every ground truth."""

from collections.abc import Callable
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor

from ..dense import DenseOutputs, DistillationContext
from ..dense.boxes import in_kind_of, overlaps
from ..dense.positions import mean_counts
from ..errors import ConfigError
from ..losses import RankKLLoss
from ..registry import DISTILLERS
from .base import Distiller
from .schedules import Schedule


@DISTILLERS.register_module()
class RankDistiller(Distiller):
    r"""Rank mimicking, RM (Li et al., AAAI 2022).

    .. math:: \frac{1}{M} \sum_i \mathrm{KL}(r_{T,i} \,\|\, r_{S,i}),
              \quad r_i = \mathrm{softmax}_j(x_{ij})

    over the positives j of each of the M ground truths i that have any; M is averaged over the
    GPUs. Two entries, one on the scores and one on the overlaps, are the paper's best.

    ``dict(type='RankDistiller', on='score', loss=dict(type='RankKLLoss', loss_weight=4))``

    Args:
        loss: How; default KL divergence, weight 4.
        schedule: A factor over training.
        on: What ranks the positives: ``'score'``, the sigmoid score of the ground truth's class;
            ``'logit'``, its logit, which makes sharper ranks; ``'iou'``, the overlap of the decoded
            box with the ground truth.

    Raises:
        ConfigError: ``on`` is none of them.
    """

    reads_of_student = frozenset({'matched_gts'})
    loss_base = RankKLLoss
    defaults: ClassVar = dict(loss=dict(type='RankKLLoss', loss_weight=4.0))

    def __init__(
        self, loss: RankKLLoss, schedule: Schedule | None = None, on: str = 'score'
    ) -> None:
        super().__init__(None, loss, schedule)
        if on not in _RANKED:
            raise ConfigError(f'on: found {on!r}, expected one of {tuple(_RANKED)}.')
        self.on = on

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({'boxes' if self.on == 'iou' else 'class_logits'})

    @property
    def looks_at_positives_alone(self) -> bool:
        return True

    def distill(self, context: DistillationContext) -> Tensor:
        group, num_gts = _gt_of_positives(context)
        ranked = _RANKED[self.on]
        has_positives = torch.zeros(num_gts, device=context.device).index_fill(0, group, 1)
        return self.loss(
            ranked(context.student, context, group),
            ranked(context.teacher, context, group),
            group,
            num_gts,
            avg_factor=mean_counts([has_positives])[0],
        )


def _gt_of_positives(context: DistillationContext) -> tuple[Tensor, int]:
    """(K,), every positive's ground truth among those of the whole batch, and their number."""
    counts = [len(boxes) for boxes in context.gt_bboxes]
    *starts, total = accumulate(counts, initial=0)
    # added image by image, as to copy them from the host would be to wait for the device
    images = zip(context.assignment.matched_gts, starts, strict=True)
    return context.positives.take(torch.stack([gts + start for gts, start in images])), total


def _logits(dense: DenseOutputs, context: DistillationContext, group: Tensor) -> Tensor:
    at = context.positives
    labels = at.take(context.assignment.labels)
    return dense.class_logits(at).gather(1, labels[:, None])[:, 0]


def _scores(dense: DenseOutputs, context: DistillationContext, group: Tensor) -> Tensor:
    return _logits(dense, context, group).float().sigmoid()


def _overlaps(dense: DenseOutputs, context: DistillationContext, group: Tensor) -> Tensor:
    gt_bboxes = torch.cat(list(context.gt_bboxes))
    boxes = dense.boxes(context.positives)
    return overlaps(boxes, in_kind_of(boxes, gt_bboxes)[group])


_RANKED: dict[str, Callable[[DenseOutputs, DistillationContext, Tensor], Tensor]] = {
    'score': _scores,
    'logit': _logits,
    'iou': _overlaps,
}
