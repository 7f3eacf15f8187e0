"""BCKD: binary classification and IoU-based localization distillation over all priors."""

from collections.abc import Iterator

import torch
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor

from ld_plugin.dense import get_reader
from ld_plugin.dense.outputs import level_rows
from ld_plugin.distillers import BoxDistiller, ClassificationDistiller, Distiller
from ld_plugin.losses import BinaryKDLoss
from ld_plugin.regions import EverywhereRegion, Region
from ld_plugin.regions.geometry import general_instance_scores

from .case import Case, Row
from .ld import HeadBatch


def check_bckd(case: Case) -> Iterator[Row]:
    yield from _check_loss(case)
    batch = HeadBatch(case)
    yield from batch.check_targets()
    yield from _check_stock_losses(case, batch)
    losses = {
        'loss_kd': _losses(batch, _classification),
        'loss_score_kd': _losses(batch, _boxes),
    }
    for name, levels in losses.items():
        yield from case.rows({name: torch.stack(levels)}, 'out_')
        yield from case.gradient_rows(name, sum(levels), batch.maps)
    for level, has_positives in enumerate(batch.has_positives):
        if has_positives:
            yield from case.rows(_intermediates(batch, level), f'lvl{level}_dbg_')
    for name in ('ld', 'ld_vlr', 'kd_neg', 'im', 'score_kd_vlr'):
        # terms of weight 0, which our recipe does not have
        yield from case.rows({f'loss_{name}': torch.zeros(len(batch.strides))}, 'out_')


def _check_loss(case: Case) -> Iterator[Row]:
    student = case['nkd_pred'].requires_grad_()
    given = case['nkd_soft'], case['nkd_weight'], case['nkd_avg_factor']
    for match in case.names(r'nkd_beta([^_]+)_none'):
        loss = BinaryKDLoss(beta=float(match[1]))
        total = loss(student, *given)
        ours = {
            'none': loss.elementwise(student, given[0]),
            'loss': total,
            'grad': torch.autograd.grad(total, student)[0],
        }
        yield from case.rows(ours, f'nkd_beta{match[1]}_')


def _check_stock_losses(case: Case, batch: HeadBatch) -> Iterator[Row]:
    inexact = {'out_loss_bbox_raw', 'out_loss_dfl_raw', 'out_weight_sum'}
    for row in batch.check_stock_losses():
        if row.name in inexact:
            reason = 'not comparable: the reference adds 2e-4 to the weights of the stock box loss'
            yield Row(row.name, reason=reason)
        else:
            yield row


def _intermediates(batch: HeadBatch, level: int) -> dict[str, Tensor]:
    """Of every prior of a level with positives, (N * n_l, ...); boxes in units of the stride."""
    student, teacher = batch.context.student, batch.context.teacher
    logits = [dense.level_class_logits(level).flatten(0, 1) for dense in (student, teacher)]
    # the reference hands priors of the padding over as zeros
    anchors, stride = batch.case[f'lvl{level}_anchors'].flatten(0, 1), batch.strides[level]
    strides = torch.full_like(anchors[:, :1], stride)
    boxes = [
        get_reader(batch.head).decode(
            level_rows(dense.box_maps[level], 1).flatten(0, 1), anchors, strides
        )
        / stride
        for dense in (student, teacher)
    ]
    label_weights = batch.context.assignment.label_weights.split(student.num_level_priors, dim=1)
    return {
        'student_box': boxes[0],
        'teacher_box': boxes[1],
        'giou': bbox_overlaps(*boxes, mode='giou', is_aligned=True),
        'box_weight': general_instance_scores(*logits)[0] * label_weights[level].flatten(),
        'kd_none': BinaryKDLoss().elementwise(*logits),
    }


def _losses(batch: HeadBatch, make) -> list[Tensor]:
    """Per level; the reference leaves levels without positives out."""
    levels = batch.per_level(make, EverywhereRegion())
    return [
        loss * has_positives
        for loss, has_positives in zip(levels, batch.has_positives, strict=True)
    ]


def _classification(region: Region) -> Distiller:
    return ClassificationDistiller(region, BinaryKDLoss(), normalizer='positives')


def _boxes(region: Region) -> Distiller:
    return BoxDistiller(region, BoxDistiller.loss_registry.build(BoxDistiller.defaults['loss']))
