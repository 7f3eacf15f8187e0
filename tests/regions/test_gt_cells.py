"""The object cells of DeFeat."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ld_plugin.dense.boxes import upright
from ld_plugin.distillers import build_distillers
from ld_plugin.errors import ConfigError
from ld_plugin.regions import GTCellsRegion
from ld_plugin.regions.geometry import covered_cells, level_by_size
from tests.contexts import context


def cells_by_hand(box: np.ndarray, height: int, width: int, stride: int) -> np.ndarray:
    cells = np.zeros((height, width), dtype=bool)
    if box[2] <= 0 or box[3] <= 0 or box[0] >= width * stride or box[1] >= height * stride:
        return cells
    limit = np.array([width, height, width, height]) * stride
    l, t, r, b = (np.clip(box, 0, limit) / stride).astype(int)
    if l == r or t == b:
        r, b = l + 1, t + 1
    cells[t:b, l:r] = True
    return cells


@settings(deadline=None, max_examples=60)
@given(number=st.integers(0, 4), stride=st.sampled_from([4, 8, 32]), seed=st.integers(0, 10**6))
def test_cells_of_boxes_inside_and_outside_of_the_image(number, stride, seed):
    rng = np.random.default_rng(seed)
    # also beyond every side of a map of 64 x 96, thinner than a cell, and on its border
    corner = np.round(rng.uniform(-60, 120, (number, 2)))
    boxes = np.concatenate([corner, corner + rng.integers(0, 70, (number, 2))], axis=1)
    size = 64 // stride, 96 // stride
    expected = np.zeros(size, dtype=bool)
    for box in boxes:
        expected |= cells_by_hand(box, *size, stride)
    ours = covered_cells(torch.tensor(boxes, dtype=torch.float32), size, (stride, stride))
    np.testing.assert_array_equal(ours.numpy(), expected)


@pytest.mark.parametrize(
    'box',
    [
        pytest.param([96, 10, 96, 20], id='no width, on the right border'),
        pytest.param([-50, -50, -10, -5], id='above and to the left'),
        pytest.param([10, 64, 20, 90], id='below'),
    ],
)
def test_boxes_beyond_the_image_mark_nothing(box):
    assert not covered_cells(torch.tensor([box]).float(), (8, 12), (8, 8)).any()


@pytest.mark.parametrize('form', [torch.clone, upright], ids=['horizontal', 'rotated'])
def test_cells_of_levels_whose_strides_differ_in_x_and_y(form: object) -> None:
    box = form(torch.tensor([[16.0, 4, 48, 12]]))
    expected = torch.zeros(5, 6, dtype=torch.bool)
    expected[1:3, 1:3] = True
    assert torch.equal(covered_cells(box, (5, 6), (16, 4)), expected)
    thin = form(torch.tensor([[33, 4.75, 37, 5.25]]))
    assert covered_cells(thin, (5, 6), (16, 4)).nonzero().tolist() == [[1, 2]]
    step = context(images=1)
    strides = (16, 4), (32, 8), (64, 16)
    step = replace(
        step, student=replace(step.student, spec=replace(step.student.spec, strides=strides))
    )
    step = replace(step, gt_bboxes=[box])
    assert torch.equal(step.select(GTCellsRegion(finest_scale=100)).cell_masks[0][0], expected)


@pytest.mark.parametrize('size', [(6, 3), (3, 6)], ids=['high', 'wide'])
def test_a_box_as_large_as_the_map_covers_all_of_it(size: tuple[int, int]) -> None:
    height, width = size
    box = torch.tensor([[0.0, 0, 8 * width, 8 * height]])
    assert covered_cells(box, size, (8, 8)).all()


@pytest.mark.parametrize(
    ('side', 'level'),
    [
        (3, 0),
        (110, 0),
        (110.99999, 1),
        (111, 1),
        (112, 1),
        (222, 1),
        (223, 2),
        (224, 2),
        (450, 3),
        (900, 4),
        (9e3, 4),
    ],
)
def test_level_by_size(side: float, level: int):
    boxes = torch.tensor([[5.0, 7.0, 5 + side, 7 + side]])
    assert level_by_size(boxes, 5, 56).tolist() == [level]


def test_every_object_is_on_one_level():
    step = context(images=4, priors_per_cell=3)
    one = replace(step, gt_bboxes=[torch.tensor([[2.0, 2.0, 20.0, 30.0]])] * 4)
    for scale, level in ((20, 0), (10, 1), (2, 2)):
        masks = one.select(GTCellsRegion(finest_scale=scale)).cell_masks
        assert [bool(mask.any()) for mask in masks] == [i == level for i in range(3)]


@pytest.mark.parametrize(('side', 'level'), [(222, 0), (224, 1)])
def test_the_finest_level_takes_objects_of_up_to_28_of_its_strides(side: float, level: int):
    step = context(images=2)
    step = replace(step, gt_bboxes=[torch.tensor([[0.0, 0, side, side]])] * 2)
    masks = step.select(GTCellsRegion()).cell_masks
    assert [bool(mask.any()) for mask in masks] == [i == level for i in range(3)]


def test_levels_of_the_assigner():
    step = context(images=2, priors_per_cell=3)
    step = replace(step, gt_bboxes=[torch.tensor([[2.0, 2, 20, 30], [24, 0, 40, 36]])] * 2)
    labels = torch.full_like(step.assignment.labels, 3)
    starts = [0, *np.cumsum(step.student.num_level_priors)]
    # the first image's second object on levels 0 and 2, the second image's first on level 1
    labels[0, [starts[0] + 4, starts[2]]] = 1
    labels[1, starts[1]] = 0
    positive_gts = [torch.tensor([1, 1]), torch.tensor([0])]
    step = replace(
        step, assignment=replace(step.assignment, labels=labels, positive_gts=positive_gts)
    )
    masks = step.select(GTCellsRegion(levels='assigner')).cell_masks
    assert [mask.flatten(1).any(1).tolist() for mask in masks] == [
        [True, False],
        [False, True],
        [True, False],
    ]
    expected = covered_cells(step.gt_bboxes[0][1:], masks[0].shape[1:], (8, 8))
    assert torch.equal(masks[0][0], expected)


def test_without_objects_it_is_empty():
    step = context(images=2)
    empty = replace(
        step,
        gt_bboxes=[torch.zeros(0, 4)] * 2,
        assignment=replace(
            step.assignment,
            labels=torch.full_like(step.assignment.labels, 3),
            positive_gts=[torch.zeros(0, dtype=torch.int64)] * 2,
        ),
    )
    for levels in ('size', 'assigner'):
        assert not GTCellsRegion(levels)(empty).weights.any()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(levels='area'), "levels: found 'area', expected one of"),
        (dict(finest_scale=0), 'finest_scale: found 0, expected a finite number above 0'),
        (
            dict(levels='assigner', finest_scale=56),
            "finest_scale: found 56 beside levels='assigner', which does not look at sizes",
        ),
    ],
)
def test_bad_arguments(arguments: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        GTCellsRegion(**arguments)


def test_the_assigner_must_be_known():
    step = context()
    blind = replace(step.student.spec, extras=frozenset())
    cfg = dict(type='DecoupledFeatureDistiller', region=dict(type='GTCellsRegion'))
    for region in ('GTCellsRegion', 'InsideGTRegion'):
        cfg['region'] = dict(type=region)
        build_distillers(dict(x=cfg), blind, step.teacher.spec)
    cfg['region'] = dict(type='GTCellsRegion', levels='assigner')
    with pytest.raises(ConfigError, match="the student's head Head has no matched gts"):
        build_distillers(dict(x=cfg), blind, step.teacher.spec)
    # a teacher's assignment is not asked for
    build_distillers(dict(x=cfg), step.student.spec, blind)


def test_objects_that_reach_into_the_padding() -> None:
    step = context(images=2)
    step = replace(step, gt_bboxes=[step.gt_bboxes[0], torch.tensor([[8.0, 8, 48, 40]])])
    weights = GTCellsRegion(finest_scale=100)(step).weights
    assert weights[1].any()
    assert not weights[~step.assignment.valid].any()
