"""Nine anchors of many classes must not cost copies of both models' maps."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ld_plugin import recipes
from ld_plugin.dense import Assignment, DistillationContext
from ld_plugin.distillers import (
    box,
    build_distillers,
    classification,
    decoupled,
    feature,
    prediction_guided,
)
from ld_plugin.regions import geometry
from tests.contexts import context, outputs

ANCHORS, SIDE = 9, 100


class LargeTensors(TorchDispatchMode):
    """Counts memory taken for tensors of at least half of one of the level's maps."""

    def __init__(self, known: Sequence[Tensor], level_map: Tensor) -> None:
        super().__init__()
        self.least = level_map.untyped_storage().nbytes() / 2
        self.seen = {x.untyped_storage().data_ptr() for x in known}
        self.kept: list[Tensor] = []  # so that no address is given out twice
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for x in found if isinstance(found, tuple | list) else [found]:
            if not isinstance(x, Tensor) or x.untyped_storage().nbytes() < self.least:
                continue
            address = x.untyped_storage().data_ptr()
            if address not in self.seen:
                self.seen.add(address)
                self.kept.append(x)
                self.names.append(str(func))
        return found


def large_step(classes: int, channels: int) -> DistillationContext:
    """One level of nine anchors, every cell's alike, with one object."""
    small = outputs(1, ANCHORS)
    spec = replace(
        small.spec,
        strides=((8, 8),),
        num_base_priors=(ANCHORS,),
        num_classes=classes,
        feature_channels=channels,
    )
    generator = torch.Generator().manual_seed(0)

    def maps(width: int) -> list[Tensor]:
        return [torch.randn(1, width, SIDE, SIDE, generator=generator)]

    priors = torch.tensor([[0.0, 0, 64, 64]]).repeat(ANCHORS * SIDE**2, 1)

    def dense(requires_grad: bool) -> Any:
        class_maps, box_maps, features = maps(ANCHORS * classes), maps(ANCHORS * 20), maps(channels)
        for level_map in (*class_maps, *box_maps, *features):
            level_map.requires_grad_(requires_grad)
        return replace(
            small,
            spec=spec,
            class_maps=class_maps,
            box_maps=box_maps,
            features=features,
            quality_maps=(),
            make_priors=lambda: priors,
        )

    labels = torch.full((1, ANCHORS * SIDE**2), classes)
    labels[0, :5] = 1
    valid = torch.ones_like(labels, dtype=torch.bool)
    positive_gts = [torch.zeros(5, dtype=torch.long)]
    return DistillationContext(
        student=dense(True),
        teacher=dense(False),
        assignment=Assignment(labels, valid.float(), valid, classes, positive_gts),
        gt_bboxes=[torch.tensor([[0.0, 0, 60, 60]])],
    )


def prepared(recipe: str, step: DistillationContext) -> Callable[[], Tensor]:
    distillers = build_distillers(getattr(recipes, recipe), step.student.spec, step.teacher.spec)
    return lambda: sum(distiller(step) for distiller in distillers.values())


def large_tensors(recipe: str, step: DistillationContext, maps: str) -> list[str]:
    """What makes tensors of the size of these maps while the losses are computed."""
    loss = prepared(recipe, step)
    both = step.student, step.teacher
    known = [m for d in both for m in (*d.class_maps, *d.box_maps, *d.features)]
    with LargeTensors(known, getattr(step.student, maps)[0]) as large:
        value = loss()
    assert value > 0
    return large.names


@pytest.mark.parametrize(
    ('recipe', 'gradients'),
    [('bckd', 1), ('rm_pfi', 1), ('defeat', 1), ('imitation_gi', 0), ('ld_full', 0)],
)
def test_one_gradient_is_all_that_is_as_large_as_the_logits(recipe: str, gradients: int) -> None:
    found = large_tensors(recipe, large_step(classes=80, channels=2), 'class_maps')
    assert len(found) <= gradients, found


def test_boxes_of_a_level_are_decoded_in_pieces() -> None:
    found = large_tensors('bckd', large_step(classes=2, channels=2), 'box_maps')
    assert len(found) <= 1, found


@pytest.mark.parametrize(
    ('recipe', 'others'),
    [('rm_pfi', 0), ('fitnet', 0), ('pkd', 0), ('defeat', 1)],  # the output of DeFeat's adapter
)
def test_one_gradient_is_all_that_is_as_large_as_the_features(recipe: str, others: int) -> None:
    found = large_tensors(recipe, large_step(classes=2, channels=256), 'features')
    assert len(found) <= 1 + others, found


#: CrossKD, which no recipe of these tests is, has tests of its own
LOOKING_IN_PIECES = box, classification, decoupled, feature, prediction_guided, geometry


@pytest.mark.parametrize('recipe', ['bckd', 'rm_pfi', 'fitnet', 'pkd', 'defeat', 'imitation_gi'])
def test_pieces_change_neither_loss_nor_gradient(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = context(priors_per_cell=2)
    student = step.student
    maps = [*student.class_maps, *student.box_maps, *student.features]

    def measured() -> list[Tensor]:
        torch.manual_seed(0)  # of adapters
        value = prepared(recipe, step)()
        return [value, *torch.autograd.grad(value, maps, allow_unused=True, materialize_grads=True)]

    whole, cut = measured(), []

    def pieces_of(level: Tensor, *_: Any, **__: Any) -> int:
        cut.append(level.shape[1])
        return level.shape[1]

    for module in LOOKING_IN_PIECES:
        monkeypatch.setattr(module, 'pieces_of', pieces_of)
    monkeypatch.setattr(box, 'levels_at_once', lambda sizes, _: [[i] for i in range(len(sizes))])
    for found, expected in zip(measured(), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert max(cut) > 1


@pytest.mark.parametrize(
    'region',
    [dict(type='BackgroundRegion'), dict(type='EverywhereRegion', exclude_positives=True)],
    ids=lambda region: region['type'],
)
def test_classes_of_regions_that_leave_priors_out(region: dict) -> None:
    """Also where the head weighs them, as FCOS does those in the padding."""
    step = context(images=4)
    weights = torch.ones_like(step.assignment.label_weights)
    step = replace(step, assignment=replace(step.assignment, label_weights=weights))
    cfg = dict(
        type='ClassificationDistiller',
        region=region,
        loss=dict(type='BinaryKDLoss'),
        normalizer='positives',
    )
    student, teacher = step.student, step.teacher
    distiller = build_distillers(dict(kd=cfg), student.spec, teacher.spec)['kd']
    at = step.select(distiller.region).priors
    assert 0 < len(at.prior_index) < weights.numel()
    rows = distiller.loss.elementwise(student.class_logits(at), teacher.class_logits(at))
    torch.testing.assert_close(distiller(step), rows.sum() / step.mean_num_positives)
