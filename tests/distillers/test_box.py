"""BCKD on contexts: values position by position, other losses and regions, bad configs."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.models.losses import GIoULoss
from mmdet.registry import MODELS
from mmengine.registry import DefaultScope

from ld_plugin.dense import DistillationContext
from ld_plugin.distillers import build_distillers
from ld_plugin.distillers.box import OF_HORIZONTAL_BOXES, weighted_box_loss
from ld_plugin.errors import ConfigError
from ld_plugin.losses import BoxLoss
from ld_plugin.regions.geometry import general_instance_scores
from tests import brute_force, needs
from tests.contexts import context, make, rows


@pytest.fixture(params=[1, 9], ids=['1 prior per cell', '9 priors per cell'])
def step(request: pytest.FixtureRequest) -> DistillationContext:
    return context(images=3, priors_per_cell=request.param)


def test_classification_everywhere(step: DistillationContext) -> None:
    distiller = make(
        step,
        type='ClassificationDistiller',
        region=dict(type='EverywhereRegion'),
        loss=dict(type='BinaryKDLoss', loss_weight=2),
        normalizer='positives',
    )
    each = brute_force.binary_kl(*rows(step, 'level_class_logits'), beta=1).sum(-1)
    assigned = step.assignment
    expected = 2 * (each * assigned.valid.numpy()).sum() / assigned.positive.sum().item()
    assert distiller(step).item() == pytest.approx(expected, rel=1e-5)


def test_classification_everywhere_averaged_on_every_level(step: DistillationContext) -> None:
    distiller = make(
        step,
        type='ClassificationDistiller',
        region=dict(type='EverywhereRegion'),
        loss=dict(type='BinaryKDLoss'),
    )
    each = brute_force.binary_kl(*rows(step, 'level_class_logits'), beta=1).sum(-1)
    valid = step.assignment.valid.numpy()
    ends = np.cumsum(step.student.num_level_priors)[:-1]
    levels = zip(np.split(each, ends, axis=1), np.split(valid, ends, axis=1), strict=True)
    expected = sum(values[counted].mean() for values, counted in levels)
    assert distiller(step).item() == pytest.approx(expected, rel=1e-5)


def expected_box_loss(step: DistillationContext, weights: np.ndarray) -> float:
    scores = [brute_force.sigmoid(z) for z in rows(step, 'level_class_logits')]
    weights = weights * np.abs(scores[0] - scores[1]).max(-1)
    boxes = [b.reshape(-1, 4) for b in rows(step, 'level_boxes')]
    giou = np.array([brute_force.generalized_iou(*pair) for pair in zip(*boxes, strict=True)])
    total = (weights.reshape(-1) * (1 - giou)).sum()
    return 4 * total / max(step.assignment.positive.sum().item(), 1)


def test_boxes_everywhere(step: DistillationContext) -> None:
    expected = expected_box_loss(step, step.assignment.valid.numpy())
    loss = make(step, type='BoxDistiller')(step)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert all(level.grad is None for level in step.student.class_maps)
    assert all(level.grad.abs().sum() > 0 for level in step.student.box_maps)


def test_boxes_of_the_positives(step: DistillationContext) -> None:
    expected = expected_box_loss(step, step.assignment.positive.numpy())
    loss = make(step, type='BoxDistiller', region=dict(type='MainRegion'))(step)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert all(level.grad is None for level in step.student.class_maps)


def test_boxes_of_no_positives_have_no_loss_and_a_gradient(step: DistillationContext) -> None:
    nothing = replace(step.assignment, labels=torch.full_like(step.assignment.labels, 3))
    distiller = make(step, type='BoxDistiller', region=dict(type='MainRegion'))
    loss = distiller(replace(step, assignment=nothing))
    assert loss == 0
    loss.backward()
    assert not any(level.grad.any() for level in step.student.box_maps)


@pytest.mark.parametrize('loss', ['IoULoss', 'DIoULoss', 'CIoULoss', 'L1Loss', 'SmoothL1Loss'])
@pytest.mark.parametrize('region', ['EverywhereRegion', 'MainRegion'])
def test_other_stock_losses(step: DistillationContext, loss: str, region: str) -> None:
    distiller = make(
        step, type='BoxDistiller', loss=dict(type=loss, loss_weight=2), region=dict(type=region)
    )
    value = distiller(step)
    value.backward()
    assert 0 < value < 1e4
    assert all(level.grad.isfinite().all() for level in step.student.box_maps)


class Column(GIoULoss):
    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return super().forward(*args, **kwargs)[:, None]


def test_a_loss_may_give_a_column(step: DistillationContext) -> None:
    found, expected = (
        make(step, type='BoxDistiller', loss=dict(type=loss))(step) for loss in (Column, GIoULoss)
    )
    assert torch.equal(found, expected)


def test_the_loss_is_found_whatever_the_default_scope_is(step: DistillationContext) -> None:
    with DefaultScope.overwrite_default_scope('mmrotate'):
        distiller = make(step, type='BoxDistiller', loss=dict(type='GIoULoss', loss_weight=4))
    assert type(distiller.loss).__name__ == 'GIoULoss'


def test_boxes_of_a_teacher_need_no_gradient(step: DistillationContext) -> None:
    student, teacher = step.student.spec, replace(step.teacher.spec, boxes_have_gradient=False)
    cfg = dict(x=dict(type='BoxDistiller'))
    build_distillers(cfg, student, teacher)
    with pytest.raises(ConfigError, match=r'^model\.distillers\.x: the boxes .* pass no grad'):
        build_distillers(cfg, teacher, student)


def test_background_is_a_matter_of_class_scores(step: DistillationContext) -> None:
    teacher = replace(step.teacher.spec, rates_objects_alone=True)
    everywhere = dict(region=dict(type='EverywhereRegion'))
    for name in ('LocalizationDistiller', 'QualityDistiller'):
        build_distillers(dict(x=dict(type=name, **everywhere)), step.student.spec, teacher)
    with pytest.raises(ConfigError, match='the class scores of Head say nothing where there is no'):
        cfg = dict(type='ClassificationDistiller', **everywhere)
        build_distillers(dict(x=cfg), step.student.spec, teacher)


def test_a_loss_is_missed_by_its_key_without_a_default_scope(
    step: DistillationContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DefaultScope, 'get_current_instance', lambda: None)
    with pytest.raises(ConfigError, match=r"^model\.distillers\.x\.loss\.type: 'GDLos' is not a"):
        make(step, type='BoxDistiller', loss=dict(type='GDLos'))


def test_boxes_inside_out_are_bounded(step: DistillationContext) -> None:
    def negative(rows: torch.Tensor, priors: torch.Tensor, strides: torch.Tensor) -> torch.Tensor:
        return priors + 30 * rows[:, :4]

    step = replace(
        step,
        student=replace(step.student, decoder=negative),
        teacher=replace(step.teacher, decoder=negative),
    )
    loss = make(step, type='BoxDistiller')(step)
    loss.backward()
    positions = step.assignment.valid.sum()
    assert 0 < loss <= 4 * 2 * positions / step.assignment.positive.sum()
    assert all(level.grad.abs().max() < 100 for level in step.student.box_maps)


EQUAL, APART = [4, 4, 12, 12], [30, 30, 40, 36]
POINT, LINE, INSIDE_OUT = [8, 8, 8, 8], [8, 4, 8, 9], [9, 9, 4, 4]


@pytest.mark.parametrize('loss', ['BoxLoss', *(kind.__name__ for kind in OF_HORIZONTAL_BOXES)])
@pytest.mark.parametrize(
    ('student', 'teacher'),
    [(EQUAL, EQUAL), (POINT, POINT), (LINE, LINE), (INSIDE_OUT, INSIDE_OUT), (POINT, APART)]
    + [(POINT, EQUAL), (EQUAL, POINT), (INSIDE_OUT, EQUAL), (LINE, [8, 5, 8, 9]), (APART, LINE)],
)
def test_boxes_that_stock_losses_cannot_compare(
    loss: str, student: list[float], teacher: list[float]
) -> None:
    """CIoU is no number between equal boxes, SIoU between those without extent."""
    boxes = torch.tensor([student, EQUAL], dtype=torch.float32).requires_grad_()
    others = torch.tensor([teacher, APART], dtype=torch.float32)
    with DefaultScope.overwrite_default_scope('mmdet'):
        compare = MODELS.build(dict(type=loss))
    value = weighted_box_loss(compare, boxes, others, torch.tensor([1.0, 0.5]))
    value.backward()
    alone = compare(boxes[1:], others[1:], reduction_override='none').detach().sum()
    if student == teacher:
        assert value.item() == 0.5 * alone
        assert not boxes.grad[0].any()
    assert value.isfinite()
    assert boxes.grad.abs().max() < 1e3


@pytest.mark.parametrize('side', range(4))
def test_boxes_that_share_three_sides_differ(side: int) -> None:
    student, teacher = torch.tensor([[EQUAL], [EQUAL]], dtype=torch.float32)
    teacher[0, side] += 2
    expected = GIoULoss()(student, teacher)
    assert expected > 0
    assert weighted_box_loss(BoxLoss(), student, teacher, torch.ones(1)) == expected


@pytest.mark.parametrize('loss', ['BoxLoss', *(kind.__name__ for kind in OF_HORIZONTAL_BOXES)])
@pytest.mark.parametrize('weight', [0.0, 1.0])
def test_boxes_whose_area_overflows(loss: str, weight: float) -> None:
    """As the exponential of a background cell's offset may be."""
    huge = [-1e19, -2e19, 3e19, 4e19]
    boxes = torch.tensor([huge, EQUAL, huge], dtype=torch.float32).requires_grad_()
    others = torch.tensor([EQUAL, APART, [-2e19, -2e19, 3e19, 5e19]])
    with DefaultScope.overwrite_default_scope('mmdet'):
        compare = MODELS.build(dict(type=loss))
    value = weighted_box_loss(compare, boxes, others, torch.tensor([weight, 1.0, weight]))
    value.backward()
    alone = compare(boxes[1:2], others[1:2], reduction_override='none').detach().sum()
    assert value.isfinite()
    assert boxes.grad.isfinite().all()
    assert value.item() >= alone.item()
    assert weight or value.item() == alone.item()


