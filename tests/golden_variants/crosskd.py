"""Maker of a crosskd file."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tests import brute_force

from .common import Arrays, noise, single

EPS = 1e-6
PKD_WEIGHT, BINS_WEIGHT = 5, 4
#: of a feature map; the last but one has two positions, the last a single one
SHAPES = (3, 4, 5, 3), (1, 7, 2, 4), (2, 2, 1, 1), (1, 3, 1, 1)
#: stacked convolutions, and how many of them the student's own take the place of
LAYERS = (3, 3), (2, 0), (4, 2), (1, 1)


def crosskd(seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    arrays = _classes(rng) | _bins(rng, bins=6) | _mimic(rng, images=1 + seed % 3)
    arrays |= {'align_num': np.int64(len(SHAPES)), 'pkd_num': np.int64(len(SHAPES))}
    arrays['pkd_loss_weight'] = np.float32(PKD_WEIGHT)
    for case, shape in enumerate(SHAPES):
        for name, make in (('align', _align), ('pkd', _pkd)):
            student, teacher = noise(rng, *shape, scale=2), noise(rng, *shape)
            if case == 0:
                student[:, 1] = 0.5
            if case == 2:  # two positions that agree would leave PKD nothing but rounding
                student[:, 1] = -teacher[:, 1]
            values = single(make(student, teacher, noise(rng, *shape)))
            arrays |= {f'{name}{case}_{n}': v for n, v in values.items()}
    return arrays | _reuse(rng, *LAYERS[seed % len(LAYERS)], images=1 + seed % 2)


def _classes(rng: np.random.Generator) -> Arrays:
    """Every fourth row is the teacher's."""
    logits, target = noise(rng, 11, 3, scale=3), noise(rng, 11, 3, scale=3)
    logits[::4] = target[::4]
    weight, factor, divisor = np.float32(rng.uniform(0, 2, 11)), 1.5, 3.5
    arrays = {
        'pred': logits,
        'target_logits': target,
        'weight': weight,
        'avg_factor': divisor,
        'loss_weight': factor,
    }
    for beta in (1, 1.5, 3):
        each = factor * brute_force.binary_kl(logits, target, beta)
        slope = factor * brute_force.binary_kl_gradient(logits, target, beta)
        weighted = each * weight[:, None]
        values = {
            'none': each,
            'loss': weighted.sum() / divisor,
            'grad': slope * weight[:, None] / divisor,
            'mean': each.mean(),
            'mean_weighted': weighted.mean(),
        }
        arrays |= {f'beta{beta}_{name}': value for name, value in values.items()}
    return {f'kdqfl_{name}': value for name, value in single(arrays).items()}


def _bins(rng: np.random.Generator, bins: int) -> Arrays:
    logits, target = noise(rng, 9, bins, scale=3), noise(rng, 9, bins, scale=3)
    weight, divisor = np.float32(rng.uniform(0, 2, 9)), 2.5
    arrays = {
        'pred': logits,
        'soft': target,
        'weight': weight,
        'avg_factor': divisor,
        'loss_weight': BINS_WEIGHT,
    }
    for temperature in (1, 4):
        for name, factor in (('sum', BINS_WEIGHT * bins), ('mean', BINS_WEIGHT)):
            each = factor * brute_force.kl(logits, target, temperature)
            slope = factor * brute_force.kl_gradient(logits, target, temperature)
            values = {
                'none': each,
                'loss': (weight * each).sum() / divisor,
                'grad': weight[:, None] * slope / divisor,
            }
            arrays |= {f'T{temperature}_{name}_{n}': v for n, v in values.items()}
    return {f'kl_{name}': value for name, value in single(arrays).items()}


class Standardized:
    """Channels of a map (N, C, H, W) less their mean, over their deviation."""

    over = 0, 2, 3

    def __init__(self, level: np.ndarray) -> None:
        level = level.astype(float)
        self.rows = level[:, 0].size
        self.mean = level.mean(self.over, keepdims=True)
        self.centred = level - self.mean
        with np.errstate(invalid='ignore'):  # of a single position: NaN
            variance = np.divide((self.centred**2).sum(self.over, keepdims=True), self.rows - 1)
        self.deviation = np.sqrt(variance)
        self.values = self.centred / (self.deviation + EPS)

    def gradient(self, slope: np.ndarray) -> np.ndarray:
        """In the map, of a loss with such a slope in the values; the deviation's at 0 is 0."""
        divisor, deviation = self.deviation + EPS, np.where(self.deviation == 0, 1, self.deviation)
        of_deviation = -(slope * self.centred).sum(self.over, keepdims=True) / divisor**2
        with np.errstate(invalid='ignore', divide='ignore'):
            through = of_deviation * self.centred / deviation / np.float64(self.rows - 1)
        return (slope - slope.mean(self.over, keepdims=True)) / divisor + through


def _align(student: np.ndarray, teacher: np.ndarray, cotangent: np.ndarray) -> Arrays:
    normal, reference = Standardized(student), Standardized(teacher)
    return {
        'student': student,
        'teacher': teacher,
        'cotangent': cotangent,
        'out': normal.values * reference.deviation + reference.mean,
        'grad_student': normal.gradient(cotangent * reference.deviation),
    }


