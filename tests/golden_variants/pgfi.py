"""Maker of a pgfi file."""

import numpy as np

from .common import Arrays, noise, single

WEIGHT = 1.5


def pgfi(seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    arrays = _layout(rng, 'one1_', 3, classes=4, features=5, sizes=((5, 7), (3, 3), (1, 2), (1, 1)))
    arrays |= _layout(rng, 'retina9_', 1, classes=27, features=1, sizes=((2, 6),))
    return arrays


def _layout(
    rng: np.random.Generator,
    prefix: str,
    images: int,
    classes: int,
    features: int,
    sizes: tuple[tuple[int, int], ...],
) -> Arrays:
    arrays = {
        'loss_weight': np.float32(WEIGHT),
        'num_levels': np.int64(len(sizes)),
        'feat_sizes': np.array(sizes),
    }
    losses = []
    for level, size in enumerate(sizes):
        maps = {
            f'{who}_{what}': noise(rng, images, channels, *size)
            for what, channels in (('cls', classes), ('feat', features))
            for who in ('student', 'teacher')
        }
        if level == 1:  # nothing to learn in the first image: the norm is 0
            maps['student_cls'][0] = maps['teacher_cls'][0]
        loss, gradients = _level(**maps)
        losses.append(loss)
        factor = WEIGHT / len(sizes) / images
        values = {'loss': loss} | {f'grad_{n}': factor * g for n, g in gradients.items()}
        arrays |= {f'lvl{level}_{n}': v for n, v in (maps | single(values)).items()}
    total = WEIGHT * np.mean(losses, axis=0)
    arrays |= single({'loss': total, 'loss_scalar': total.mean()})
    return {prefix + name: value for name, value in arrays.items()}


def _level(
    student_cls: np.ndarray,
    teacher_cls: np.ndarray,
    student_feat: np.ndarray,
    teacher_feat: np.ndarray,
) -> tuple[np.ndarray, Arrays]:
    """The loss (N,) and the gradients of its sum, of maps (N, C, H, W)."""
    classes = np.subtract(student_cls, teacher_cls, dtype=float)
    features = np.subtract(student_feat, teacher_feat, dtype=float)
    guide, error = ((x**2).mean(1, keepdims=True) for x in (classes, features))
    product = guide * error
    norm = np.sqrt((product**2).sum((1, 2, 3), keepdims=True))
    # the norm's slope at 0 is 0
    slope = np.divide(product, norm, out=np.zeros_like(product), where=norm > 0) / product.size
    gradients = {
        'student_cls': slope * error * 2 * classes / classes.shape[1],
        'student_feat': slope * guide * 2 * features / features.shape[1],
    }
    return norm[:, 0, 0, 0] / product.size, gradients
