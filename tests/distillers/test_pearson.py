"""PKD on contexts: its statistics are the batch's."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from ld_plugin.dense import DistillationContext
from ld_plugin.distillers import FeatureDistiller, feature
from ld_plugin.losses import DistillationLoss, PearsonFeatureLoss
from ld_plugin.recipes import pkd
from ld_plugin.regions import EverywhereRegion, MainRegion
from tests import contexts
from tests.contexts import context, take_images

make = partial(contexts.make, **pkd['pkd'])


@pytest.fixture(params=[1, 9], ids=['1 prior per cell', '9 priors per cell'])
def step(request: pytest.FixtureRequest) -> DistillationContext:
    return context(images=4, priors_per_cell=request.param)


def test_every_level_has_its_own_statistics(step: DistillationContext) -> None:
    loss, expected = PearsonFeatureLoss(6), 0.0
    valid = step.assignment.valid.split(step.student.num_level_priors, dim=1)
    for level, (h, w, a) in enumerate(step.student.level_shapes):
        cells = valid[level].view(4, h, w, a).any(-1)
        expected += loss(
            step.student.features[level].movedim(1, -1)[cells],
            step.teacher.features[level].movedim(1, -1)[cells],
        )
    torch.testing.assert_close(make(step)(step), expected)


def test_the_order_of_images_does_not_matter(step: DistillationContext) -> None:
    torch.testing.assert_close(make(step)(take_images(step, [2, 0, 3, 1])), make(step)(step))


def test_repeated_images_change_the_unbiased_deviation_alone(step: DistillationContext) -> None:
    once, twice = (make(step)(take_images(step, [0, 1, 2, 3] * n)).item() for n in (1, 2))
    # one level has 11 valid cells or fewer; n / (n - 1) would make them equal
    assert twice == pytest.approx(once, rel=0.1)


def test_an_equal_teacher_teaches_nothing(step: DistillationContext) -> None:
    features = [level.detach() for level in step.student.features]
    equal = replace(step, teacher=replace(step.teacher, features=features))
    loss = make(step)(equal)
    loss.backward()
    assert loss == 0
    assert not any(level.grad.any() for level in step.student.features)


def test_a_scaled_and_shifted_teacher_teaches_nothing(step: DistillationContext) -> None:
    features = [50 * level.detach() - 7 for level in step.student.features]
    step = replace(step, teacher=replace(step.teacher, features=features))
    assert make(step)(step).item() == pytest.approx(0, abs=1e-6)


def test_a_teacher_of_another_kind_and_width(step: DistillationContext) -> None:
    spec = replace(step.teacher.spec, feature_channels=5, num_bins=None, num_classes=80)
    features = [torch.randn(4, 5, *level.shape[2:]) for level in step.teacher.features]
    teacher = replace(step.teacher, spec=spec, features=features, class_maps=(), box_maps=())
    step = replace(step, teacher=teacher)
    distiller = make(step)
    distiller(step).backward()
    assert distiller.adapter.weight.grad.abs().sum() > 0
    assert all(level.grad.isfinite().all() for level in step.student.features)


def test_levels_with_a_single_position_or_none(step: DistillationContext) -> None:
    labels = torch.full_like(step.assignment.labels, 3)
    labels[0, 0] = 1
    step = replace(step, assignment=replace(step.assignment, labels=labels))
    loss = make(step, region=dict(type='MainRegion'))(step)
    loss.backward()
    assert loss == 0
    assert not any(level.grad.any() for level in step.student.features)


class SimilarityLoss(DistillationLoss):
    """How much the cells' similarities differ: every cell and every channel counts for all."""

    rows_are_independent = False

    def elementwise(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        differences = student @ student.t() - teacher.detach() @ teacher.detach().t()
        return differences.square().mean(1)


def test_a_loss_of_cells_and_channels_together_sees_whole_levels(
    step: DistillationContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature, 'pieces_of', lambda level, **_: level.shape[1])
    loss, expected = SimilarityLoss(), 0.0
    for student, teacher in zip(step.student.features, step.teacher.features, strict=True):
        valid = torch.ones(4, *student.shape[2:], dtype=torch.bool)
        valid[1::2, :, -1] = False  # the padding of every second image
        maps = student.movedim(1, -1), teacher.movedim(1, -1)
        expected += loss(maps[0][valid], maps[1][valid])
    distiller = FeatureDistiller(EverywhereRegion(), loss)
    distiller.prepare(step.student.spec, step.teacher.spec, 'x')
    torch.testing.assert_close(distiller(step), expected)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(step: DistillationContext, dtype: torch.dtype) -> None:
    def with_type(kind: torch.dtype) -> DistillationContext:
        halves = [
            replace(dense, features=[level.detach().to(dtype).to(kind) for level in dense.features])
            for dense in (step.student, step.teacher)
        ]
        return replace(step, student=halves[0], teacher=halves[1])

    loss = make(step)(with_type(dtype))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, make(step)(with_type(torch.float32)))


class SquareLoss(DistillationLoss):
    """As somebody writes it who does not think of half precision."""

    def elementwise(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return (student - teacher).square().mean(-1)


@pytest.mark.parametrize('region', [EverywhereRegion, MainRegion])
def test_a_loss_of_ones_own_does_not_overflow(step: DistillationContext, region: type) -> None:
    student, teacher = (
        replace(dense, features=[torch.full_like(x, value).half() for x in dense.features])
        for dense, value in ((step.student, 300), (step.teacher, -300))
    )
    distiller = FeatureDistiller(region(), SquareLoss())
    distiller.prepare(student.spec, teacher.spec, 'x')
    assert distiller(replace(step, student=student, teacher=teacher)) == 3 * 600**2
