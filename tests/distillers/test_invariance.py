"""Of every distiller on every region: averages that batching leaves alone, and the edges."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ld_plugin.dense import Assignment, DenseOutputs, DistillationContext
from ld_plugin.distillers import Distiller
from ld_plugin.registry import REGIONS
from tests import brute_force
from tests.contexts import context, make, take_images

ANYWHERE = {
    'box': dict(type='BoxDistiller'),
    'im': dict(type='FeatureDistiller'),
    'kd': dict(type='ClassificationDistiller'),
    'kd_binary': dict(
        type='ClassificationDistiller', loss=dict(type='BinaryKDLoss'), normalizer='positives'
    ),
    'ld': dict(type='LocalizationDistiller'),
    'quality': dict(type='QualityDistiller', loss=dict(type='BinaryKDLoss')),
    'pfi': dict(type='PredictionGuidedFeatureDistiller'),
}
ON_POSITIVES = {
    'rank_iou': dict(type='RankDistiller', on='iou'),
    'rank_logit': dict(type='RankDistiller', on='logit'),
    'rank_score': dict(type='RankDistiller'),
}
OF_BACKGROUND = {
    'defeat_cls': dict(type='DecoupledClassificationDistiller'),
    'defeat_neck': dict(type='DecoupledFeatureDistiller'),
}
DISTILLERS = ANYWHERE | ON_POSITIVES
every_distiller = pytest.mark.parametrize('cfg', DISTILLERS.values(), ids=DISTILLERS)
EVERYWHERE = ON_POSITIVES | {
    f'{name}-{region}': dict(cfg, region=dict(type=region))
    for name, cfg in ANYWHERE.items()
    for region in sorted(REGIONS.module_dict)
}
on_every_region = pytest.mark.parametrize('cfg', EVERYWHERE.values(), ids=EVERYWHERE)
ALL = EVERYWHERE | OF_BACKGROUND
in_every_way = pytest.mark.parametrize('cfg', ALL.values(), ids=ALL)
MAPS = 'class_maps', 'box_maps', 'features', 'quality_maps'


@pytest.fixture(params=[1, 3], ids=['1 prior per cell', '3 priors per cell'])
def step(request: pytest.FixtureRequest) -> DistillationContext:
    return context(images=4, priors_per_cell=request.param)


def on_region(cfg: dict[str, Any], region: str) -> dict[str, Any]:
    return cfg if cfg in ON_POSITIVES.values() else dict(cfg, region=dict(type=region))


def student_maps(step: DistillationContext) -> list[Tensor]:
    return [level for name in MAPS for level in getattr(step.student, name)]


def loss_and_gradients(
    distiller: Distiller, step: DistillationContext, whole: DistillationContext
) -> tuple[Tensor, list[Tensor]]:
    """Gradients in the maps of ``whole``, of whose images ``step`` is made."""
    loss = distiller(step)
    gradients = torch.autograd.grad(
        loss, student_maps(whole), allow_unused=True, materialize_grads=True
    )
    return loss.detach(), list(gradients)


def relabelled(assignment: Assignment, labels: Tensor) -> Assignment:
    """Other labels; every positive belongs to its image's first object."""
    return replace(
        assignment,
        labels=labels,
        positive_gts=[(image < 3).nonzero()[:, 0] * 0 for image in labels],
    )


def with_maps(dense: DenseOutputs, change) -> DenseOutputs:
    return replace(dense, **{name: [change(m) for m in getattr(dense, name)] for name in MAPS})


