"""DeFeat: object cells, decoupled features and decoupled classes."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ld_plugin.dense import DenseOutputs, DistillationContext, HeadSpec
from ld_plugin.distillers import DecoupledFeatureDistiller
from ld_plugin.losses import DecoupledLoss, DistributionKLLoss, FeatureMSELoss
from ld_plugin.regions import GTCellsRegion
from ld_plugin.regions.geometry import level_by_size

from .case import Case, Row
from .ld import GivenRegion, background

OBJECT_WEIGHT, BACKGROUND_WEIGHT = 3, 12  # of the neck, as published; the files do not hold them


def check_defeat(case: Case) -> Iterator[Row]:
    yield from _check_cells(case, 'mask_')
    yield from _check_cells(case, 'neck_')
    neck = {}
    yield from _check_neck(case, neck)
    yield from _check_classes(case, neck)
    student, teacher = case['kl_student'], case['kl_teacher']
    for match in case.names(r'kl_T([^_]+)_nomask'):
        loss = DistributionKLLoss(float(match[1]), loss_weight=1, class_reduction='sum')
        yield from case.rows({match[0]: loss(student, teacher)})


def _context(
    case: Case, student: Sequence[Tensor], teacher: Sequence[Tensor], gt_bboxes: list[Tensor]
) -> DistillationContext:
    """Of levels of features (N, C, H, W), with one class, a prior per cell and no positives."""
    levels, images = len(student), len(student[0])
    strides = case['strides'].tolist()[:levels]
    spec = HeadSpec(
        name='',
        num_classes=1,
        strides=tuple((stride, stride) for stride in strides),
        num_base_priors=(1,) * levels,
        num_bins=None,
        box_dim=4,
        feature_channels=student[0].shape[1],
    )
    priors = sum(level.shape[-2] * level.shape[-1] for level in student)

    def outputs(features: Sequence[Tensor]) -> DenseOutputs:
        maps = [level[:, :1] for level in features]
        return DenseOutputs(spec, maps, maps, features, lambda: torch.zeros(priors, 4), None)

    assignment = background(images, priors, num_classes=1)
    return DistillationContext(outputs(student), outputs(teacher), assignment, gt_bboxes)


def _check_cells(case: Case, prefix: str) -> Iterator[Row]:
    _ = case[f'{prefix}image_hw']
    sizes, strides = case[f'{prefix}feat_sizes'].tolist(), case['strides'].tolist()
    boxes, image = case[f'{prefix}gt_bboxes'], case[f'{prefix}gt_image']
    name = 'mask_lvl{}' if prefix == 'mask_' else 'neck_lvl{}_mask'
    expected = [case[name.format(level)] for level in range(len(sizes))]
    images = len(expected[0])
    if f'{prefix}num_gts' in case:
        numbers = torch.bincount(image, minlength=images)
        yield from case.rows({'num_gts': numbers}, prefix)
    yield from case.rows({'gt_level': level_by_size(boxes, len(sizes), 14 * strides[0])}, prefix)
    empty = [torch.zeros(images, 1, *size) for size in sizes]
    context = _context(case, empty, empty, [boxes[image == i] for i in range(images)])
    for level, cells in enumerate(context.select(GTCellsRegion()).cell_masks):
        yield Row(name.format(level), cells, expected[level])


def _check_neck(case: Case, losses: dict[str, Tensor]) -> Iterator[Row]:
    """Also fills in ``losses``."""
    levels = range(len(case['strides']))
    student = [case[f'neck_lvl{level}_student'].requires_grad_() for level in levels]
    teacher = [case[f'neck_lvl{level}_teacher'] for level in levels]
    masks = [case[f'neck_lvl{level}_mask'] for level in levels]
    for part, weights in {'fg': (OBJECT_WEIGHT, 0), 'bg': (0, BACKGROUND_WEIGHT)}.items():
        loss = _neck_loss(case, student, teacher, masks, weights)
        losses[part] = loss
        gradients = torch.autograd.grad(loss, student, retain_graph=True)
        yield from case.rows({f'neck_loss_{part}': loss[None]})
        for level in levels:
            here = slice(level, level + 1)
            alone = [x[here] for x in (student, teacher, masks)]
            unweighted = _neck_loss(case, *alone, [float(weight > 0) for weight in weights])
            ours = {f'grad_{part}': gradients[level], f'unweighted_{part}': unweighted[None]}
            yield from case.rows(ours, f'neck_lvl{level}_')


def _neck_loss(
    case: Case,
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    masks: Sequence[Tensor],
    weights: Sequence[float],
) -> Tensor:
    """Without the adapter: the file's student has passed one already."""
    objects = GivenRegion(torch.cat([mask.flatten(1) for mask in masks], dim=1))
    distiller = DecoupledFeatureDistiller(objects, FeatureMSELoss(1.0), None, *weights)
    distiller.adapter = nn.Identity()
    return distiller(_context(case, student, teacher, [torch.zeros(0, 4)] * len(student[0])))


def _check_classes(case: Case, neck: dict[str, Tensor]) -> Iterator[Row]:
    for match in case.names(r'cls_(\w+)_T([^_]+)_loss_fg'):
        name, temperature = match[1], float(match[2])
        student = case[f'cls_{name}_student'].requires_grad_()
        teacher, labels = case[f'cls_{name}_teacher'], case[f'cls_{name}_labels']
        part = dict(
            type='DistributionKLLoss',
            temperature=temperature,
            loss_weight=2,
            class_reduction='sum',
        )
        loss = DecoupledLoss(objects=part, background=part)
        # the reference takes the largest label present for the background's
        is_object = labels < labels.max()
        weights = [mask / mask.sum().clamp(min=1) for mask in (is_object, ~is_object)]
        nothing = torch.zeros(len(labels))
        losses = {
            'fg': loss(student, teacher, weights[0], nothing),
            'bg': loss(student, teacher, nothing, weights[1]),
        }
        for part_name, value in losses.items():
            ours = {
                f'loss_{part_name}': value,
                f'grad_{part_name}': torch.autograd.grad(value, student, retain_graph=True)[0],
            }
            yield from case.rows(ours, f'cls_{name}_T{match[2]}_')
        total = sum(neck.values()) + loss(student, teacher, *weights)
        yield from case.rows({f'total_loss_{name}_T{match[2]}': total})
