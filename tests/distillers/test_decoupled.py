"""DeFeat and the quality branch on contexts: cell by cell, position by position."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ld_plugin.dense import DistillationContext
from ld_plugin.dense.outputs import prior_views
from ld_plugin.distillers import Distiller, build_distillers
from ld_plugin.errors import ConfigError
from ld_plugin.losses import DecoupledLoss
from ld_plugin.recipes import defeat
from tests import brute_force
from tests.contexts import context, make


@pytest.fixture(params=[1, 9], ids=['1 prior per cell', '9 priors per cell'])
def step(request: pytest.FixtureRequest) -> DistillationContext:
    return context(images=4, priors_per_cell=request.param)


def neck_loss(step: DistillationContext, distiller: Distiller) -> Tensor:
    """By the formula, in plain autograd."""
    total, levels = 0.0, len(step.student.features)
    valid = prior_views(step.assignment.valid, step.student.level_shapes)
    objects = step.select(distiller.region).cell_masks
    for level in range(levels):
        adapted = F.conv2d(step.student.features[level], *distiller.adapter.parameters(), padding=1)
        error = adapted - step.teacher.features[level]
        square, m = error.square().sum(1), objects[level]
        rest = valid[level].any(1) & ~m
        for weight, mask in ((3, m), (12, rest)):
            count = max(mask.sum() * error.shape[1], 1)
            total = total + weight / (2 * count) * square[mask].sum()
    return total / levels


@pytest.mark.parametrize('region', ['GTCellsRegion', 'InsideGTRegion', 'MainRegion'])
def test_neck_follows_the_formula(step: DistillationContext, region: str) -> None:
    distiller = make(step, **dict(defeat['defeat_neck'], region=dict(type=region)))
    loss, expected = distiller(step), neck_loss(step, distiller)
    torch.testing.assert_close(loss, expected)
    trained = [*step.student.features, *distiller.parameters()]
    gradients = torch.autograd.grad(loss, trained), torch.autograd.grad(expected, trained)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_cells_count_if_any_of_their_priors_does() -> None:
    """Large anchors may reach out of the image, and are left out, where small ones do not."""
    step = context(images=4, priors_per_cell=9)
    valid = step.assignment.valid.clone()
    valid[:, ::9] = False
    fewer = replace(step, assignment=replace(step.assignment, valid=valid))
    distiller = make(step, type='DecoupledFeatureDistiller')
    assert distiller(fewer) == distiller(step)


def test_neck_without_ground_truth_is_background_alone(step: DistillationContext) -> None:
    step = replace(step, gt_bboxes=[torch.zeros(0, 4)] * 4)
    assert make(step, type='DecoupledFeatureDistiller')(step) > 0
    loss = make(step, type='DecoupledFeatureDistiller', background_weight=0)(step)
    loss.backward()
    assert loss == 0
    assert not any(level.grad.any() for level in step.student.features)


def test_neck_between_widths_and_kinds(step: DistillationContext) -> None:
    spec = replace(step.teacher.spec, feature_channels=5, num_classes=80)
    features = [torch.randn(4, 5, *level.shape[2:]) for level in step.teacher.features]
    teacher = replace(step.teacher, spec=spec, features=features, class_maps=(), box_maps=())
    step = replace(step, teacher=teacher)
    distiller = make(step, type='DecoupledFeatureDistiller')
    distiller(step).backward()
    assert distiller.adapter.weight.shape == (5, 2, 3, 3)


def class_loss(step: DistillationContext, temperatures: tuple[float, float]) -> float:
    logits = [
        torch.cat([dense.level_class_logits(i) for i in range(3)], dim=1).detach().numpy()
        for dense in (step.student, step.teacher)
    ]
    positive = step.assignment.positive.numpy()
    negative = step.assignment.valid.numpy() & ~positive
    return sum(
        2 * 3 * np.mean(brute_force.kl(*logits, temperature)[mask])
        for temperature, mask in zip(temperatures, (positive, negative), strict=True)
    )


def test_classes_have_their_own_counts_and_temperatures(step: DistillationContext) -> None:
    distiller = make(step, **defeat['defeat_cls'])
    assert distiller(step).item() == pytest.approx(class_loss(step, (1, 1)), rel=1e-4)
    part = dict(type='DistributionKLLoss', temperature=4, loss_weight=2, class_reduction='sum')
    distiller = make(
        step,
        type='DecoupledClassificationDistiller',
        loss=dict(type='DecoupledLoss', background=part),
    )
    assert distiller(step).item() == pytest.approx(class_loss(step, (1, 4)), rel=1e-4)


def test_ignored_priors_are_no_negatives(step: DistillationContext) -> None:
    weights = step.assignment.label_weights * (torch.rand(step.assignment.labels.shape) < 0.5)
    ignoring = replace(
        step, assignment=replace(step.assignment, label_weights=weights, valid=weights > 0)
    )
    other = replace(step, assignment=replace(step.assignment, label_weights=weights))
    distiller = make(step, type='DecoupledClassificationDistiller')
    torch.testing.assert_close(distiller(ignoring), distiller(other))


def test_an_equal_teacher_teaches_no_classes(step: DistillationContext) -> None:
    equal = [level.detach() for level in step.student.class_maps]
    step = replace(step, teacher=replace(step.teacher, class_maps=equal))
    loss = make(step, type='DecoupledClassificationDistiller')(step)
    loss.backward()
    assert loss.abs() < 1e-6
    assert all(level.grad.abs().max() < 1e-6 for level in step.student.class_maps)


def test_decoupled_loss_of_rows() -> None:
    student, teacher = torch.randn(2, 6, 4, dtype=torch.float64).unbind()
    weights = torch.tensor([0.5, 0.5, 0, 0, 0, 0]), torch.tensor([0, 0, 0.25, 0.25, 0.25, 0.25])
    each = brute_force.kl(student.numpy(), teacher.numpy(), 1) * 4
    loss = DecoupledLoss()
    expected = 2 * (each[:2].mean() + each[2:].mean())
    assert loss(student, teacher, *weights).item() == pytest.approx(expected, rel=1e-6)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, *weights), student)


def test_quality_of_the_positives(step: DistillationContext) -> None:
    loss = make(step, type='QualityDistiller')(step)
    quality = [
        torch.cat([m.movedim(1, -1).flatten(1) for m in dense.quality_maps], dim=1)
        for dense in (step.student, step.teacher)
    ]
    positive = step.assignment.positive
    rows = [q[positive].detach().numpy() for q in quality]
    expected = brute_force.binary_kl(*rows, 0).sum() / positive.sum(1).clamp(min=1).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    equal = [level.detach() for level in step.student.quality_maps]
    step = replace(step, teacher=replace(step.teacher, quality_maps=equal))
    make(step, type='QualityDistiller')(step).backward()
    assert all(level.grad.abs().max() < 1e-7 for level in step.student.quality_maps)


NEGATIVE = dict(type='DistributionKLLoss', temperature=-1)


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        (
            dict(type='DecoupledFeatureDistiller', object_weight=-1),
            r'^model\.distillers\.x\.object_weight: found -1, expected a finite number',
        ),
        (
            dict(type='DecoupledFeatureDistiller', background_weight=float('nan')),
            r'^model\.distillers\.x\.background_weight: found nan',
        ),
        (
            dict(
                type='DecoupledClassificationDistiller',
                loss=dict(type='DecoupledLoss', objects=NEGATIVE),
            ),
            r'^model\.distillers\.x\.loss\.objects\.temperature: found -1',
        ),
        (
            dict(
                type='DecoupledClassificationDistiller',
                loss=dict(type='DecoupledLoss', background=dict(type='KL')),
            ),
            r"^model\.distillers\.x\.loss\.background\.type: 'KL' is not a registered",
        ),
    ],
)
def test_bad_configs(cfg: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(context(), **cfg)


def test_a_head_without_quality_is_refused() -> None:
    step = context()
    poor = replace(step.teacher.spec, extras=frozenset())
    with pytest.raises(ConfigError, match="the teacher's head Head has no quality"):
        build_distillers(dict(x=dict(type='QualityDistiller')), step.student.spec, poor)


def test_padding_is_no_negative_whatever_its_label_weight() -> None:
    """FCOS's and VFNet's is 1."""
    step = context(images=2)
    valid = step.assignment.valid
    assert not valid.all()
    ones = replace(step.assignment, label_weights=torch.ones_like(step.assignment.label_weights))
    none = replace(ones, label_weights=valid.float())
    distillers = dict(x=dict(type='DecoupledClassificationDistiller'))
    distiller = build_distillers(distillers, step.student.spec, step.teacher.spec)['x']
    found = [distiller(replace(step, assignment=assignment)) for assignment in (ones, none)]
    torch.testing.assert_close(*found)
