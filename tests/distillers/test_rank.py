"""Rank mimicking on contexts: ground truth by ground truth."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from ld_plugin.dense import DistillationContext
from ld_plugin.dense.boxes import upright
from ld_plugin.distillers import build_distillers
from ld_plugin.errors import ConfigError
from tests import brute_force, contexts
from tests.contexts import context

make = partial(contexts.make, type='RankDistiller')


@pytest.fixture(params=[1, 9], ids=['1 prior per cell', '9 priors per cell'])
def step(request: pytest.FixtureRequest) -> DistillationContext:
    return context(images=4, priors_per_cell=request.param)


def ranked(step: DistillationContext, on: str, image: int, gt: int) -> list[np.ndarray]:
    """What ranks the positives of one ground truth, of student and teacher."""
    mine = step.assignment.matched_gts[image] == gt
    values = []
    for dense in (step.student, step.teacher):
        if on == 'iou':
            boxes = torch.cat([dense.level_boxes(i)[image] for i in range(3)])[mine]
            target = step.gt_bboxes[image][gt].numpy()
            found = [brute_force.overlap(box, target) for box in boxes.detach().double().numpy()]
            values.append(np.array(found))
            continue
        logits = torch.cat([dense.level_class_logits(i)[image] for i in range(3)])[mine]
        labels = step.assignment.labels[image][mine]
        logits = logits[range(len(labels)), labels].detach().double().numpy()
        values.append(brute_force.sigmoid(logits) if on == 'score' else logits)
    return values


@pytest.mark.parametrize('on', ['score', 'logit', 'iou'])
def test_every_ground_truth_with_positives_counts_once(step: DistillationContext, on: str) -> None:
    # the first ground truth of the second image has no positives
    matched = [index.clone() for index in step.assignment.positive_gts]
    matched[1].fill_(1)
    step = replace(step, assignment=replace(step.assignment, positive_gts=matched))
    each = []
    for image, boxes in enumerate(step.gt_bboxes):
        for gt in range(len(boxes)):
            student, teacher = ranked(step, on, image, gt)
            if len(student):
                each.append(brute_force.kl(student, teacher, 1) * len(student))
    assert len(each) == 5
    loss = make(step, on=on)(step)
    assert loss.item() == pytest.approx(4 * np.mean(each), rel=1e-3)


@pytest.mark.parametrize(('on', 'read'), [('score', 'class_maps'), ('iou', 'box_maps')])
def test_gradients_reach_what_is_ranked(step: DistillationContext, on: str, read: str) -> None:
    make(step, on=on)(step).backward()
    for name in ('class_maps', 'box_maps'):
        touched = any(m.grad is not None and m.grad.any() for m in getattr(step.student, name))
        assert touched == (name == read)


def test_no_ground_truth_at_all(step: DistillationContext) -> None:
    nothing = [torch.zeros(0, dtype=torch.int64)] * 4
    labels = torch.full_like(step.assignment.labels, 3)
    step = replace(
        step,
        assignment=replace(step.assignment, labels=labels, positive_gts=nothing),
        gt_bboxes=[torch.zeros(0, 4)] * 4,
    )
    for on in ('score', 'logit', 'iou'):
        loss = make(step, on=on)(step)
        loss.backward()
        assert loss == 0


def test_a_single_positive_has_no_rank() -> None:
    step = context(images=1)
    labels = torch.full_like(step.assignment.labels, 3)
    labels[0, 7] = 2
    assigned = replace(step.assignment, labels=labels, positive_gts=[torch.tensor([1])])
    loss = make(step)(replace(step, assignment=assigned))
    loss.backward()
    assert loss == 0
    assert not any(m.grad.any() for m in step.student.class_maps)


def test_horizontal_boxes_of_rotated_objects(step: DistillationContext) -> None:
    expected = make(step, on='iou')(step)
    rotated = replace(step, gt_bboxes=[upright(boxes) for boxes in step.gt_bboxes])
    torch.testing.assert_close(make(step, on='iou')(rotated), expected)


def test_what_it_needs() -> None:
    step = context()
    for on, read in (('score', 'class_logits'), ('logit', 'class_logits'), ('iou', 'boxes')):
        assert make(step, on=on).reads_of_teacher == {read}
    blind = replace(step.student.spec, extras=frozenset())
    with pytest.raises(ConfigError, match=r"^model\.distillers\.x: the student's head Head has no"):
        build_distillers(dict(x=dict(type='RankDistiller')), blind, step.teacher.spec)
    # a teacher's assignment is not asked for
    build_distillers(dict(x=dict(type='RankDistiller')), step.student.spec, blind)
    with pytest.raises(ConfigError, match=r"^model\.distillers\.x\.on: found 'rank', expected one"):
        make(step, on='rank')


def test_scores_of_half_precision_are_ranked_in_float32() -> None:
    step = context(images=4)

    def loss(dtype: torch.dtype) -> float:
        student, teacher = (
            replace(
                outputs,
                class_maps=[x.detach().bfloat16().to(dtype) for x in outputs.class_maps],
            )
            for outputs in (step.student, step.teacher)
        )
        changed = replace(step, student=student, teacher=teacher)
        return make(changed, on='score')(changed).item()

    assert loss(torch.bfloat16) == pytest.approx(loss(torch.float32), rel=1e-6)
