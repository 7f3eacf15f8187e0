"""Selections against :mod:`tests.brute_force`, which compares every pair in numpy and float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mmcv.ops import nms

from ld_plugin.regions.geometry import (
    atss_thresholds,
    centred_overlap,
    fine_grained_region,
    general_instance_scores,
    inside_gt_region,
    overlap_region,
    overlapping_pairs,
    select_top_boxes,
    valuable_localization_region,
)
from tests import brute_force
from tests.operators import Operators

STRIDES = 8, 16, 32
HEIGHT, WIDTH = 40, 56
PRIORS, SIZES = brute_force.anchors(HEIGHT, WIDTH, STRIDES, scale=3)
COUNTS = [h * w for h, w in SIZES]
#: closer to a bound than this, float32 and float64 may decide differently
MARGIN = 1e-5


# steps that share no factor with a stride, so that no two priors are equally near by accident; the
# boxes may be empty, lie partly or wholly outside the image, or cover all of it
@st.composite
def boxes(draw: st.DrawFn, least: int = 0, most: int = 5) -> np.ndarray:
    side = st.integers(0, 70)
    drawn = draw(
        st.lists(
            st.tuples(st.integers(-30, 70), st.integers(-30, 50), side, side),
            min_size=least,
            max_size=most,
        )
    )
    corner_and_size = np.array(drawn, dtype=float).reshape(-1, 4) * [0.9391, 0.9173, 0.9391, 0.9173]
    x, y, width, height = corner_and_size.T
    return np.stack([x, y, x + width, y + height], axis=1).astype(np.float32)


@st.composite
def padding(draw: st.DrawFn) -> np.ndarray:
    """(P,) bool: the cells that begin inside an image of a drawn size."""
    height, width = draw(st.integers(0, HEIGHT)), draw(st.integers(0, WIDTH))
    return np.concatenate(
        [
            (np.arange(h)[:, None] * s < height) & (np.arange(w)[None] * s < width)
            for (h, w), s in zip(SIZES, STRIDES, strict=True)
        ],
        axis=None,
    )


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(np.array(array)) for array in arrays]


def assume_clear(values: np.ndarray, *bounds: np.ndarray) -> None:
    """Give up an example that hangs on rounding."""
    for bound in bounds:
        assume(not (np.abs(values - bound) < MARGIN).any())


@settings(deadline=None, max_examples=60)
@given(
    gts=boxes(),
    valid=padding(),
    kind=st.sampled_from(['iof', 'diou']),
    alpha=st.sampled_from([0.1, 0.25, 0.6]),
    topk=st.sampled_from([2, 5, 9]),
)
def test_valuable_localization_region_of_every_pair(gts, valid, kind, alpha, topk):
    thresholds = brute_force.atss_thresholds(PRIORS, gts, COUNTS, valid, topk)
    touching = brute_force.pairwise(PRIORS, gts) > 0
    values = brute_force.pairwise(PRIORS, gts, brute_force.centred_overlap, kind)
    assume_clear(np.where(touching, values, 2), thresholds, alpha * thresholds)
    priors, boxes_, valid_ = tensors(PRIORS, gts, valid)
    ours = valuable_localization_region(priors, boxes_, COUNTS, valid_, alpha, topk, kind)
    expected = brute_force.vlr(PRIORS, gts, COUNTS, valid, kind, alpha, topk)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-5)
    np.testing.assert_array_equal(ours.numpy() > 0, expected > 0)


def test_the_lower_bound_is_in_the_region_and_the_upper_one_is_not():
    gt = torch.tensor([[0.0, 0, 8, 8]])
    # the two nearest priors cover half of it, so the threshold is 1/2 and the lower bound 1/8
    half = [[0, 2, 8, 6], [0, 0, 8, 4]]
    # 12/64 and 11/64 of it, less 8/128 for the distance of the centres
    priors = torch.tensor([*half, [0, 0.5, 4, 3.5], [0, 0.625, 4, 3.375]])
    found = valuable_localization_region(priors, gt, [4], topk=2, overlap='diou')
    assert found.tolist() == [0, 1 / 2, 12 / 64, 0]

    # 8/64 and 7/64 of it
    priors = torch.tensor([*half, [0, 0, 2, 4], [0, 0, 2, 3.5]])
    assert overlap_region(priors, gt, [4], topk=2).tolist() == [1 / 2, 1 / 2, 1 / 8, 0]


@settings(deadline=None, max_examples=40)
@given(gts=boxes(least=1), valid=padding(), topk=st.integers(1, 12))
def test_atss_thresholds_of_every_pair(gts, valid, topk):
    priors, boxes_, valid_ = tensors(PRIORS, gts, valid)
    ours = atss_thresholds(priors, boxes_, COUNTS, valid_, topk)
    expected = brute_force.atss_thresholds(PRIORS, gts, COUNTS, valid, topk)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(
    corner=st.tuples(st.integers(-8, 16), st.integers(-8, 12)),
    size=st.tuples(st.integers(1, 16), st.integers(1, 16)),
    valid=padding(),
    topk=st.sampled_from([2, 5, 9]),
)
def test_of_equally_near_priors_the_first_are_candidates(corner, size, valid, topk):
    gt = 4 * np.array([[*corner, corner[0] + size[0], corner[1] + size[1]]], dtype=np.float32)
    ours = atss_thresholds(*tensors(PRIORS, gt), COUNTS, *tensors(valid), topk)
    expected = brute_force.atss_thresholds(PRIORS, gt, COUNTS, valid, topk)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-5)


ORDERS = {
    'row by row': lambda cells: cells,
    'three in a cell': lambda cells: np.repeat(cells, 3, axis=0) + SHIFTS,
    'three grids': lambda cells: np.tile(cells, (3, 1)) + SHIFTS,
    'at random': lambda cells: np.random.default_rng(0).permutation(cells),
}
SHIFTS = np.random.default_rng(1).uniform(0, 1, (3 * 61 * 67, 1)).astype(np.float32)


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('topk', [2, 9, 40])
def test_the_order_of_priors_does_not_matter(order, topk):
    """It says where the nearest ones are looked for first."""
    priors = ORDERS[order](brute_force.anchors(61 * 4, 67 * 4, [4], scale=5)[0])
    number, corner = len(priors), np.random.default_rng(2).uniform(-90, 290, (6, 2))
    gts = np.concatenate([corner, corner + [[31.3, 17.1]]], axis=1).astype(np.float32)
    ours = atss_thresholds(*tensors(priors, gts), [number], topk=topk)
    expected = brute_force.atss_thresholds(priors, gts, [number], np.ones(number, bool), topk)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-5)


def test_thresholds_do_not_wait_for_the_device_and_the_region_does_twice():
    priors, gts = tensors(PRIORS, np.float32([[3, 5, 31, 27], [20, 8, 50, 33]]))
    with Operators() as operators:
        atss_thresholds(priors, gts, COUNTS)
    assert operators.waits == 0
    with Operators() as operators:
        valuable_localization_region(priors, gts, COUNTS)
    assert operators.waits == 2


@pytest.mark.parametrize('counts', [COUNTS, [0]])
@pytest.mark.parametrize('number', [2, 0])
def test_atss_thresholds_of_nothing(counts, number):
    priors, gts = torch.from_numpy(PRIORS)[: sum(counts)], torch.ones(number, 4)
    for valid in (None, torch.zeros(sum(counts), dtype=torch.bool)):
        found = atss_thresholds(priors, gts, counts, valid)
        assert found.shape == (number,)
        assert found.isfinite().all() == (number == 0 or (counts is COUNTS and valid is None))


def test_a_single_candidate_makes_no_threshold():
    priors, gts = tensors(PRIORS[:2], PRIORS[:1])
    valid = torch.tensor([True, False])
    assert atss_thresholds(priors, gts, [2], valid).isnan().all()
    assert not overlap_region(priors, gts, [2], valid).any()


@pytest.mark.parametrize('rows', [61, 40, 1, 0])
@pytest.mark.parametrize('topk', [2, 9])
def test_atss_thresholds_of_a_long_level(rows, topk):
    """4087 priors, which no block size divides, of which only some rows are in the image."""
    priors, [(height, width)] = brute_force.anchors(61 * 4, 67 * 4, [4], scale=5)
    valid = np.repeat(np.arange(height) < rows, width)
    valid[5:67] = False  # so that a single row has fewer priors than topk
    corner = np.random.default_rng(0).uniform(-20, 230, (6, 2))
    gts = np.concatenate([corner, corner + [[31.3, 17.1]]], axis=1).astype(np.float32)
    ours = atss_thresholds(*tensors(priors, gts), [len(priors)], *tensors(valid), topk)
    expected = brute_force.atss_thresholds(priors, gts, [len(priors)], valid, topk)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(gts=boxes(), valid=padding(), share=st.sampled_from([0.2, 0.5, 0.9]))
def test_fine_grained_region_of_every_pair(gts, valid, share):
    iou = brute_force.pairwise(PRIORS, gts)
    for column in iou.T[:, valid] if valid.any() else []:
        assume_clear(np.where(column > 0, column, 2), share * column.max())
    priors, boxes_, valid_ = tensors(PRIORS, gts, valid)
    ours = fine_grained_region(priors, boxes_, valid_, share)
    np.testing.assert_array_equal(ours, brute_force.fine_grained(PRIORS, gts, valid, share))


def test_the_share_of_the_best_overlap_is_exceeded_not_reached() -> None:
    priors = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 4], [0, 0, 8, 4.5]])
    assert fine_grained_region(priors, priors[:1], share=0.5).tolist() == [True, False, True]


@settings(deadline=None, max_examples=40)
@given(gts=boxes(), valid=padding())
def test_inside_gt_region_of_every_pair(gts, valid):
    ours = inside_gt_region(*tensors(PRIORS, gts, valid))
    np.testing.assert_array_equal(ours, brute_force.inside_gt(PRIORS, gts, valid))


def test_a_centre_on_the_border_is_not_inside():
    priors = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
    for gt, inside in [([4, 0, 9, 9], False), ([3.9, 0, 9, 9], True), ([0, 0, 9, 4], False)]:
        assert inside_gt_region(priors, torch.tensor([gt], dtype=torch.float)).item() is inside


@settings(deadline=None, max_examples=40)
@given(gts=boxes(), valid=padding())
def test_overlapping_pairs_are_those_with_an_intersection(gts, valid):
    prior_index, gt_index = overlapping_pairs(*tensors(PRIORS, gts, valid))
    found = np.zeros((len(PRIORS), len(gts)), dtype=bool)
    found[prior_index, gt_index] = True
    iou = brute_force.pairwise(PRIORS, gts)
    # a box without area may be among them; it changes nothing, as its overlap is 0
    assert found[(iou > 0) & valid[:, None]].all()
    assert not found[~valid].any()
    has_area = (gts[:, 2:] > gts[:, :2]).all(1)
    np.testing.assert_array_equal(found[:, has_area], ((iou > 0) & valid[:, None])[:, has_area])


@settings(deadline=None, max_examples=40)
@given(gts=boxes(), valid=padding(), share=st.sampled_from([0.1, 0.5, 2.0, math.nan]))
def test_pairs_are_left_out_that_cover_too_little(gts, valid, share):
    covered = brute_force.pairwise(PRIORS, gts, brute_force.overlap, 'first')
    assume_clear(covered, share)
    shares = torch.full((len(gts),), share)
    prior_index, gt_index = overlapping_pairs(*tensors(PRIORS, gts, valid), shares)
    found = np.zeros((len(PRIORS), len(gts)), dtype=bool)
    found[prior_index, gt_index] = True
    np.testing.assert_array_equal(found, (covered > share) & valid[:, None])


@settings(deadline=None, max_examples=40)
@given(gts=boxes(least=1, most=3), kind=st.sampled_from(['iof', 'diou']))
def test_centred_overlap_of_every_pair(gts, kind):
    priors, boxes_ = tensors(PRIORS, gts)
    ours = centred_overlap(
        priors.repeat_interleave(len(gts), 0), boxes_.repeat(len(priors), 1), kind
    )
    expected = brute_force.pairwise(PRIORS, gts, brute_force.centred_overlap, kind)
    np.testing.assert_allclose(ours.view(expected.shape).numpy(), expected, atol=2e-6)


@settings(deadline=None, max_examples=30)
@given(gts=boxes(least=1), valid=padding(), order=st.randoms(use_true_random=False))
def test_the_order_of_ground_truths_does_not_matter(gts, valid, order):
    shuffled = list(range(len(gts)))
    order.shuffle(shuffled)
    priors, boxes_, valid_ = tensors(PRIORS, gts, valid)
    for region in (
        lambda g: valuable_localization_region(priors, g, COUNTS, valid_),
        lambda g: fine_grained_region(priors, g, valid_),
        lambda g: inside_gt_region(priors, g, valid_),
    ):
        assert torch.equal(region(boxes_), region(boxes_[shuffled]))


@settings(deadline=None, max_examples=30)
@given(gts=boxes(), valid=padding())
def test_a_masked_prior_is_one_that_is_not_there(gts, valid):
    priors, boxes_, valid_ = tensors(PRIORS, gts, valid)
    kept_counts = [int(part.sum()) for part in valid_.split(COUNTS)]
    regions = [
        (
            valuable_localization_region(priors, boxes_, COUNTS, valid_),
            valuable_localization_region(priors[valid_], boxes_, kept_counts),
        ),
        (fine_grained_region(priors, boxes_, valid_), fine_grained_region(priors[valid_], boxes_)),
        (inside_gt_region(priors, boxes_, valid_), inside_gt_region(priors[valid_], boxes_)),
    ]
    for masked, removed in regions:
        assert not masked[~valid_].any()
        # sums over the candidates run in another order, hence not bit by bit
        torch.testing.assert_close(masked[valid_].float(), removed.float())


def test_more_ground_truths_than_priors():
    priors = torch.tensor([[0.0, 0, 16, 16], [8, 0, 24, 16], [0, 0, 32, 32]])
    gts = torch.rand(20, 4) * 10
    gts[:, 2:] += gts[:, :2]
    valid = np.ones(3, dtype=bool)
    ours = valuable_localization_region(priors, gts, [2, 1])
    expected = brute_force.vlr(priors.numpy(), gts.numpy(), [2, 1], valid)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize('valid', [None, torch.zeros(3, dtype=torch.bool)])
def test_nothing_to_select_from_selects_nothing(valid):
    priors = torch.tensor([[0.0, 0, 16, 16], [8, 0, 24, 16], [0, 0, 32, 32]])
    gts = torch.zeros(0, 4) if valid is None else torch.tensor([[1.0, 1, 15, 15]])
    for region in (
        valuable_localization_region(priors, gts, [2, 1], valid),
        fine_grained_region(priors, gts, valid),
        inside_gt_region(priors, gts, valid),
    ):
        assert region.shape == (3,)
        assert not region.any()


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    sets=st.integers(1, 3),
    number=st.integers(1, 40),
    topk=st.integers(1, 12),
    threshold=st.sampled_from([0.1, 0.3, 0.7]),
)
def test_select_top_boxes_is_greedy_suppression(seed, sets, number, topk, threshold):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(sets, number, 2, generator=generator) * 40
    boxes_ = torch.cat([corner, corner + 30 * torch.rand(corner.shape, generator=generator)], -1)
    scores = torch.rand(sets, number, generator=generator)
    kept, order = select_top_boxes(boxes_, scores, threshold, topk)
    for i in range(sets):
        stock = nms(boxes_[i], scores[i], threshold)[1][:topk].tolist()
        ours = [k for k in order[i].tolist() if k >= 0]
        expected = brute_force.top_boxes(
            boxes_[i].double().numpy(), scores[i].numpy(), threshold, topk
        )
        assert ours == stock == expected
        assert kept[i].nonzero()[:, 0].tolist() == sorted(ours)


def test_boxes_below_zero_take_no_part():
    boxes_ = torch.tensor([[[0.0, 0, 4, 4], [0, 0, 4, 4], [8, 8, 9, 9]]])
    kept, order = select_top_boxes(boxes_, torch.tensor([[-1.0, 0.0, -1.0]]), 0.3, 10)
    assert kept.tolist() == [[False, True, False]]
    assert order.tolist() == [[1, -1, -1]]


def test_general_instance_scores_of_a_small_example():
    student, teacher = (
        torch.tensor([[0.0, 0, 0], [9, 9, 0]]),
        torch.tensor([[0.0, 9, -1], [-9, 9, 0]]),
    )
    scores, teacher_wins = general_instance_scores(student, teacher)
    expected = [torch.tensor(9.0).sigmoid() - 0.5, torch.tensor(9.0).sigmoid() * 2 - 1]
    torch.testing.assert_close(scores, torch.stack(expected))
    assert teacher_wins.tolist() == [True, False]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_general_instance_scores_of_half_precision_are_computed_in_float32(dtype):
    logits = (3 * torch.randn(2, 50, 4)).to(dtype)
    for found, expected in zip(
        general_instance_scores(*logits), general_instance_scores(*logits.float()), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_of_equal_scores_the_teachers_box_is_taken():
    logits = torch.zeros(2, 3)
    assert general_instance_scores(logits, logits)[1].all()


@pytest.mark.parametrize('factor', [1.0003, 1.0008])
def test_a_prior_just_above_the_lower_bound_is_in_the_region(factor: float) -> None:
    gts = torch.tensor([[40.0, 40, 60, 60]])
    near = torch.tensor([[40.0, 40, 60, 60], [41, 41, 61, 61]])
    overlap = 0.25 * atss_thresholds(near, gts, [2]).item() * factor
    half = (400 / overlap) ** 0.5 / 2  # the prior holds the object, which covers this share of it
    around = torch.tensor([[53 - half, 53 - half, 53 + half, 53 + half]])
    weights = overlap_region(torch.cat([near, around]), gts, [3], alpha=0.25, topk=2)
    assert weights[2].item() == pytest.approx(overlap, rel=1e-4)


def test_a_box_that_overlaps_by_the_threshold_stays() -> None:
    boxes = torch.tensor([[[0.0, 0, 2, 2], [0, 0, 2, 1]]])
    kept, _ = select_top_boxes(boxes, torch.tensor([[0.9, 0.8]]), 0.5, 2)
    assert kept.tolist() == [[True, True]]
