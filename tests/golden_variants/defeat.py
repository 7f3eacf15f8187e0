"""Maker of a defeat file."""

from collections.abc import Sequence

import numpy as np

from tests import brute_force

from .common import Arrays, noise, single

Size = tuple[int, int]

WEIGHTS = {'fg': 3, 'bg': 12}
CHANNELS, CLASSES = 3, 4
#: about the limits of the levels, and boxes of no or nearly no width or height
SIDES = (55, 55), (111, 111), (110.9, 111), (460, 465), (230, 240), (0, 9), (0.5, 30), (2, 2)


def defeat(seed: int = 0) -> Arrays:
    """Of 3 to 5 levels and 1 to 3 images, the last of several without objects."""
    rng, images = np.random.default_rng(seed), 1 + seed % 3
    strides = [4, 8, 16, 32, 64][: 3 + seed % 3]
    arrays, masks = _objects(rng, 'mask_', (470, 503), SIDES, images, strides)
    arrays |= {f'mask_lvl{level}': mask for level, mask in enumerate(masks)}
    arrays['mask_num_gts'] = np.bincount(arrays['mask_gt_image'], minlength=images)
    # of the second, the coarsest of five levels has a single cell
    neck = ((120, 130), (112, 113), (7, 50)) if seed % 2 else ((60, 52), (20, 30), (7, 50))
    values, masks = _objects(rng, 'neck_', neck[0], neck[1:], images, strides)
    arrays |= values | {'strides': np.array(strides)} | _neck(rng, masks)
    student, teacher = noise(rng, 9, 5, scale=2), noise(rng, 9, 5, scale=2)
    arrays |= {'kl_student': student, 'kl_teacher': teacher}
    for temperature in (1, 3):
        rows = brute_force.kl(student, teacher, temperature) * student.shape[1]
        arrays[f'kl_T{temperature}_nomask'] = np.float32(rows.mean())
    for name, labels in {
        'mix': [*rng.integers(0, CLASSES, 7), CLASSES, CLASSES],
        'nobg': rng.integers(0, CLASSES, 8),
        'allbg': [CLASSES] * 5,
        'single': [1],
    }.items():
        arrays |= _classes(rng, f'cls_{name}_', np.array(labels))
    terms = [f'{part}_loss_{kind}' for part in ('neck', 'cls_mix_T1') for kind in WEIGHTS]
    arrays['total_loss_mix_T1'] = np.float32(sum(np.sum(arrays[term]) for term in terms))
    return arrays


def _objects(
    rng: np.random.Generator,
    prefix: str,
    image: Size,
    sides: Sequence[tuple[float, float]],
    images: int,
    strides: Sequence[int],
) -> tuple[Arrays, list[np.ndarray]]:
    """Boxes of such widths and heights inside the image, and their cells (N, H, W) per level."""
    # in eighths of a pixel, so that boxes are exactly as large as they say
    corner = np.floor(rng.uniform(0, np.subtract(image[::-1], sides) - 0.1) * 8) / 8
    boxes = np.float32(np.concatenate([corner, corner + sides], axis=1))
    image_of = np.arange(len(boxes)) % max(images - 1, 1)
    sizes = [(-(-image[0] // stride), -(-image[1] // stride)) for stride in strides]
    masks = [np.zeros((images, *size), np.uint8) for size in sizes]
    levels = []
    for box, index in zip(boxes.astype(float), image_of, strict=True):
        side = np.sqrt(np.prod(box[2:] - box[:2] + 1))
        level = int(np.clip(np.floor(np.log2(side / 56 + 1e-6)), 0, len(strides) - 1))
        levels.append(level)
        l, t, r, b = np.int64(box / strides[level])
        if r == l or b == t:
            r, b = l + 1, t + 1
        masks[level][index, t:b, l:r] = 1
    arrays = {
        'image_hw': np.array(image),
        'feat_sizes': np.array(sizes),
        'gt_bboxes': boxes,
        'gt_image': image_of,
        'gt_level': np.array(levels),
    }
    return {prefix + name: value for name, value in arrays.items()}, masks


def _neck(rng: np.random.Generator, masks: list[np.ndarray]) -> Arrays:
    arrays, losses = {}, dict.fromkeys(WEIGHTS, 0)
    for level, mask in enumerate(masks):
        shape = len(mask), CHANNELS, *mask.shape[1:]
        student, teacher = noise(rng, *shape), noise(rng, *shape)
        values = {'student': student, 'teacher': teacher, 'mask': mask}
        difference = np.subtract(student, teacher, dtype=float)
        objects = np.broadcast_to(mask[:, None], shape).astype(float)
        for kind, cells in (('fg', objects), ('bg', 1 - objects)):
            divisor = max(2 * cells.sum(), 1)
            factor = WEIGHTS[kind] / len(masks)
            loss = (difference**2 * cells).sum() / divisor
            losses[kind] += factor * loss
            gradient = factor * 2 * difference * cells / divisor
            values |= single({f'unweighted_{kind}': [loss], f'grad_{kind}': gradient})
        arrays |= {f'neck_lvl{level}_{name}': value for name, value in values.items()}
    return arrays | single({f'neck_loss_{kind}': [loss] for kind, loss in losses.items()})


def _classes(rng: np.random.Generator, prefix: str, labels: np.ndarray) -> Arrays:
    """The largest label present stands for the background's."""
    student, teacher = (noise(rng, len(labels), CLASSES + 1, scale=2) for _ in range(2))
    arrays = {'student': student, 'teacher': teacher, 'labels': labels}
    for temperature in (1, 2, 4):
        each, slope = (
            2 * (CLASSES + 1) * f(student, teacher, temperature)
            for f in (brute_force.kl, brute_force.kl_gradient)
        )
        is_object = labels < labels.max()
        for kind, rows in (('fg', is_object), ('bg', ~is_object)):
            weight = rows / max(rows.sum(), 1)
            values = {f'loss_{kind}': (weight * each).sum()}
            values[f'grad_{kind}'] = weight[:, None] * slope
            arrays |= {f'T{temperature}_{n}': v for n, v in single(values).items()}
    return {prefix + name: value for name, value in arrays.items()}