def _pkd(student: np.ndarray, teacher: np.ndarray, _: np.ndarray) -> Arrays:
    normal, reference = Standardized(student), Standardized(teacher)
    difference = normal.values - reference.values
    return {
        'student': student,
        'teacher': teacher,
        'student_norm': normal.values,
        'teacher_norm': reference.values,
        'loss': PKD_WEIGHT * (difference**2).mean() / 2,
        'grad_student': normal.gradient(PKD_WEIGHT * difference / difference.size),
    }


def _mimic(rng: np.random.Generator, images: int, classes: int = 3, bins: int = 5) -> Arrays:
    """A level of 4 x 3 priors."""
    size, divisor = (4, 3), 2.5
    maps = {
        f'{who}_{what}': noise(rng, images, depth, *size, scale=2)
        for who in ('tea', 'reused')
        for what, depth in (('cls', classes), ('reg', 4 * bins))
    }
    rows = {name: x.reshape(*x.shape[:2], -1).swapaxes(1, 2) for name, x in maps.items()}
    counts = rng.random((images, 12)) < 0.8
    logits = rows['reused_cls'], rows['tea_cls']
    slope = counts[..., None] / divisor * brute_force.binary_kl_gradient(*logits, 1)
    weights = counts * brute_force.sigmoid(rows['tea_cls'].astype(float)).max(-1)
    sides = [rows[f'{who}_reg'].reshape(images, 12, 4, bins) for who in ('reused', 'tea')]
    raw = (weights[..., None] * brute_force.kl(*sides, 1)).sum() * bins
    slopes = weights[..., None, None] * brute_force.kl_gradient(*sides, 1) * bins
    values = {
        'label_weights': counts,
        'avg_factor': divisor,
        'loss_cls_kd': (counts[..., None] * brute_force.binary_kl(*logits, 1)).sum() / divisor,
        'loss_reg_kd_raw': raw,
        'weight_sum': weights.sum(),
        'loss_reg_kd': raw / weights.sum(),
        'grad_reused_cls': slope.swapaxes(1, 2).reshape(images, -1, *size),
        'grad_reused_reg_of_raw': slopes.reshape(images, 12, -1)
        .swapaxes(1, 2)
        .reshape(images, -1, *size),
    }
    return {f'mimic_{name}': value for name, value in single(maps | values).items()}


def _reuse(
    rng: np.random.Generator, layers: int, index: int, images: int, channels: int = 4
) -> Arrays:
    """A head with two groups of channels; features of 3 x 5."""
    arrays = {'idx': index, 'scale': np.float32(0.75), 'gn_groups': 2}
    for name, depth in (('cls', 3), ('reg', 20)):
        for who in ('tea', 'stu'):
            arrays[f'{who}_{name}_feat'] = noise(rng, images, channels, 3, 5)
        for layer in range(layers):
            prefix = f'{name}_conv{layer}'
            arrays[f'{prefix}_weight'] = noise(rng, channels, channels, 3, 3, scale=0.2)
            arrays[f'{prefix}_gn_weight'] = 1 + noise(rng, channels, scale=0.2)
            arrays[f'{prefix}_gn_bias'] = noise(rng, channels)
        arrays[f'gfl_{name}_weight'] = noise(rng, depth, channels, 3, 3, scale=0.2)
        arrays[f'gfl_{name}_bias'] = noise(rng, depth)
    tensors = {n: torch.from_numpy(np.array(v, dtype=float)) for n, v in arrays.items()}
    results = {}
    for name in ('cls', 'reg'):
        student = tensors[f'stu_{name}_feat'].requires_grad_()
        out = _rest_of_head(tensors, name, layers, index)
        if name == 'reg':
            out = out * tensors['scale']
        total = out.sum() if name == 'cls' else out.square().sum()
        results[f'out_{name}'] = out.detach()
        results[f'grad_stu_{name}_feat'] = torch.autograd.grad(total, student)[0]
    whole = {name: np.int64(arrays.pop(name)) for name in ('idx', 'gn_groups')}
    return {f'reuse_{n}': v for n, v in (arrays | whole | single(results)).items()}


def _rest_of_head(tensors: dict[str, Tensor], name: str, layers: int, index: int) -> Tensor:
    student, teacher = (tensors[f'{who}_{name}_feat'] for who in ('stu', 'tea'))
    over = 0, 2, 3
    centred = student - student.mean(over, keepdim=True)
    normal = centred / (student.std(over, keepdim=True) + EPS)
    x = normal * teacher.std(over, keepdim=True) + teacher.mean(over, keepdim=True)
    if index:
        x = x.relu()
    for layer in range(index, layers):
        prefix = f'{name}_conv{layer}'
        x = functional.conv2d(x, tensors[f'{prefix}_weight'], padding=1)
        norm = tensors[f'{prefix}_gn_weight'], tensors[f'{prefix}_gn_bias']
        x = functional.group_norm(x, int(tensors['gn_groups']), *norm).relu()
    last = tensors[f'gfl_{name}_weight'], tensors[f'gfl_{name}_bias']
    return functional.conv2d(x, *last, padding=1)
