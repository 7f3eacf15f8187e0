"""The losses in CrossKD's repository: PKD."""

from collections.abc import Iterator

import torch

from ld_plugin.dense.outputs import level_rows
from ld_plugin.losses import PearsonFeatureLoss, standardized

from .case import Case, Row


def check_crosskd(case: Case) -> Iterator[Row]:
    loss = PearsonFeatureLoss(case['pkd_loss_weight'].item())
    for number in range(int(case['pkd_num'])):
        yield from _check_pkd(case, f'pkd{number}_', loss)


def _check_pkd(case: Case, prefix: str, loss: PearsonFeatureLoss) -> Iterator[Row]:
    student, teacher = (case[f'{prefix}{name}'] for name in ('student', 'teacher'))
    images, _, height, width = student.shape
    student.requires_grad_()
    rows = [level_rows(level_map, 1) for level_map in (student, teacher)]
    value = loss(*rows)
    ours = {
        f'{name}_norm': standardized(x).movedim(-1, 1).unflatten(2, (height, width))
        for name, x in zip(('student', 'teacher'), rows, strict=True)
    }
    ours |= {'loss': value, 'grad_student': torch.autograd.grad(value, student)[0]}
    reasons = _incomparable(images * height * width)
    yield from case.rows({n: x for n, x in ours.items() if n not in reasons}, prefix)
    for name, reason in reasons.items():
        if prefix + name in case:
            _ = case[prefix + name]
            yield Row(prefix + name, reason=f'not comparable: {reason}')


def _incomparable(rows: int) -> dict[str, str]:
    """Why arrays of a map with that many positions have nothing to say."""
    if rows == 1:
        names = 'student_norm', 'teacher_norm', 'loss', 'grad_student'
        return dict.fromkeys(names, 'NaN, the deviation of a single position')
    if rows == 2:
        return {'grad_student': 'rounding about 0: two positions are always +-1 / sqrt(2)'}
    return {}
