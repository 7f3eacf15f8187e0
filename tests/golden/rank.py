"""Rank mimicking, as MMRazor drafted it."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ld_plugin.dense.outputs import level_rows
from ld_plugin.losses import rank_kl

from .case import Case, Row


class Positives(NamedTuple):
    """Of one image: the anchors, classes and ground truths (K,) of its positives."""

    anchors: Tensor
    labels: Tensor
    group: Tensor
    num_gts: int


def check_rank_mimic(case: Case) -> Iterator[Row]:
    for match in case.names(r'(\w+)_num_anchors'):
        yield from _check_layout(case, f'{match[1]}_')


def _check_layout(case: Case, prefix: str) -> Iterator[Row]:
    num_anchors, levels = int(case[f'{prefix}num_anchors']), range(len(case[f'{prefix}strides']))
    for name in ('anchors', 'feat_sizes'):
        _ = case[prefix + name]  # described by the maps already

    def rows(name: str) -> Tensor:
        """(N, P, C), in float64: the divergence is so small that float32 leaves four digits."""
        maps = [case[f'{prefix}lvl{level}_{name}'] for level in levels]
        return torch.cat([level_rows(m, num_anchors) for m in maps], dim=1).double()

    student, teacher = rows('student_cls').requires_grad_(), rows('teacher_cls')
    positives = [_positives(case, f'{prefix}img{i}_') for i in range(len(student))]
    images = [_image_loss(*image) for image in zip(student, teacher, positives, strict=True)]
    loss = case[f'{prefix}loss_weight'] * torch.stack(images).mean()
    yield from case.rows({'loss': loss, 'loss_per_image': torch.stack(images)}, prefix)
    gradients = torch.autograd.grad(loss, student)[0], rows('grad_student_cls')
    yield Row(
        f'{prefix}lvl*_grad_student_cls',
        *(_averaged_over_ties(g, student.detach(), positives) for g in gradients),
    )


def _positives(case: Case, prefix: str) -> Positives:
    for name in ('gt_bboxes', 'gt_labels', 'inside_flags', 'gt_inds', 'labels'):
        _ = case[prefix + name]  # said by the assignment of all anchors already
    assigned = case[f'{prefix}gt_inds_full']
    anchors = (assigned > 0).nonzero()[:, 0]
    labels = case[f'{prefix}labels_full'][anchors]
    return Positives(anchors, labels, assigned[anchors] - 1, int(case[f'{prefix}num_gts']))


def _image_loss(student: Tensor, teacher: Tensor, positives: Positives) -> Tensor:
    """The draft counts ground truths without positives, and sorts the scores of either model."""
    anchors, labels, group, num_gts = positives
    ranked = [
        _sorted_in_groups(logits[anchors, labels].sigmoid(), group) for logits in (student, teacher)
    ]
    return rank_kl(*ranked, group.sort().values, num_gts).sum() / num_gts


def _sorted_in_groups(values: Tensor, group: Tensor) -> Tensor:
    """Ascending in every group, group by group."""
    values, order = values.sort()
    return values[group[order].argsort(stable=True)]


def _averaged_over_ties(gradient: Tensor, student: Tensor, images: list[Positives]) -> Tensor:
    """Which of several equal scores comes first, and takes which gradient, is up to the sort."""
    gradient = gradient.clone()
    for rows, logits, (anchors, labels, group, _) in zip(gradient, student, images, strict=True):
        key = torch.stack([group.double(), logits[anchors, labels]], dim=1)
        _, tie, number = key.unique(dim=0, return_inverse=True, return_counts=True)
        total = rows.new_zeros(len(number)).index_add(0, tie, rows[anchors, labels])
        rows[anchors, labels] = (total / number)[tie]
    return gradient
