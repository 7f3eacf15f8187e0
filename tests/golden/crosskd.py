"""CrossKD's repository: its losses, its reused head, and PKD."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from mmdet.models.dense_heads import GFLHead

from ld_plugin.dense import Assignment, DenseOutputs, DistillationContext, HeadSpec, get_reader
from ld_plugin.dense.head_features import HeadFeatures
from ld_plugin.dense.outputs import level_rows
from ld_plugin.distillers import build_distillers
from ld_plugin.distillers.crosshead import with_statistics_of
from ld_plugin.losses import (
    BinaryKDLoss,
    DistributionKLLoss,
    PearsonFeatureLoss,
    channel_statistics,
    modulated_binary_cross_entropy,
    standardized,
)

from .case import Case, Row


def check_crosskd(case: Case) -> Iterator[Row]:
    yield from _check_classes(case)
    yield from _check_bins(case)
    for number in range(int(case['align_num'])):
        yield from _check_align(case, f'align{number}_')
    yield from _check_mimic(case)
    yield from _check_reuse(case)
    loss = PearsonFeatureLoss(case['pkd_loss_weight'].item())
    for number in range(int(case['pkd_num'])):
        yield from _check_pkd(case, f'pkd{number}_', loss)


def _check_classes(case: Case) -> Iterator[Row]:
    logits = case['kdqfl_pred'].requires_grad_()
    target, weight, divisor = (
        case[f'kdqfl_{name}'] for name in ('target_logits', 'weight', 'avg_factor')
    )
    classes = logits.shape[1]  # our sum over the classes is their mean over rows and classes
    for match in case.names(r'kdqfl_beta([^_]+)_none'):
        beta = float(match[1])
        loss = BinaryKDLoss(beta, case['kdqfl_loss_weight'].item())
        total = loss(logits, target, weight, divisor)
        ours = {
            'none': modulated_binary_cross_entropy(logits, target, beta) * loss.loss_weight,
            'loss': total,
            'grad': torch.autograd.grad(total, logits)[0],
            'mean': loss(logits, target) / classes,
            'mean_weighted': loss(logits, target, weight) / classes,
        }
        yield from case.rows(ours, f'kdqfl_beta{match[1]}_')


def _check_bins(case: Case) -> Iterator[Row]:
    logits = case['kl_pred'].requires_grad_()
    target, weight, divisor = (case[f'kl_{name}'] for name in ('soft', 'weight', 'avg_factor'))
    for match in case.names(r'kl_T([^_]+)_(sum|mean)_none'):
        loss = DistributionKLLoss(float(match[1]), case['kl_loss_weight'].item(), match[2])
        total = loss(logits, target, weight, divisor)
        ours = {
            'none': loss.elementwise(logits, target) * loss.loss_weight,
            'loss': total,
            'grad': torch.autograd.grad(total, logits)[0],
        }
        yield from case.rows(ours, f'kl_T{match[1]}_{match[2]}_')


def _check_align(case: Case, prefix: str) -> Iterator[Row]:
    student, teacher, cotangent = (
        case[f'{prefix}{name}'] for name in ('student', 'teacher', 'cotangent')
    )
    out = with_statistics_of(student.requires_grad_(), channel_statistics(teacher))
    ours = {
        'out': out,
        'grad_student': torch.autograd.grad((out * cotangent).sum(), student)[0],
    }
    reasons = _incomparable(student[:, 0].numel(), ours)
    yield from case.rows({n: x for n, x in ours.items() if n not in reasons}, prefix)
    yield from _apart(case, prefix, reasons)


def _check_mimic(case: Case) -> Iterator[Row]:
    reused = [case[f'mimic_reused_{name}'].requires_grad_() for name in ('cls', 'reg')]
    context = _mimic_context(case)
    teacher = context.teacher
    # copies, for they are overwritten
    maps = ([level.clone()] for level in reused)
    crossed = replace(teacher, **dict(zip(('class_maps', 'box_maps'), maps, strict=True)))
    cfg = dict(type='CrossHeadDistiller')
    distiller = build_distillers(dict(x=cfg), teacher.spec, teacher.spec)['x']
    weights = dict(classes=distiller.class_weights(context), boxes=distiller.box_weights(context))
    sums = {branch: distiller.summed(branch, crossed, teacher, w) for branch, w in weights.items()}
    weight_sum = sum(level.sum() for level in weights['boxes'])
    # the reference is given the number of positives, which ours counts
    classes, raw = sums['classes'] / case['mimic_avg_factor'], sums['boxes']
    ours = {
        'loss_cls_kd': classes,
        'loss_reg_kd': raw / weight_sum,
        'loss_reg_kd_raw': raw,
        'weight_sum': weight_sum,
        'grad_reused_cls': torch.autograd.grad(classes, reused[0])[0],
        'grad_reused_reg_of_raw': torch.autograd.grad(raw, reused[1])[0],
    }
    yield from case.rows(ours, 'mimic_')


def _mimic_context(case: Case) -> DistillationContext:
    """One level."""
    classes, boxes, weights = (case[f'mimic_{n}'] for n in ('tea_cls', 'tea_reg', 'label_weights'))
    _, num_classes, height, width = classes.shape
    teacher = DenseOutputs(
        spec=HeadSpec(
            name='GFLHead',
            num_classes=num_classes,
            strides=((8, 8),),
            num_base_priors=(1,),
            num_bins=boxes.shape[1] // 4,
            box_dim=4,
            feature_channels=1,
            extras=frozenset({'head_features'}),
            tower_channels=(1,) * 5,
        ),
        class_maps=[classes],
        box_maps=[boxes],
        features=(),
        make_priors=lambda: torch.zeros(height * width, 4),
        decoder=lambda rows, priors, strides: rows,
    )
    nothing = torch.full(weights.shape, num_classes)
    assignment = Assignment(nothing, weights, torch.ones_like(weights) > 0, num_classes)
    return DistillationContext(teacher, teacher, assignment, gt_bboxes=[])


def _check_reuse(case: Case) -> Iterator[Row]:
    layer = int(case['reuse_idx'])
    student, teacher = (
        HeadFeatures(*([case[f'reuse_{who}_{n}_feat']] for n in ('cls', 'reg')))
        for who in ('stu', 'tea')
    )
    for (level,) in student:
        level.requires_grad_()
    aligned = HeadFeatures(
        *(
            [
                with_statistics_of(own, channel_statistics(other))
                for own, other in zip(*branches, strict=True)
            ]
            for branches in zip(student, teacher, strict=True)
        )
    )
    (classes,), (boxes,) = get_reader(_reused_head(case)).rest_of_head(layer, aligned)
    ours = {
        'out_cls': classes,
        'out_reg': boxes,
        'grad_stu_cls_feat': torch.autograd.grad(classes.sum(), student.classes[0])[0],
        'grad_stu_reg_feat': torch.autograd.grad(boxes.square().sum(), student.boxes[0])[0],
    }
    yield from case.rows(ours, 'reuse_')


def _reused_head(case: Case) -> GFLHead:
    """A stock head of one level with the file's weights."""
    last = {name: case[f'reuse_gfl_{name}_weight'] for name in ('cls', 'reg')}
    num_classes, channels = last['cls'].shape[:2]
    layers = len(case.names(r'reuse_cls_conv\d+_weight'))
    groups = int(case['reuse_gn_groups'])
    head = GFLHead(
        num_classes,
        channels,
        feat_channels=channels,
        stacked_convs=layers,
        norm_cfg=dict(type='GN', num_groups=groups, requires_grad=True),
        reg_max=last['reg'].shape[0] // 4 - 1,
        anchor_generator=dict(
            type='AnchorGenerator',
            ratios=[1],
            octave_base_scale=8,
            scales_per_octave=1,
            strides=[8],
        ),
    )
    weights = {'scales.0.scale': case['reuse_scale']}
    for name, weight in last.items():
        weights[f'gfl_{name}.weight'] = weight
        weights[f'gfl_{name}.bias'] = case[f'reuse_gfl_{name}_bias']
        for i in range(layers):
            theirs, ours = f'reuse_{name}_conv{i}', f'{name}_convs.{i}'
            weights[f'{ours}.conv.weight'] = case[f'{theirs}_weight']
            weights[f'{ours}.gn.weight'] = case[f'{theirs}_gn_weight']
            weights[f'{ours}.gn.bias'] = case[f'{theirs}_gn_bias']
    weights['integral.project'] = head.integral.project
    head.load_state_dict(weights)
    return head.requires_grad_(False)


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
    reasons = _incomparable(images * height * width, ours)
    yield from case.rows({n: x for n, x in ours.items() if n not in reasons}, prefix)
    yield from _apart(case, prefix, reasons)


def _apart(case: Case, prefix: str, reasons: dict[str, str]) -> Iterator[Row]:
    for name, reason in reasons.items():
        if prefix + name in case:
            _ = case[prefix + name]
            yield Row(prefix + name, reason=f'not comparable: {reason}')


def _incomparable(rows: int, names: Iterable[str]) -> dict[str, str]:
    """Why arrays of a map with that many positions have nothing to say."""
    if rows == 1:
        return dict.fromkeys(names, 'NaN, the deviation of a single position')
    if rows == 2:
        return {'grad_student': 'rounding about 0: two positions are always +-1 / sqrt(2)'}
    return {}