@in_every_way
@pytest.mark.parametrize('images', [[2, 0, 3, 1], [0, 1, 2, 3] * 2], ids=['permuted', 'repeated'])
def test_the_same_images_give_the_same_loss(
    step: DistillationContext, cfg: dict[str, Any], images: Sequence[int]
) -> None:
    distiller = make(step, **cfg)
    loss, gradients = loss_and_gradients(distiller, step, step)
    again, gradients_again = loss_and_gradients(distiller, take_images(step, images), step)
    assert loss > 0
    torch.testing.assert_close(again, loss)
    for ours, expected in zip(gradients_again, gradients, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize('region', sorted(REGIONS.module_dict))
def test_halves_of_a_batch_average_to_the_loss_of_the_whole(
    step: DistillationContext, region: str
) -> None:
    distiller = make(step, type='LocalizationDistiller', region=dict(type=region))
    halves = [distiller(take_images(step, images)) for images in ([0, 1], [2, 3])]
    torch.testing.assert_close(sum(halves) / 2, distiller(step))


@on_every_region
def test_an_equal_teacher_teaches_nothing(step: DistillationContext, cfg: dict[str, Any]) -> None:
    distiller = make(step, **cfg)
    equal = replace(step, teacher=with_maps(step.student, Tensor.detach))
    loss, gradients = loss_and_gradients(distiller, equal, equal)
    assert loss.abs() < 1e-6
    assert all(gradient.abs().max() < 1e-6 for gradient in gradients)


@every_distiller
def test_a_batch_without_ground_truth(step: DistillationContext, cfg: dict[str, Any]) -> None:
    empty = replace(
        step,
        assignment=relabelled(step.assignment, torch.full_like(step.assignment.labels, 3)),
        gt_bboxes=[torch.zeros(0, 4)] * 4,
    )
    for region in (
        'MainRegion',
        'ValuableLocalizationRegion',
        'InsideGTRegion',
        'FineGrainedRegion',
    ):
        check_zero(make(empty, **on_region(cfg, region)), empty)


@in_every_way
def test_images_without_positives_repeated(step: DistillationContext, cfg: dict[str, Any]) -> None:
    """Of background alone there may be a loss, and it is no larger for more of it."""
    labels = torch.full_like(step.assignment.labels, 3)
    empty = replace(step, assignment=relabelled(step.assignment, labels))
    distiller = make(empty, **cfg)
    loss = distiller(empty)
    torch.testing.assert_close(distiller(take_images(empty, [0, 1, 2, 3] * 2)), loss)


@in_every_way
def test_a_batch_that_is_ignored_altogether(step: DistillationContext, cfg: dict[str, Any]) -> None:
    nothing = torch.zeros_like(step.assignment.valid)
    ignored = replace(
        step,
        assignment=replace(
            step.assignment,
            label_weights=nothing.float(),
            valid=nothing,
            positive_gts=[torch.zeros(0, dtype=torch.int64)] * 4,
        ),
    )
    check_zero(make(ignored, **cfg), ignored)


def check_zero(distiller: Distiller, step: DistillationContext) -> None:
    loss = distiller(step)
    assert loss == 0
    loss.backward()
    gradients = [m.grad for m in student_maps(step) if m.grad is not None]
    assert gradients  # defined, so that no parameter counts as unused
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize('cfg', ANYWHERE.values(), ids=ANYWHERE)
def test_one_positive_in_a_batch_of_one(cfg: dict[str, Any]) -> None:
    step = context(images=1)
    labels = torch.full_like(step.assignment.labels, 3)
    labels[0, 5] = 1
    step = replace(step, assignment=relabelled(step.assignment, labels))
    loss, gradients = loss_and_gradients(
        make(step, **dict(cfg, region=dict(type='MainRegion'))), step, step
    )
    assert loss > 0
    # in every map that it reads
    assert {int((g != 0).any(1).sum()) for g in gradients} == {0, 1}


@in_every_way
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_maps_give_nearly_the_same_loss(
    step: DistillationContext, cfg: dict[str, Any], dtype: torch.dtype
) -> None:
    distiller = make(step, **cfg)
    half = replace(
        step,
        student=with_maps(step.student, lambda m: m.detach().to(dtype).requires_grad_()),
        teacher=with_maps(step.teacher, lambda m: m.to(dtype)),
    )
    # the same values in float32, so that the regions are the same, too
    full = replace(
        step,
        student=with_maps(half.student, lambda m: m.detach().float().requires_grad_()),
        teacher=with_maps(half.teacher, Tensor.float),
    )
    loss, gradients = loss_and_gradients(distiller, half, half)
    expected, expected_gradients = loss_and_gradients(distiller, full, full)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=2e-3, atol=1e-5)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.float(), theirs, rtol=2e-2, atol=1e-4)


def divergences(step: DistillationContext) -> np.ndarray:
    """LD of every prior of four images, the sum over its sides: (N, P)."""

    def rows(dense: DenseOutputs) -> np.ndarray:
        levels = [
            m.detach().permute(0, 2, 3, 1).reshape(4, -1, 4, 5).numpy() for m in dense.box_maps
        ]
        return np.concatenate(levels, axis=1)

    return brute_force.kl(rows(step.student), rows(step.teacher), temperature=10).sum(-1)


def test_localization_distillation_of_every_position(step: DistillationContext) -> None:
    assigned: Assignment = step.assignment
    scores = torch.cat([step.student.level_class_logits(i).detach() for i in range(3)], dim=1)
    weights = scores.sigmoid().max(-1).values * assigned.positive
    # reference_images 3, four images, divisor 4, loss weight 0.25
    expected = 0.25 * (weights.numpy() * divergences(step)).sum() / 4 * 3 / 4
    ours = make(step, type='LocalizationDistiller', region=dict(type='MainRegion'))(step)
    assert ours.item() == pytest.approx(expected, rel=1e-4)


def test_localization_distillation_of_all_negatives(step: DistillationContext) -> None:
    """As published for FCOS: they count alike, and 16 divides their sum."""
    negative = (step.assignment.valid & ~step.assignment.positive).numpy()
    expected = 0.25 * (negative * divergences(step)).sum() / 16 * 3 / 4
    region = dict(type='EverywhereRegion', exclude_positives=True)
    ours = make(step, type='LocalizationDistiller', region=region)(step)
    assert ours.item() == pytest.approx(expected, rel=1e-4)


def test_classification_distillation_averages_over_every_level(step: DistillationContext) -> None:
    expected = 0.0
    positives = step.assignment.positive.split(step.student.num_level_priors, dim=1)
    for level, positive in enumerate(positives):
        rows = [m.level_class_logits(level).detach().numpy() for m in (step.student, step.teacher)]
        expected += 10 * brute_force.kl(*rows, temperature=2)[positive.numpy()].mean()
    ours = make(step, type='ClassificationDistiller', region=dict(type='MainRegion'))(step)
    assert ours.item() == pytest.approx(expected, rel=1e-4)


def test_feature_distillation_averages_over_every_levels_cells(step: DistillationContext) -> None:
    expected, positives = 0.0, step.assignment.positive.split(step.student.num_level_priors, dim=1)
    for level, ((h, w, a), positive) in enumerate(
        zip(step.student.level_shapes, positives, strict=True)
    ):
        cells = positive.view(4, h, w, a).any(-1)
        squares = (step.student.features[level].detach() - step.teacher.features[level]) ** 2
        expected += 2 * squares.mean(1)[cells].mean().item()
    ours = make(step, type='FeatureDistiller', region=dict(type='MainRegion'))(step)
    assert ours.item() == pytest.approx(expected, rel=1e-4)