@needs.mmrotate
@pytest.mark.parametrize('loss', ['GDLoss', 'GDLoss_v1'])
@pytest.mark.parametrize('kind', ['kld', 'gwd'])
def test_rotated_boxes_that_stock_losses_cannot_compare(loss: str, kind: str) -> None:
    """Without a width, inside out, or so thin that a determinant rounds to 0."""
    with DefaultScope.overwrite_default_scope('mmrotate'):
        compare = MODELS.build(dict(type=loss, loss_type=kind))
    good = [30.0, 30, 20, 10, 0.3]
    odd = [[30.0, 30, 0, 10, 0.3], [30.0, 30, -4, -9, 0.3], [30.0, 30, 4e4, 1e-3, 0.3]]
    boxes = torch.tensor([good, *odd, *odd]).requires_grad_()
    others = torch.tensor([[32.0, 30, 20, 12, 0.1], *([good] * 3), *odd]) + 0.25
    value = weighted_box_loss(compare, boxes, others, torch.ones(7))
    value.backward()
    assert value > 0
    assert value.isfinite()
    assert value.dtype == torch.float32
    assert boxes.grad.isfinite().all()
    assert boxes.grad[0].any()


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        (
            dict(type='BoxDistiller', loss=dict(type='GIoUloss')),
            "^model.distillers.x.loss.type: 'GIoUloss' is not a registered model. "
            r"Did you mean 'GIoULoss'\? One of your own must",  # and not hundreds of others
        ),
        (
            dict(type='BoxDistiller', loss=dict(type='GIoULoss', loss_weight=-4)),
            '^model.distillers.x.loss.loss_weight: found -4, expected a finite number',
        ),
        (
            dict(type='BoxDistiller', loss=dict(type='FocalLoss')),
            '^model.distillers.x.loss: found FocalLoss, which compares class scores, expected a',
        ),
        (
            dict(type='BoxDistiller', loss=dict(type='CrossEntropyLoss')),
            '^model.distillers.x.loss: found CrossEntropyLoss, which compares class scores',
        ),
        (
            dict(type='BoxDistiller', loss=dict(type='KnowledgeDistillationKLDivLoss', T=10)),
            '^model.distillers.x.loss: found KnowledgeDistillationKLDivLoss, which compares class',
        ),
        (
            dict(type='BoxDistiller', loss=dict(type='DistributionFocalLoss')),
            '^model.distillers.x.loss: found DistributionFocalLoss, which does not compare '
            r'horizontal boxes \(RuntimeError: .*\). Expected',
        ),
        (
            dict(type='BoxDistiller', loss=dict(type='ResNet', depth=18)),
            r'^model.distillers.x.loss: found ResNet, which does not .* \(TypeError: .*\). Exp',
        ),
        (
            dict(type='BoxDistiller', loss=dict(type='GIoULoss', weight=4)),
            '^model.distillers.x.loss: GIoULoss cannot be built.*weight.*It accepts: eps',
        ),
        (
            dict(type='BoxDistiller', loss=dict(type='IoULoss', mode='cubic')),
            '^model.distillers.x.loss: IoULoss cannot be built',
        ),
        (
            dict(type='ClassificationDistiller', normalizer='images'),
            "^model.distillers.x.normalizer: found 'images', expected one of",
        ),
        (
            dict(type='ClassificationDistiller', weights='scores'),
            "^model.distillers.x.weights: found 'scores', expected one of",
        ),
        (
            dict(type='LocalizationDistiller', normalizer='positives'),
            "^model.distillers.x.normalizer: found 'positives', expected one of",
        ),
        (
            dict(type='ClassificationDistiller', loss=dict(type='BinaryKDLoss', beta=0.1)),
            '^model.distillers.x.loss.beta: found 0.1',
        ),
    ],
)
def test_bad_configs(step: DistillationContext, cfg: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(step, **cfg)


@pytest.mark.parametrize(
    'loss', [dict(type='GDLoss', loss_type='kld'), dict(type='RotatedIoULoss')]
)
def test_losses_of_rotated_boxes_between_horizontal_ones(
    step: DistillationContext, loss: dict
) -> None:
    pytest.importorskip('mmrotate')
    start = f'^model.distillers.x.loss: found {loss["type"]}, which does not compare horizontal b'
    with pytest.raises(ConfigError, match=start):
        make(step, type='BoxDistiller', loss=dict(loss, type=f'mmrotate.{loss["type"]}'))


@pytest.mark.parametrize('region', ['MainRegion', 'EverywhereRegion'])
def test_boxes_count_with_their_label_weight(step: DistillationContext, region: str) -> None:
    """Which train_cfg.pos_weight sets."""
    distiller = make(step, type='BoxDistiller', region=dict(type=region))
    twice = replace(step.assignment, label_weights=2 * step.assignment.label_weights)
    expected = 2 * distiller(step)
    assert expected > 0
    torch.testing.assert_close(distiller(replace(step, assignment=twice)), expected)


def test_boxes_everywhere_are_positives_and_the_others(step: DistillationContext) -> None:
    everywhere = dict(type='EverywhereRegion')
    regions = everywhere, dict(type='MainRegion'), dict(everywhere, exclude_positives=True)
    whole, *parts = (make(step, type='BoxDistiller', region=region)(step) for region in regions)
    assert all(part > 0 for part in parts)
    torch.testing.assert_close(sum(parts), whole)


def test_priors_of_the_teacher_elsewhere_in_their_cells() -> None:
    """Between FCOS, whose points lie in the middle, and ATSS."""
    step = context(images=2)
    priors = step.teacher.priors + 4
    step = replace(step, teacher=replace(step.teacher, make_priors=lambda: priors))
    student, teacher = step.student, step.teacher
    cfg = dict(type='BoxDistiller', loss=dict(type='GIoULoss'))
    distiller = build_distillers(dict(box=cfg), student.spec, teacher.spec)['box']
    at = step.select(distiller.region).priors
    weights, _ = general_instance_scores(student.class_logits(at), teacher.class_logits(at))
    weights = weights * at.take(step.assignment.label_weights)
    with DefaultScope.overwrite_default_scope('mmdet'):
        loss = MODELS.build(dict(type='GIoULoss'))
    each = loss(student.boxes(at), teacher.boxes(at), reduction_override='none')
    torch.testing.assert_close(distiller(step), (each * weights).sum() / step.mean_num_positives)


@pytest.mark.parametrize(
    'cfg',
    [
        dict(type='ClassificationDistiller', region=dict(type='EverywhereRegion')),
        dict(type='FeatureDistiller'),
        dict(type='FeatureDistiller', region=dict(type='MainRegion')),
        dict(type='PredictionGuidedFeatureDistiller'),
        dict(type='DecoupledFeatureDistiller'),
        dict(type='DecoupledClassificationDistiller'),
        dict(type='RankDistiller'),
    ],
    ids=lambda cfg: '-'.join([cfg['type'], *cfg.get('region', {}).values()]),
)
def test_positions_are_averaged_over_the_processes(
    step: DistillationContext, cfg: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    distiller = make(step, **cfg)
    alone = distiller(step).item()
    # as beside a process of three times as many positions
    monkeypatch.setattr('ld_plugin.dense.positions.reduce_mean', lambda count: 2 * count)
    assert distiller(replace(step)).item() == pytest.approx(alone / 2, rel=1e-5)


@pytest.mark.parametrize(
    'cfg',
    [
        dict(type='LocalizationDistiller', region=dict(type='MainRegion')),
        dict(type='ClassificationDistiller', normalizer='positives'),
        dict(type='QualityDistiller'),
    ],
    ids=['images', 'positives', 'positives of the quality'],
)
def test_what_a_sum_is_divided_by_is_averaged_over_the_processes(
    step: DistillationContext, cfg: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = make(step, **cfg)(step).item()
    # as beside a process of three times as many
    monkeypatch.setattr('ld_plugin.dense.context.reduce_mean', lambda count: 2 * count)
    assert make(step, **cfg)(replace(step)).item() == pytest.approx(alone / 2, rel=1e-5)


@pytest.mark.parametrize('value', [torch.nan, torch.inf])
def test_boxes_that_do_not_count_may_be_anything(value: float) -> None:
    student = torch.tensor([[0.0, 0, 8, 8], [value] * 4], requires_grad=True)
    teacher = torch.tensor([[1.0, 1, 9, 9], [0, 0, 4, 4]])
    loss = weighted_box_loss(BoxLoss(), student, teacher, torch.tensor([1.0, 0]))
    alone = weighted_box_loss(BoxLoss(), student[:1], teacher[:1], torch.ones(1))
    assert loss.item() == pytest.approx(alone.item())
    loss.backward()
    assert student.grad.isfinite().all()


def test_qualities_of_a_region_with_weights_count_alike(step: DistillationContext) -> None:
    region = dict(type='ValuableLocalizationRegion')
    distiller = make(step, type='QualityDistiller', region=region)
    student, teacher = (
        torch.cat([level.movedim(1, -1).flatten(1) for level in outputs.quality_maps], dim=1)
        for outputs in (step.student, step.teacher)
    )
    at = step.select(distiller.region).weights > 0
    assert at.any()
    expected = brute_force.binary_kl(student[at].detach().numpy(), teacher[at].numpy(), 0).sum()
    expected /= step.assignment.positive.sum(1).clamp(min=1).sum()
    assert distiller(step).item() == pytest.approx(expected.item(), rel=1e-5)
