"""Teachers with other classes, levels or image scales: the right numbers meet."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from mmengine import ConfigDict
from mmengine.hub import get_config
from mmengine.logging import MessageHub
from torch import Tensor, nn

from ld_plugin import ConfigError
from ld_plugin.dense import ClassMatch, DistillationContext, TeacherMatch
from ld_plugin.dense.boxes import upright
from ld_plugin.dense.matching import rescaled, take_levels
from ld_plugin.dense.outputs import level_rows
from ld_plugin.detectors import FrozenTeacher, distilled
from ld_plugin.distillers import build_distillers
from ld_plugin.recipes import (
    bckd,
    crosskd,
    defeat,
    defeat_two_stage,
    fitnet,
    imitation_everywhere,
    imitation_gi,
    imitation_inside_gt,
    ld_full,
    ld_main,
    ld_point,
    pkd,
    rm_pfi,
    rotated_ld_kld,
)
from tests import needs
from tests.contexts import context
from tests.families import scope, tiny
from tests.models import batch, build, losses, tiny_distilled, tiny_gfl

NAMES = ('circle', 'square', 'star')
SHAPES = [(128, 160), (96, 128)]


@pytest.fixture(autouse=True)
def data_set() -> None:
    MessageHub.get_current_instance().update_info('dataset_meta', dict(classes=NAMES))


def save(model: nn.Module, path: Path) -> str:
    torch.save(dict(state_dict=model.state_dict()), path)
    return str(path)


def teacher_with_rows(path: Path, rows: Sequence[int | None], **cfg: Any) -> dict:
    """A teacher whose classes are these rows of one and the same three-class teacher."""
    original = build(tiny_gfl(), seed=7)
    model = build(tiny_gfl(num_classes=len(rows)), seed=7)
    state = original.state_dict()
    for name in ('bbox_head.gfl_cls.weight', 'bbox_head.gfl_cls.bias'):
        source, target = state[name], torch.randn(len(rows), *state[name].shape[1:])
        for row, taken in enumerate(rows):
            if taken is not None:
                target[row] = source[taken]
        state[name] = target
    model.load_state_dict(state)
    config = dict(model=tiny_gfl(num_classes=len(rows)))
    return dict(config=config, checkpoint=save(model, path), **cfg)


def distilled_losses(teacher: Mapping, distillers: Mapping = ld_full) -> dict[str, Tensor]:
    model = build(tiny_distilled(teacher, distillers))
    found = losses(model, batch(SHAPES))
    return {name: found[f'loss_{name}'] for name in distillers}


def context_of(model: nn.Module, data: dict) -> DistillationContext:
    processed = model.data_preprocessor(dict(data), training=True)
    return model.observe(processed['inputs'], processed['data_samples'])[1]


@pytest.mark.parametrize(
    ('rows', 'options'),
    [
        ([2, 0, 1], dict(classes=('star', 'circle', 'square'))),
        ([None, 2, 0, None, 1], dict(classes=('moon', 'star', 'circle', 'sun', 'square'))),
        (
            [2, 0, 1],
            dict(classes=('c', 'a', 'b'), class_map=dict(circle='a', square='b', star='c')),
        ),
        ([1, None, 0, 2], dict(class_map={0: 2, 1: 0, 2: 3})),
        ([1, 0, 2], dict(class_map={'circle': 1, 'square': 0, 'star': 2})),
        ([1, None, 0, 2], dict(class_map={'0': '2', '1': '0', '2': '3'})),
        (
            [2, None, 0, 1],
            dict(classes=('star', 'moon', 'disc', 'square'), class_map=dict(circle='disc')),
        ),
        ([0, 1, 2, None], dict(classes=(*NAMES, 'moon'))),
        ([1, 0, 2], dict(classes=NAMES, class_map=dict(circle='square', square='circle'))),
    ],
    ids=[
        'permuted',
        'more',
        'renamed',
        'by index',
        'by name and index',
        'by index as the command line writes it',
        'one renamed',
        'more at the end',
        'other than the equal names',
    ],
)
def test_classes_meet_their_partners(tmp_path: Path, rows: list, options: dict) -> None:
    expected = distilled_losses(teacher_with_rows(tmp_path / 'a.pth', [0, 1, 2], classes=NAMES))
    found = distilled_losses(teacher_with_rows(tmp_path / 'b.pth', rows, **options))
    for name, value in expected.items():
        assert value > 0
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize('family', ['retinanet', 'fcos', 'tood'])
def test_classes_meet_their_partners_in_every_distiller(family: str) -> None:
    """Of heads with nine priors per cell, with one, and with probabilities."""
    MessageHub.get_current_instance().update_info('epoch', 0)  # TOOD's assigner depends on it
    distillers = bckd | rm_pfi | imitation_gi | dict(kd=ld_full['kd'])
    if family != 'tood':  # it has no stacked convolutions
        distillers |= crosskd
    original, more = (build(tiny(family, c, stacked_convs=3), seed=7) for c in (3, 5))
    state = more.state_dict()
    for name, weight in original.state_dict().items():
        if weight.shape == state[name].shape:
            state[name] = weight
        else:  # of the classes, for every anchor
            state[name].unflatten(0, (-1, 5))[:, [2, 4, 1]] = weight.unflatten(0, (-1, 3))
    more.load_state_dict(state)
    found = []
    for teacher, classes in (
        (original, NAMES),
        (more, ('moon', 'star', 'circle', 'sun', 'square')),
    ):
        config = dict(model=tiny(family, len(classes), stacked_convs=3))
        student = tiny(family, stacked_convs=3)
        cfg = dict(config=config, checkpoint=None, classes=classes)
        model = build(tiny_distilled(cfg, distillers, student))
        asked, model.teacher = model.teacher, FrozenTeacher(teacher, classes=classes)
        model.teacher.reads, model.teacher.head_layers = asked.reads, asked.head_layers
        values = losses(model, batch(SHAPES))
        found.append({name: values[f'loss_{name}'] for name in distillers})
    for name, expected in found[0].items():
        assert expected > 0, name
        torch.testing.assert_close(found[1][name], expected, rtol=1e-4, atol=1e-6, msg=name)


def test_classes_without_a_partner_carry_no_loss(tmp_path: Path) -> None:
    teacher = teacher_with_rows(tmp_path / 'a.pth', [0, 2], classes=('circle', 'star'))
    model = build(tiny_distilled(teacher, dict(kd=ld_full['kd'], ld=ld_full['ld'])))
    data = batch(SHAPES, objects=(3, 3))
    for sample, labels in zip(data['data_samples'], ([0, 1, 2], [1, 1, 1]), strict=True):
        sample.gt_instances.labels = torch.tensor(labels)
    with pytest.warns(UserWarning, match=r"not distilled: \['square'\]"):
        found = losses(model, data)
    (found['loss_kd'] + found['loss_ld']).backward()
    gradient = model.bbox_head.gfl_cls.weight.grad.flatten(1).abs().sum(1)
    assert gradient[0] > 0
    assert gradient[1] == 0
    assert gradient[2] > 0

    context = context_of(model, data)
    assert [len(boxes) for boxes in context.gt_bboxes] == [2, 0]
    assert not context.assignment.positive[1].any()
    assert set(context.assignment.labels[0].tolist()) == {0, 1, 2}
    assert context.student.spec.num_classes == context.teacher.spec.num_classes == 2
    # the second ground truth that is left is the star
    star = context.assignment.positive[0] & (context.assignment.labels[0] == 1)
    assert (context.assignment.matched_gts[0][star] == 1).all()


@pytest.mark.parametrize('name', ['bckd_cls', 'rm', 'pfi', 'defeat_cls'])
def test_no_distiller_teaches_a_class_without_a_partner(name: str, tmp_path: Path) -> None:
    known = bckd | rm_pfi | defeat
    model = tiny_gfl(stacked_convs=3)
    stock = build(model, seed=7)
    head = stock.bbox_head.gfl_cls
    for value in (head.weight, head.bias):
        value.data = value.data[[0, 2]]
    checkpoint = save(stock, tmp_path / 'a.pth')
    config = dict(model=tiny_gfl(num_classes=2, stacked_convs=3))
    teacher = dict(config=config, checkpoint=checkpoint, classes=('circle', 'star'))
    student = build(tiny_distilled(teacher, {name: known[name]}, model))
    data = batch(SHAPES, objects=(3, 3))
    for sample in data['data_samples']:
        sample.gt_instances.labels = torch.tensor([0, 1, 2])
    with pytest.warns(UserWarning, match=r"not distilled: \['square'\]"):
        losses(student, data)[f'loss_{name}'].backward()
    gradient = student.bbox_head.gfl_cls.weight.grad.flatten(1).abs().sum(1)
    assert gradient[1] == 0
    assert gradient[0] + gradient[2] > 0


EVERYWHERE = dict(type='EverywhereRegion')


@pytest.mark.parametrize(
    'cfg',
    [
        dict(type='LocalizationDistiller', region=EVERYWHERE),
        dict(type='LocalizationDistiller', region=dict(EVERYWHERE, exclude_positives=True)),
        dict(type='LocalizationDistiller', region=EVERYWHERE, normalizer='level_positions'),
        dict(type='ClassificationDistiller', region=EVERYWHERE),
        dict(type='ClassificationDistiller', region=EVERYWHERE, weights='region'),
        dict(type='BoxDistiller', region=EVERYWHERE),
        dict(type='QualityDistiller', region=EVERYWHERE),
    ],
)
def test_positives_of_a_class_without_a_partner_are_no_background(cfg: dict) -> None:
    whole = context(images=2)
    match = TeacherMatch(whole.student.spec, whole.teacher.spec, ClassMatch((0, 2), (0, 2), 3, 3))
    labels = [torch.arange(len(boxes)) for boxes in whole.gt_bboxes]
    step = match.context(whole.student, whole.teacher, whole.assignment, whole.gt_bboxes, labels)
    build_distillers(dict(x=cfg), step.student.spec, step.teacher.spec)['x'](step).backward()

    student = whole.student
    slopes = [
        torch.cat([level.grad.abs().sum(1).flatten(1) for level in maps], dim=1)
        for maps in (student.class_maps, student.box_maps, student.quality_maps)
        if maps[0].grad is not None
    ]
    taught = sum(slopes) > 0
    unknown = whole.assignment.labels == 1
    assert unknown.any()
    assert not taught[unknown].any()
    assert taught[~unknown & (whole.assignment.labels == 3) & whole.assignment.valid].all()


def with_finest_level(model: ConfigDict) -> ConfigDict:
    """Levels of stride 4 to 64: one below the student's, and none of stride 128."""
    model.bbox_head.anchor_generator.strides = [4, 8, 16, 32, 64]
    model.neck.start_level = 0
    return model


