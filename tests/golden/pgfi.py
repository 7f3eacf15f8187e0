"""Prediction-guided feature imitation, as MMRazor drafted it."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ld_plugin.dense.outputs import anchor_view
from ld_plugin.losses import feature_squared_error

from .case import Case, Row


def check_pgfi(case: Case) -> Iterator[Row]:
    for match in case.names(r'(\w+)_num_levels'):
        yield from _check_layout(case, f'{match[1]}_', range(int(case[match[0]])))


def _check_layout(case: Case, prefix: str, levels: range) -> Iterator[Row]:
    _ = case[f'{prefix}feat_sizes']
    student = {
        name: [case[f'{prefix}lvl{level}_student_{name}'].requires_grad_() for level in levels]
        for name in ('cls', 'feat')
    }
    losses = [
        _level_loss(
            *(student[name][level] for name in student),
            *(case[f'{prefix}lvl{level}_teacher_{name}'] for name in student),
        )
        for level in levels
    ]
    loss = case[f'{prefix}loss_weight'] * torch.stack(losses).mean(0)
    yield from case.rows({'loss': loss, 'loss_scalar': loss.mean()}, prefix)
    for level in levels:
        maps = {name: student[name][level] for name in student}
        gradients = torch.autograd.grad(loss.mean(), list(maps.values()), retain_graph=True)
        ours = {
            f'grad_student_{name}': gradient for name, gradient in zip(maps, gradients, strict=True)
        }
        yield from case.rows(ours | {'loss': losses[level]}, f'{prefix}lvl{level}_')


def _level_loss(cls: Tensor, feat: Tensor, teacher_cls: Tensor, teacher_feat: Tensor) -> Tensor:
    """Per image; the draft takes the norm over positions, where the paper takes their mean."""
    difference = feature_squared_error(*(anchor_view(m, 1) for m in (cls, teacher_cls)))
    each = difference * feature_squared_error(*(anchor_view(m, 1) for m in (feat, teacher_feat)))
    square = each.flatten(1).square().sum(1)
    norm = square.where(square > 0, 1).sqrt() * (square > 0)  # its slope at 0 is 0
    return norm / each.numel()
