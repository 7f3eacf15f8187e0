"""The registered regions, on contexts of several images with padding."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from mmcv.ops import nms
from torch import Tensor

from ld_plugin.dense import DistillationContext
from ld_plugin.distillers import build_distillers
from ld_plugin.errors import ConfigError
from ld_plugin.regions import (
    BackgroundRegion,
    EverywhereRegion,
    FineGrainedRegion,
    GIRegion,
    GTCellsRegion,
    InsideGTRegion,
    MainRegion,
    OverlapRegion,
    Region,
    ValuableLocalizationRegion,
    base,
)
from ld_plugin.regions.geometry import fine_grained_region, overlap_region
from tests import brute_force
from tests.contexts import context, take_images
from tests.operators import Operators

REGIONS = [
    MainRegion(),
    ValuableLocalizationRegion(),
    ValuableLocalizationRegion(overlap='diou', exclude_positives=True),
    FineGrainedRegion(),
    OverlapRegion(),
    InsideGTRegion(),
    BackgroundRegion(),
    EverywhereRegion(),
    EverywhereRegion(exclude_positives=True),
    GIRegion(topk=3),
]
every_region = pytest.mark.parametrize('region', REGIONS, ids=lambda r: type(r).__name__)


@pytest.fixture(params=[1, 2], ids=['1 prior per cell', '2 priors per cell'])
def step(request: pytest.FixtureRequest) -> DistillationContext:
    return context(images=4, priors_per_cell=request.param)


def by_image(step: DistillationContext) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (gts.numpy(), valid.numpy())
        for gts, valid in zip(step.gt_bboxes, step.assignment.valid, strict=True)
    ]


@every_region
def test_every_region_leaves_out_the_padding(step, region):
    weights = region(step).weights
    assert weights.shape == step.assignment.valid.shape
    assert weights.any()
    assert not weights[~step.assignment.valid].any()


@every_region
def test_images_do_not_influence_one_another(step, region):
    weights = region(step).weights
    order = [2, 0, 3, 1]
    assert torch.equal(region(take_images(step, order)).weights, weights[order])
    for image in order:
        alone = region(take_images(step, [image])).weights
        assert torch.equal(alone, weights[image : image + 1])


@pytest.mark.parametrize(
    'region',
    [
        ValuableLocalizationRegion(),
        OverlapRegion(),
        FineGrainedRegion(),
        GTCellsRegion(),
        GTCellsRegion(levels='assigner'),
    ],
    ids=lambda r: type(r).__name__,
)
def test_more_images_do_not_take_more_operators(region):
    """A GPU waits for every one of them, however small it is."""
    seen = []
    for images in (3, 12):
        step = context(images=images)
        assert len(step.student.priors) > 0  # made when somebody first looks
        with Operators() as operators:
            region(step)
        seen.append(operators)
    few, many = seen
    # what an image adds: its ground truths are copied beside the others', and counted
    assert many.number <= few.number + 2 * (12 - 3)
    assert many.waits == few.waits


@pytest.mark.parametrize(
    ('most', 'expected'),
    [
        (6, [[0, 0, 0, 1, 1, 2]]),
        (5, [[0, 0, 0, 1, 1], [0]]),
        (2, [None, None, [0]]),
        (0, [None] * 4),
    ],
)
def test_images_are_looked_at_in_groups(step, most, expected, monkeypatch):
    """Of as many ground truths as the device takes at once; here the images have 3, 2, 1, 0."""
    size = len(step.student.priors)
    monkeypatch.setattr(base, 'numbers_at_once', lambda x: most * size)
    seen, rows = [], []

    def region(priors: Tensor, gt_bboxes: Tensor, *, valid: Tensor, image: Tensor | None) -> Tensor:
        seen.append(image if image is None else image.tolist())
        rows.append(gt_bboxes)
        return valid

    assert torch.equal(base.of_all_images(region, step, rotated=False), step.assignment.valid)
    assert seen == expected
    assert torch.equal(torch.cat(rows), torch.cat(list(step.gt_bboxes)))


@every_region
def test_no_gradient_reaches_a_region(step, region):
    selection = region(step)
    assert not selection.weights.requires_grad
    assert not region.position_weight(step, selection).requires_grad


@every_region
def test_ignored_images_are_in_no_region(step, region):
    nothing = torch.zeros_like(step.assignment.valid)
    ignored = replace(step.assignment, label_weights=nothing.float(), valid=nothing)
    selection = region(replace(step, assignment=ignored))
    assert not selection.weights.any()
    assert selection.priors.counts.tolist() == [0, 0, 0]


@pytest.mark.parametrize('kind', ['iof', 'diou'])
@pytest.mark.parametrize('exclude_positives', [True, False])
def test_valuable_localization_region(step, kind, exclude_positives):
    # an even number, because the two priors of a cell are equally near
    region = ValuableLocalizationRegion(topk=8, overlap=kind, exclude_positives=exclude_positives)
    ours = region(step).weights
    counts, priors = step.student.num_level_priors, step.student.priors.numpy()
    expected = np.stack(
        [brute_force.vlr(priors, gts, counts, valid, kind, topk=8) for gts, valid in by_image(step)]
    )
    positive = step.assignment.positive.numpy()
    assert (expected[positive] > 0).any()
    if exclude_positives:
        expected[positive] = 0
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-5)
    position_weight = region.position_weight(step, region(step))
    assert position_weight.sum().item() == pytest.approx(expected.sum(), rel=1e-4)


def test_main_region_weights_positives_by_the_students_best_score(step):
    region = MainRegion()
    selection = region(step)
    positive = (step.assignment.labels < 3) & step.assignment.valid
    assert torch.equal(selection.weights, positive)
    scores = torch.cat(
        [step.student.level_class_logits(level).detach() for level in range(3)], dim=1
    ).sigmoid()
    ours = region.position_weight(step, selection)
    expected = scores.max(-1).values[positive]
    torch.testing.assert_close(ours.sort().values, expected.sort().values)


def test_scores_of_half_precision_are_computed_in_float32(step):
    region, maps = MainRegion(), [level.bfloat16() for level in step.student.class_maps]
    found, expected = (
        region.position_weight(replace(step, student=replace(step.student, class_maps=m)), at)
        for m, at in [(maps, region(step)), ([level.float() for level in maps], region(step))]
    )
    assert torch.equal(found, expected)


def test_a_positive_of_weight_zero_is_none(step):
    weights = torch.zeros_like(step.assignment.label_weights)
    assert not replace(step.assignment, label_weights=weights).positive.any()


def test_inside_and_background_share_out_the_image(step):
    inside, background = InsideGTRegion()(step).weights, BackgroundRegion()(step).weights
    priors = step.student.priors.numpy()
    for image, (gts, valid) in enumerate(by_image(step)):
        np.testing.assert_array_equal(inside[image], brute_force.inside_gt(priors, gts, valid))
    assert not (inside & background).any()
    assert torch.equal(inside | background, step.assignment.valid)


def test_fine_grained_region(step):
    ours, priors = FineGrainedRegion(share=0.6)(step).weights, step.student.priors.numpy()
    for image, (gts, valid) in enumerate(by_image(step)):
        expected = brute_force.fine_grained(priors, gts, valid, share=0.6)
        np.testing.assert_array_equal(ours[image], expected)


def test_everywhere_without_positives(step):
    valid, positive = step.assignment.valid, step.assignment.positive
    assert torch.equal(EverywhereRegion()(step).weights, valid)
    assert torch.equal(EverywhereRegion(exclude_positives=True)(step).weights, valid & ~positive)


def test_negatives_count_as_the_region_that_they_stand_for():
    assert EverywhereRegion().ld_divisor == 4
    negatives = EverywhereRegion(exclude_positives=True)
    assert negatives.ld_divisor == ValuableLocalizationRegion().ld_divisor == 16


@pytest.mark.parametrize('scope', ['image', 'batch'])
def test_general_instances_are_stock_suppression_of_where_scores_differ(step, scope):
    ours = GIRegion(topk=4, iou_threshold=0.3, scope=scope)(step).weights
    valid = step.assignment.valid.split(step.student.num_level_priors, dim=1)
    for level, part in enumerate(ours.split(step.student.num_level_priors, dim=1)):
        student, teacher = (
            m.level_class_logits(level).detach().sigmoid() for m in (step.student, step.teacher)
        )
        best_class = (teacher - student).abs().argmax(-1, keepdim=True)
        difference = (teacher - student).gather(-1, best_class)[..., 0]
        boxes = torch.where(
            (difference >= 0)[..., None],
            step.teacher.level_boxes(level),
            step.student.level_boxes(level).detach(),
        )
        groups = [slice(i, i + 1) for i in range(4)] if scope == 'image' else [slice(0, 4)]
        for group in groups:
            inside = valid[level][group].flatten()
            rows = inside.nonzero()[:, 0]
            _, kept = nms(
                boxes[group].flatten(0, 1)[rows], difference[group].abs().flatten()[rows], 0.3
            )
            expected = torch.zeros_like(inside)
            expected[rows[kept[:4]]] = True
            assert torch.equal(part[group].flatten(), expected)


def test_general_instances_of_a_batch_are_shared_by_its_images(step):
    per_image, shared = (
        GIRegion(topk=3)(step).weights,
        GIRegion(topk=3, scope='batch')(step).weights,
    )
    assert per_image.sum() > shared.sum()
    for part in shared.split(step.student.num_level_priors, dim=1):
        assert part.sum() <= 3


def test_cells_hold_at_least_one_selected_prior(step):
    selection = ValuableLocalizationRegion()(step)
    anchors = step.student.spec.num_base_priors[0]
    per_cell = (selection.weights > 0).unflatten(1, (-1, anchors)).any(-1)
    assert selection.cells.counts.sum() == per_cell.sum()
    ones = selection.cells.take(per_cell.float())
    assert ones.all()
    assert [shape[2] for shape in selection.cells.shapes] == [1, 1, 1]


def test_cells_of_levels_with_unlike_numbers_of_priors():
    mask = torch.tensor([[True, False, True, True]])
    cells = base.Selection(mask, [(1, 2, 1), (1, 1, 2)]).cells
    assert cells.shapes == [(1, 2, 1), (1, 1, 1)]
    assert cells.counts.tolist() == [1, 1]


def test_levels_count_the_selected_priors_and_cells_hold_any_of_them():
    mask = torch.tensor([[True, False, True, True, False, False]])
    selection = base.Selection(mask, [(1, 2, 2), (1, 1, 2)])
    assert selection.mean_level_counts.tolist() == [3, 1]  # a divisor where there are none
    assert [cells.tolist() for cells in selection.cell_masks] == [[[[True, True]]], [[[False]]]]


@pytest.mark.parametrize('region', [InsideGTRegion(), EverywhereRegion()], ids=type)
def test_positions_of_a_mask_count_as_one_each(step, region):
    selection = region(step)
    assert selection.weights.dtype == torch.bool
    found = region.position_weight(step, selection)
    torch.testing.assert_close(found, torch.ones(int(selection.weights.sum())))


def test_a_region_is_computed_once_per_batch(step):
    calls = []

    class Counting(EverywhereRegion):
        def weights(self, context):
            calls.append(context)
            return super().weights(context)

    region = Counting()
    assert step.select(region) is step.select(region)
    assert len(calls) == 1


def test_distillers_with_equal_regions_share_one(step):
    cfg = dict(type='FeatureDistiller', region=dict(type='OverlapRegion'))
    other = dict(cfg, region=dict(type='OverlapRegion', alpha=0.5))
    cfgs = dict(first=deepcopy(cfg), other=other, second=deepcopy(cfg))
    found = build_distillers(cfgs, step.student.spec, step.teacher.spec)
    assert found['first'].region is found['second'].region
    assert found['first'].region is not found['other'].region


def test_a_changed_context_computes_its_own_selections(step):
    region = MainRegion()
    assert step.select(region).weights.any()
    background = torch.full_like(step.assignment.labels, 3)
    changed = replace(step, assignment=replace(step.assignment, labels=background))
    assert not changed.select(region).weights.any()


def test_a_new_region_never_gets_the_selection_of_one_that_is_gone(step):
    class Level(Region):
        def __init__(self, level: int) -> None:
            self.level = level

        def weights(self, context):
            parts = context.assignment.valid.split(context.student.num_level_priors, dim=1)
            return torch.cat([p & (i == self.level) for i, p in enumerate(parts)], dim=1)

    # one after another at the same place in memory
    found = [step.select(Level(level)).priors.counts.nonzero().item() for level in range(3)]
    assert found == [0, 1, 2]


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: ValuableLocalizationRegion(alpha=0), 'alpha: found 0'),
        (lambda: ValuableLocalizationRegion(alpha=1), 'alpha: found 1'),
        (lambda: ValuableLocalizationRegion(topk=1), 'topk: found 1'),
        (lambda: ValuableLocalizationRegion(overlap='giou'), "overlap: found 'giou'"),
        (lambda: FineGrainedRegion(share=1.5), 'share: found 1.5'),
        (lambda: GIRegion(topk=0), 'topk: found 0'),
        (lambda: GIRegion(iou_threshold=0), 'iou_threshold: found 0'),
        (lambda: GIRegion(scope='level'), "scope: found 'level'"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


class ByQuality(Region):
    """Of a user: every prior counts with the student's own quality."""

    def weights(self, context: DistillationContext) -> torch.Tensor:
        return torch.cat([m.flatten(1) for m in context.student.quality_maps], dim=1).sigmoid()