def six_levels(model: ConfigDict) -> ConfigDict:
    model.bbox_head.anchor_generator.strides = [4, 8, 16, 32, 64, 128]
    model.neck.update(start_level=0, num_outs=6)
    return model


def test_student_levels_are_a_subset_of_the_teachers() -> None:
    teacher = dict(config=dict(model=six_levels(tiny_gfl())), checkpoint=None)
    model = build(tiny_distilled(teacher))
    context = context_of(model, batch(SHAPES))
    assert context.teacher.spec.strides == context.student.spec.strides
    assert context.teacher.level_shapes == context.student.level_shapes
    torch.testing.assert_close(context.teacher.priors, context.student.priors)
    for name in ld_full:
        assert losses(model, batch(SHAPES))[f'loss_{name}'].isfinite()


def test_features_are_distilled_on_the_levels_that_both_have() -> None:
    teacher = dict(config=dict(model=with_finest_level(tiny_gfl())), checkpoint=None)
    model = build(tiny_distilled(teacher, imitation_everywhere))
    context = context_of(model, batch(SHAPES))
    assert context.student.spec.strides == ((8, 8), (16, 16), (32, 32), (64, 64))
    assert [f.shape for f in context.student.features] == [
        f.shape for f in context.teacher.features
    ]
    assert context.assignment.labels.shape == (2, len(context.student.priors))
    assert losses(model, batch(SHAPES))['loss_im'] > 0


def test_boxes_alone_do_not_depend_on_the_order_of_the_classes(tmp_path: Path) -> None:
    found = []
    for rows in ([0, 1, 2], [2, 0, 1]):
        cfg = teacher_with_rows(tmp_path / 'a.pth', rows, classes=[NAMES[row] for row in rows])
        found.append(losses(build(tiny_distilled(cfg, ld_main)), batch(SHAPES))['loss_ld'])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize('images', [1, 3])
def test_the_assignment_on_the_levels_that_both_have(images: int) -> None:
    whole = context(images=images, priors_per_cell=2)
    teacher = take_levels(whole.teacher, [1, 2])
    match = TeacherMatch(whole.student.spec, teacher.spec)
    found = match.context(whole.student, teacher, whole.assignment, whole.gt_bboxes, ()).assignment
    assert found.positive.any()
    finest = whole.student.num_level_priors[0]
    for name in ('labels', 'label_weights', 'valid', 'positive', 'matched_gts'):
        expected = getattr(whole.assignment, name)[:, finest:]
        assert torch.equal(getattr(found, name), expected), name
    assert found.positive.sum() < whole.assignment.positive.sum()
    assert torch.equal(found.num_positives, whole.assignment.positive.sum(1))


def test_levels_of_the_teacher_come_in_the_students_order() -> None:
    whole = context()
    teacher = take_levels(whole.teacher, [2, 0, 1])
    match = TeacherMatch(whole.student.spec, teacher.spec)
    found = match.context(whole.student, teacher, whole.assignment, whole.gt_bboxes, ()).teacher
    assert found.spec.strides == whole.student.spec.strides
    for pair in zip(found.class_maps, whole.teacher.class_maps, strict=True):
        assert torch.equal(*pair)


def test_positives_keep_their_weight_beside_those_without_a_partner() -> None:
    whole = context(images=2)
    teacher = take_levels(whole.teacher, [1, 2])
    match = TeacherMatch(whole.student.spec, teacher.spec, ClassMatch((0, 2), (0, 2), 3, 3))
    labels = [torch.arange(len(boxes)) for boxes in whole.gt_bboxes]
    part = match.context(whole.student, teacher, whole.assignment, whole.gt_bboxes, labels)
    slopes = []
    for step in (whole, part):
        quality = dict(x=dict(type='QualityDistiller'))
        build_distillers(quality, step.student.spec, step.teacher.spec)['x'](step).backward()
        levels = [level.grad for level in whole.student.quality_maps[1:]]
        slopes.append(torch.cat([level.flatten(1).clone() for level in levels], dim=1))
        for level in whole.student.quality_maps:
            level.grad = None
    kept = part.assignment.positive
    assert 0 < kept.sum() < whole.assignment.positive.sum()
    torch.testing.assert_close(slopes[1], slopes[0] * kept)