def test_weights_out_of_the_students_predictions_carry_no_gradient():
    step, region = context(), ByQuality()
    assert region.weights(step).requires_grad
    assert not step.select(region).weights.requires_grad


class OfEveryImage(Region):
    """Of a user: some levels alone, and so the same priors in every image."""

    def weights(self, context: DistillationContext) -> torch.Tensor:
        return (context.student.prior_strides < 16).T


def test_one_row_for_all_images_is_refused():
    step = context(images=2)
    shapes = rf'\(1, {len(step.student.priors)}\), expected \(2, {len(step.student.priors)}\)'
    with pytest.raises(ValueError, match=rf'^OfEveryImage\.weights: found the shape {shapes}'):
        step.select(OfEveryImage())


def test_what_the_overlap_region_is_told() -> None:
    """How many near priors make the threshold, and at which share of it the region begins."""
    boxes = [torch.tensor([[3.0, 2, 20, 30], [22, 8, 41, 36]])]
    step = replace(context(images=1, priors_per_cell=2), gt_bboxes=boxes)
    student, seen = step.student, []
    for told in (dict(), dict(topk=2), dict(alpha=0.1), dict(alpha=0.6)):
        (weights,) = OverlapRegion(**told)(step).weights
        expected = overlap_region(
            student.priors,
            boxes[0],
            student.num_level_priors,
            step.assignment.valid[0],
            **dict(alpha=0.25, topk=9) | told,
        )
        assert torch.equal(weights, expected)
        assert not any(torch.equal(weights, other) for other in seen)
        seen.append(weights)


def test_the_threshold_is_by_default_that_of_atss() -> None:
    step = context(images=4, seed=5)
    found, nine, eight = (
        OverlapRegion(**told)(step).weights for told in (dict(), dict(topk=9), dict(topk=8))
    )
    assert torch.equal(found, nine)
    assert not torch.equal(found, eight)


def test_a_turned_box_whose_bounds_alone_are_touched_selects_nothing() -> None:
    box = torch.tensor([[20.0, 20, 60, 1, 0.785]])
    assert not fine_grained_region(torch.tensor([[38.0, 2, 3, 3, 0]]), box).any()