@pytest.mark.parametrize(('scale', 'strides'), [(2, [8, 16, 32, 64]), (0.5, [16, 32, 64, 128])])
def test_images_are_enlarged_for_the_teacher(scale: float, strides: list[int]) -> None:
    teacher = dict(config=dict(model=tiny_gfl()), checkpoint=None, image_scale=scale)
    model = build(tiny_distilled(teacher, ld_full | fitnet))
    data = batch(SHAPES)
    context = context_of(model, data)
    assert [x for x, _ in context.teacher.spec.strides] == strides
    # equal cells are equal places
    torch.testing.assert_close(context.teacher.priors, context.student.priors)
    assert context.teacher.level_shapes == context.student.level_shapes

    # what the teacher sees in the student's pixels is what it sees in its own
    inputs = model.data_preprocessor(dict(data), training=True)['inputs']
    size = [int(side * scale) for side in inputs.shape[-2:]]
    enlarged = F.interpolate(inputs, size, mode='bilinear', antialias=scale < 1)
    enlarged[1, :, int(96 * scale) :] = 0
    enlarged[1, :, :, int(128 * scale) :] = 0
    outputs = model.teacher.__class__(model.teacher._model)(
        enlarged, [(int(h * scale), int(w * scale)) for h, w in SHAPES]
    ).outputs
    level = strides.index(32)
    own = [x for x, _ in outputs.spec.strides].index(32 * scale)
    torch.testing.assert_close(
        context.teacher.level_class_logits(level), outputs.level_class_logits(own)
    )
    torch.testing.assert_close(
        context.teacher.level_boxes(level), outputs.level_boxes(own) / scale, atol=1e-3, rtol=1e-4
    )
    torch.testing.assert_close(context.teacher.features[level], outputs.features[own])
    for name in ld_full:
        assert losses(model, data)[f'loss_{name}'].isfinite()


def test_rotated_boxes_of_horizontal_priors_are_rescaled() -> None:
    """As of a coder that gives anchors without an angle one."""

    def decode(rows: Tensor, priors: Tensor, strides: Tensor) -> Tensor:
        return upright(priors) + rows[:, :1] * Tensor([0, 0, 0, 0, 1])

    outputs = rescaled(replace(context().teacher, decoder=decode), 2)
    rows, priors = torch.rand(3, 4), Tensor([[4, 2, 12, 8]]).expand(3, 4)
    boxes = outputs.decoder(rows, priors, torch.ones(3, 1))
    assert torch.equal(boxes[:, :4], Tensor([[8, 5, 8, 6]]).expand(3, 4))
    assert torch.equal(boxes[:, 4], rows[:, 0])


@pytest.mark.parametrize('family', ['rtmdet', 'yolox'])
def test_images_that_the_teachers_neck_cannot_take(family: str) -> None:
    """It enlarges a level by two and joins it with the next, which has a column less."""
    teacher = dict(config=dict(model=tiny(family)), checkpoint=None, image_scale=0.5)
    student = tiny_gfl()
    model, data = build(tiny_distilled(teacher, pkd, student)), batch([(64, 96), (64, 64)])
    with pytest.raises(ConfigError, match=r'32 x 48 pixels, .* stride, 32, .* Expected 64,'):
        losses(model, data)
    student.data_preprocessor.pad_size_divisor = 64
    model = build(tiny_distilled(teacher, pkd, student))
    assert losses(model, data)['loss_pkd'] > 0


def test_images_that_a_feature_pyramid_grid_cannot_take() -> None:
    """It enlarges a level by two and adds the next, by no module of its own."""
    model = tiny_gfl()
    neck = get_config('mmdet::fpg/retinanet_r50_fpg-chn128_crop640_50e_coco.py').model.neck
    neck.update(in_channels=model.neck.in_channels, out_channels=32, inter_channels=32)
    teacher = dict(config=dict(model=model | dict(neck=neck)), checkpoint=None)
    student = tiny_distilled(teacher, pkd)
    with pytest.raises(ConfigError, match=r'96 x 160 pixels, .* stride, 128, .* Expected 128,'):
        losses(build(student), batch([(96, 160)], [1]))
    student.data_preprocessor.pad_size_divisor = 128
    assert losses(build(student), batch([(96, 160)], [1]))['loss_pkd'] > 0


@pytest.mark.parametrize(('family', 'size'), [('gfl', 96), ('rtmdet', 64)])
def test_other_errors_of_the_teacher_are_not_taken_for_its_images_size(
    family: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = dict(config=dict(model=tiny(family)), checkpoint=None)
    model = build(tiny_distilled(teacher, pkd))
    failing = Mock(side_effect=RuntimeError('of another kind'))
    monkeypatch.setattr(model.teacher._model, 'extract_feat', failing)
    with pytest.raises(RuntimeError, match=r'^of another kind$'):
        losses(model, batch([(size, size)], [1]))


@pytest.mark.parametrize('family', ['atss', 'fcos', 'tood'])
def test_classes_of_another_kind_of_detector(family: str, tmp_path: Path) -> None:
    """Cell by cell the class logits are those of the stock teacher on its own input."""
    stock = build(tiny(family), seed=7)
    teacher = dict(config=dict(model=tiny(family)), checkpoint=save(stock, tmp_path / 't.pth'))
    model = build(tiny_distilled(teacher, dict(kd=ld_full['kd'], score=bckd['bckd_cls'])))
    data = batch(SHAPES)
    context = context_of(model, data)
    assert context.teacher.level_shapes == context.student.level_shapes
    with torch.no_grad():
        own = stock.eval().data_preprocessor(dict(data), training=True)['inputs']
        maps = stock.bbox_head(stock.extract_feat(own))[0]
    for level, expected in enumerate(maps):
        scores = context.teacher.level_class_logits(level).sigmoid()
        rows = level_rows(expected, 1)
        torch.testing.assert_close(
            scores, rows if family == 'tood' else rows.sigmoid(), rtol=1e-3, atol=1e-5
        )
    found = losses(model, data)
    assert found['loss_kd'] > 0 and found['loss_score'] > 0


def test_features_of_another_width_are_compared_behind_the_adapter() -> None:
    teacher = dict(config=dict(model=tiny_gfl(channels=64)), checkpoint=None)
    model = build(tiny_distilled(teacher, fitnet))
    data = batch(SHAPES)
    context = context_of(model, data)
    adapter = model.distillers.im.adapter
    cells = context.assignment.valid.split(context.student.num_level_priors, dim=1)
    expected = 0.0
    for valid, mine, other in zip(
        cells, context.student.features, context.teacher.features, strict=True
    ):
        assert (mine.shape[1], other.shape[1]) == (32, 64)
        squares = (level_rows(adapter(mine), 1) - level_rows(other, 1)).square().mean(-1)
        expected += 2 * squares[valid].mean()
    torch.testing.assert_close(losses(model, data)['loss_im'], expected)


@pytest.mark.parametrize(
    ('student', 'teacher'), [('distribution_fcos', 'gfl'), ('gfl', 'distribution_fcos')]
)
def test_distances_from_other_points_are_refused(student: str, teacher: str) -> None:
    """FCOS counts them from the middle of a cell, GFL from its corner."""
    cfg = dict(config=dict(model=tiny(teacher)), checkpoint=None)
    with pytest.raises(ConfigError, match=r'^model\.distillers\.ld: places of the priors.* differ'):
        build(tiny_distilled(cfg, ld_point, tiny(student)))
    model = build(tiny_distilled(cfg, bckd, tiny(student)))
    assert losses(model, batch(SHAPES))['loss_bckd_box'] > 0


def anchors(**changes: Any) -> ConfigDict:
    """Of a tiny RetinaNet, nine in a cell."""
    model = tiny('retinanet')
    model.bbox_head.anchor_generator.update(changes)
    return model


@pytest.mark.parametrize(
    'changes',
    [dict(ratios=[2.0, 1.0, 0.5]), dict(octave_base_scale=8), dict(octave_base_scale=4.1)],
    ids=['order', 'size', 'slightly'],
)
def test_other_anchors_are_refused(changes: dict) -> None:
    """As many in a cell, so nothing but their shapes tells."""
    cfg = dict(config=dict(model=anchors(**changes)), checkpoint=None)
    where = r'^model\.distillers\.bckd_cls: anchors differ on the level of stride 8: '
    with pytest.raises(ConfigError, match=where + r'.*\[5\.66, 2\.83\]'):
        build(tiny_distilled(cfg, bckd, tiny('retinanet')))
    model = build(tiny_distilled(cfg, fitnet, tiny('retinanet')))
    assert losses(model, batch(SHAPES))['loss_im'] > 0


def test_two_anchors_in_another_order_are_refused() -> None:
    two = dict(scales_per_octave=1)
    teacher = dict(config=dict(model=anchors(**two, ratios=[0.5, 2.0])), checkpoint=None)
    with pytest.raises(ConfigError, match='anchors differ'):
        build(tiny_distilled(teacher, bckd, anchors(**two, ratios=[2.0, 0.5])))


def test_anchors_are_compared_with_those_of_the_level_that_they_are_paired_with() -> None:
    def model(*in_strides: int) -> ConfigDict:
        """RetinaNet with anchors of another size on every level."""
        strides, model = [8, 16, 32, 64, 128], tiny('retinanet')
        sizes = [stride * factor for stride, factor in zip(strides, in_strides, strict=True)]
        model.bbox_head.anchor_generator = dict(
            type='AnchorGenerator', scales=[1.0, 2.0], ratios=[1.0], strides=strides,
            base_sizes=sizes,
        )  # fmt: skip
        return model

    # the teacher's stride 16 teaches the student's 8
    teacher = dict(config=dict(model=model(7, 2, 3, 4, 5)), checkpoint=None, image_scale=2)
    build(tiny_distilled(teacher, bckd, model(2, 3, 4, 5, 6)))
    with pytest.raises(ConfigError, match='anchors differ'):
        build(tiny_distilled(teacher, bckd, model(7, 2, 3, 4, 5)))


def test_the_only_anchor_of_a_cell_may_have_another_size() -> None:
    one = dict(scales_per_octave=1, ratios=[1.0])
    cfg = dict(config=dict(model=anchors(**one, octave_base_scale=8)), checkpoint=None)
    model = build(tiny_distilled(cfg, bckd, anchors(**one)))
    assert losses(model, batch(SHAPES))['loss_bckd_cls'] > 0


def test_distances_from_the_centres_of_other_anchors_are_compared() -> None:
    teacher = tiny_gfl()
    teacher.bbox_head.anchor_generator.octave_base_scale = 4
    model = build(tiny_distilled(dict(config=dict(model=teacher), checkpoint=None), ld_main))
    assert losses(model, batch(SHAPES))['loss_ld'] > 0


@needs.mmrotate
def test_offsets_from_other_anchors_are_refused() -> None:
    name = 'distribution_rotated_retinanet'
    with scope(name):
        student, teacher = tiny(name), tiny(name)
        for model in (student, teacher):
            model.bbox_head.anchor_generator.update(scales_per_octave=1, ratios=[1.0])
        teacher.bbox_head.anchor_generator.octave_base_scale = 8
        cfg = dict(config=dict(model=teacher, default_scope='mmrotate'), checkpoint=None)
        model = tiny_distilled(cfg, rotated_ld_kld, student)
        model.type = 'mmdet.DistilledSingleStageDetector'
        with pytest.raises(ConfigError, match=r'^model\.distillers\.ld: anchors differ'):
            build(model)
        model.distillers = dict(kd=dict(type='ClassificationDistiller'))
        build(model)  # one anchor in each cell, whose class it compares


@pytest.mark.parametrize('name', ['bckd_cls', 'rm', 'pfi', 'defeat_cls', 'imitation_gi'])
def test_class_scores_of_yolox_say_nothing_of_background(name: str) -> None:
    """They would teach RTMDet, whose own learn it, at places where they have learnt nothing."""
    known = bckd | rm_pfi | defeat | dict(imitation_gi=next(iter(imitation_gi.values())))
    distillers = {name: known[name]}
    teacher = tiny('yolox')
    cfg = dict(config=dict(model=teacher), checkpoint=None)
    if name == 'rm':  # looks at positives
        assert build(tiny_distilled(cfg, distillers, tiny('rtmdet'))).distillers.keys() == {'rm'}
        return
    with pytest.raises(
        ConfigError, match=rf'^model\.distillers\.{name}: the class scores of YOLOX'
    ):
        build(tiny_distilled(cfg, distillers, tiny('rtmdet')))
    build(tiny_distilled(cfg, distillers, teacher))
    # of others YOLOX learns it
    cfg = dict(config=dict(model=tiny('rtmdet')), checkpoint=None)
    build(tiny_distilled(cfg, distillers, teacher))


def test_distances_from_the_same_points_are_compared() -> None:
    cfg = dict(config=dict(model=tiny('gfl')), checkpoint=None)
    model = build(tiny_distilled(cfg, ld_point, tiny('distribution_atss')))
    assert losses(model, batch(SHAPES))['loss_ld'] > 0


def test_classes_that_were_first_matched_in_inference_mode(tmp_path: Path) -> None:
    teacher = teacher_with_rows(tmp_path / 'a.pth', [2, 0], classes=('star', 'circle'))
    model = build(tiny_distilled(teacher, bckd))
    with torch.inference_mode():
        losses(model, batch(SHAPES))
    assert model._match.classes._indices
    losses(model, batch(SHAPES))['loss_bckd_cls'].backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


def test_class_map_says_what_equal_names_do_not() -> None:
    names = 'circle', 'square', 'star', '7'
    match = ClassMatch.by_map({'circle': 'disc', 'star': None}, names, ('7', 'square', 'disc'))
    assert (match.student, match.teacher) == ((0, 1, 3), (2, 1, 0))
    assert ClassMatch.by_map({'7': 0}, names, 3).student == (3,)  # a name before an index
    with pytest.raises(ConfigError, match=r"the student's class 5 is not in 0\.\.3"):
        ClassMatch.by_map({'5': 0}, names, 3)


def test_bad_values(tmp_path: Path) -> None:
    def message(**cfg: Any) -> str:
        with pytest.raises(ValueError) as caught:  # ConfigError
            losses(build(tiny_distilled(teacher_with_rows(tmp_path / 'a.pth', **cfg))), batch())
        return str(caught.value)

    assert message(rows=[0, 1, 2], image_scale=0).startswith('model.teacher.image_scale: found 0')
    of_scale = message(rows=[0, 1, 2], image_scale=1.5)
    assert 'strides of the levels differ' in of_scale
    assert of_scale.endswith('a power of two for model.teacher.image_scale.')
    found = message(rows=[0, 1, 2], classes=NAMES, class_map=dict(circle='round'))
    assert found.startswith("model.teacher.class_map: 'round' is none of the teacher's classes")
    found = message(rows=[0, 1, 2], class_map=dict(circle='round'))
    assert "the names of the teacher's classes are not known" in found
    found = message(rows=[0, 1, 2], class_map={0: 3})
    assert found.startswith("model.teacher.class_map: the teacher's class 3 is not in 0..2")
    found = message(rows=[0, 1, 2], class_map={-1: 0})
    assert found.startswith("model.teacher.class_map: the student's class -1 is not in 0..2")
    found = message(rows=[0, 1, 2], classes=NAMES, class_map={NAMES[1]: 0, 1: 1})
    assert found.startswith('model.teacher.class_map: found {')
    assert "has a class of the student's twice" in found
    assert 'number of classes' in message(rows=[0, 1, 2, None])


def test_class_map_of_features_alone_is_said_to_have_no_effect() -> None:
    teacher = dict(config=dict(model=tiny_gfl()), checkpoint=None, class_map={0: 2})
    with pytest.warns(UserWarning, match='class_map: has no effect, as no distiller compares'):
        build(tiny_distilled(teacher, imitation_everywhere))


def test_unknown_names_of_equally_many_classes_correspond_in_order(tmp_path: Path) -> None:
    expected = distilled_losses(teacher_with_rows(tmp_path / 'a.pth', [0, 1, 2], classes=NAMES))
    found = distilled_losses(teacher_with_rows(tmp_path / 'b.pth', [0, 1, 2]), ld_main)
    torch.testing.assert_close(found['ld'], expected['ld'])


def pooled_levels() -> ConfigDict:
    """A teacher whose coarse levels are pooled from a fine one, which rounds their sizes down."""
    model = tiny_gfl()
    neck = dict(type='HRFPN', in_channels=model.neck.in_channels, out_channels=32, num_outs=5)
    model.neck = ConfigDict(neck | dict(stride=2))
    return model


@pytest.mark.parametrize('recipe', [fitnet, ld_full, rm_pfi, bckd], ids=lambda x: '+'.join(x))
def test_levels_of_another_size_are_refused(recipe: dict) -> None:
    """Some of these would compare other places of the image, and others stop without a reason."""
    teacher = dict(config=dict(model=pooled_levels()), checkpoint=None)
    model = build(tiny_distilled(teacher, recipe))
    with pytest.raises(ConfigError) as caught:
        losses(model, batch(((160, 160), (160, 128))))
    assert 'stride 128 differ: student 2 x 2, teacher 1 x 1, expected' in str(caught.value)
    assert 'pad_size_divisor to the largest stride, 128,' in str(caught.value)


def test_boxes_of_a_data_set_in_float64() -> None:
    """Which FCOS's own losses take."""
    student = tiny('distribution_fcos')
    teacher = dict(config=dict(model=student), checkpoint=None)
    model, data = build(tiny_distilled(teacher, ld_point, student)), batch()
    expected = losses(model, data)
    for sample in data['data_samples']:
        sample.gt_instances.bboxes = sample.gt_instances.bboxes.double()
    found = losses(model, data)
    for name in ld_point:
        torch.testing.assert_close(found[f'loss_{name}'], expected[f'loss_{name}'])


#: heads of the three finest levels
_FINEST = dict(strides=[8, 16, 32])
CUT = {
    'gfl': lambda: dict(anchor_generator=tiny_gfl().bbox_head.anchor_generator | _FINEST),
    'fcos': lambda: _FINEST | dict(regress_ranges=((-1, 64), (64, 128), (128, 1e8))),
}


@pytest.mark.parametrize(
    'recipe',
    [
        pkd,
        imitation_gi,
        defeat,
        bckd,
        *(dict(cross=dict(type='CrossHeadDistiller', layer=layer)) for layer in (0, 1)),
    ],
    ids=lambda x: '+'.join(x),
)
@pytest.mark.parametrize('family', list(CUT))
def test_levels_that_the_head_does_not_look_at(family: str, recipe: dict, tmp_path: Path) -> None:
    """Stock heads leave out what a neck has beyond their strides."""
    model = tiny(family, **CUT[family]())
    teacher = dict(config=dict(model=model), checkpoint=save(build(model, seed=1), tmp_path / 't'))
    student = build(tiny_distilled(teacher, recipe, model))
    model.neck.num_outs = 3
    same = build(tiny_distilled(teacher, recipe, model))
    same.load_state_dict(student.state_dict(), strict=False)
    torch.testing.assert_close(losses(student, batch()), losses(same, batch()))


def test_padding_to_whole_cells_makes_levels_of_one_size() -> None:
    teacher = dict(config=dict(model=pooled_levels()), checkpoint=None)
    student = tiny_distilled(teacher, fitnet)
    student.data_preprocessor.pad_size_divisor = 128
    found = losses(build(student), batch(((160, 160), (160, 128))))
    assert found['loss_im'].isfinite()


@pytest.mark.parametrize(
    ('family', 'recipe', 'counted'),
    [
        ('gfl', imitation_inside_gt, 3),
        ('gfl', imitation_inside_gt | dict(kd=ld_full['kd']), 2),
        ('faster_rcnn', defeat_two_stage, 3),
    ],
    ids=['features alone', 'features beside classes', 'two stages'],
)
def test_which_objects_count_where_the_teacher_knows_fewer_classes(
    family: str, recipe: dict, counted: int
) -> None:
    config = dict(model=tiny(family, 2))
    teacher = dict(config=config, checkpoint=None, classes=('circle', 'star'))
    student = tiny_distilled(teacher, recipe, tiny(family))
    if family == 'faster_rcnn':
        student.type = 'DistilledTwoStageDetector'
    data = batch(SHAPES[:1], objects=(3,))
    data['data_samples'][0].gt_instances.labels = torch.arange(3)
    assert len(context_of(build(student), data).gt_bboxes[0]) == counted


@pytest.mark.parametrize(
    ('student', 'teacher', 'differ'),
    [
        ('atss', 'paa', 'student centerness, teacher IoU'),
        ('yolox', 'fcos', 'student objectness, teacher centerness'),
    ],
)
def test_qualities_of_another_meaning_are_refused(student: str, teacher: str, differ: str) -> None:
    config = dict(config=dict(model=tiny(teacher)), checkpoint=None)
    model = tiny_distilled(config, dict(rating=dict(type='QualityDistiller')), tiny(student))
    with pytest.raises(ConfigError) as caught:
        build(model)
    assert str(caught.value).startswith('model.distillers.rating: meanings of the quality that ')
    assert differ in str(caught.value)


def test_centerness_of_another_head_is_distilled() -> None:
    config = dict(config=dict(model=tiny('fcos')), checkpoint=None)
    distillers = dict(rating=dict(type='QualityDistiller'))
    found = losses(build(tiny_distilled(config, distillers, tiny('atss'))), batch())
    assert found['loss_rating'] > 0


@pytest.mark.parametrize(
    ('theirs', 'advice'),
    [
        ((5, 6, 1), 'pad_size_divisor'),
        ((4, 7, 1), 'pad_size_divisor'),
        ((3, 12, 1), 'start_level'),
    ],
    ids=['height', 'width', 'levels'],
)
def test_levels_of_one_stride_and_other_sizes(theirs: tuple[int, int, int], advice: str) -> None:
    spec = SimpleNamespace(strides=((8, 8),))
    student = SimpleNamespace(spec=spec, level_shapes=[(4, 6, 1)])
    with pytest.raises(ConfigError, match=f'sizes of the maps of stride 8 differ.*{advice}'):
        distilled._check_sizes(Mock(student=student, teacher=Mock(level_shapes=[theirs])))


def test_the_teacher_sees_every_image_without_its_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, call = [], FrozenTeacher.__call__

    def watched(teacher: FrozenTeacher, images: Tensor, shapes: Sequence[Sequence[int]]) -> Any:
        seen.append((tuple(images.shape[-2:]), [tuple(shape) for shape in shapes]))
        return call(teacher, images, shapes)

    monkeypatch.setattr(FrozenTeacher, '__call__', watched)
    losses(build(tiny_distilled()), batch([(60, 128), (128, 100)], (2, 1)))
    assert seen == [((128, 128), [(60, 128), (128, 100)])]


def test_positives_of_classes_that_the_teacher_lacks_count() -> None:
    whole = context(images=2)
    classes = ClassMatch((0, 2), (0, 2), 3, 3)
    match = TeacherMatch(whole.student.spec, whole.teacher.spec, classes)
    labels = [torch.arange(len(boxes)) for boxes in whole.gt_bboxes]
    part = match.context(whole.student, whole.teacher, whole.assignment, whole.gt_bboxes, labels)
    assert part.assignment.positive.sum() < whole.assignment.positive.sum()
    assert torch.equal(part.assignment.num_positives, whole.assignment.positive.sum(1))
    assert torch.equal(part.mean_num_positives, whole.mean_num_positives)
