"""CrossKD: values against a plain computation, edges, whole training steps, bad configs."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine import ConfigDict
from mmengine.registry import DefaultScope
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from ld_plugin.dense import DenseOutputs, DistillationContext
from ld_plugin.dense.head_features import HeadFeatures
from ld_plugin.detectors import packed_convolution
from ld_plugin.detectors.packed_convolution import PackedConv2d
from ld_plugin.distillers import CrossHeadDistiller, box, crosshead
from ld_plugin.distillers.crosshead import with_statistics_of
from ld_plugin.errors import ConfigError
from ld_plugin.losses import channel_statistics
from ld_plugin.recipes import crosskd
from tests import brute_force, contexts, needs
from tests.contexts import context, rows
from tests.families import SINGLE_STAGE, tiny
from tests.models import batch, build, distillation_loss, losses, tiny_distilled, tiny_gfl

STACKED = [family for family in SINGLE_STAGE if 'tood' not in family]
CROSS = dict(type='CrossHeadDistiller', layer=1)
make = partial(contexts.make, **CROSS)
WIDTHS = (2, 3, 3)
SHAPES = ((160, 192), (128, 192))


# the arithmetic, on contexts


def cross_context(
    priors_per_cell: int = 1, distributions: bool = True, separate: bool = True
) -> DistillationContext:
    """A step whose rest of the teacher's head returns the student's maps, whatever enters it.

    They follow the first number of the level's features, each channel with another slope.
    """
    step = context(images=3, priors_per_cell=priors_per_cell)
    dense = []
    for outputs in (step.student, step.teacher):
        spec = replace(
            outputs.spec,
            extras=outputs.spec.extras | {'head_features'},
            tower_channels=WIDTHS,
            num_bins=5 if distributions else None,
            has_separate_branches=separate,
        )
        branches = (
            [torch.randn(3, 3, *level.shape[-2:]).requires_grad_() for level in outputs.features]
            for _ in HeadFeatures._fields
        )
        if outputs is step.teacher:
            branches = ([channel_statistics(level) for level in levels] for levels in branches)
        dense.append(replace(outputs, spec=spec, head_features={1: HeadFeatures(*branches)}))
    student, teacher = dense

    def rest(layer: int, features: HeadFeatures) -> tuple[Any, Any]:
        asked = [levels is not None for levels in features]
        assert sum(asked) == (1 if separate else 2)
        maps = student.class_maps, student.box_maps
        return tuple(
            [following(level, x) for level, x in zip(levels, entered, strict=True)]
            if entered is not None
            else levels
            for levels, entered in zip(maps, features, strict=True)
        )

    def following(level: Tensor, features: Tensor) -> Tensor:
        first, channels = features.flatten()[0], torch.arange(level.shape[1]).view(-1, 1, 1)
        return level.detach() + (first - first.detach()) * channels

    return replace(step, student=student, teacher=replace(teacher, rest_of_head=rest))


def bins(step: DistillationContext) -> tuple[np.ndarray, np.ndarray]:
    """Of student and teacher, (N, P, 4, 5)."""
    found = []
    for dense in (step.student, step.teacher):
        anchors = dense.spec.num_base_priors
        levels = [
            level.unflatten(1, (a, 4, 5)).permute(0, 4, 5, 1, 2, 3).flatten(1, 3)
            for level, a in zip(dense.box_maps, anchors, strict=True)
        ]
        found.append(torch.cat(levels, dim=1).detach().numpy())
    return tuple(found)


@pytest.mark.parametrize('priors_per_cell', [1, 9])
@pytest.mark.parametrize('distributions', [True, False])
@pytest.mark.parametrize('separate', [True, False])
@pytest.mark.parametrize('numbers_at_once', [1, 2**20])
@pytest.mark.parametrize('in_pieces', [True, False])
def test_values(
    priors_per_cell: int,
    distributions: bool,
    separate: bool,
    numbers_at_once: int,
    in_pieces: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether the levels are compared one by one or all together, whole or cut."""
    monkeypatch.setattr(crosshead, 'numbers_at_once', lambda level_map: numbers_at_once)
    cut = []
    if in_pieces:

        def pieces_of(level: Tensor, *_: Any, **__: Any) -> int:
            cut.append(min(4, level.shape[1]))
            return cut[-1]

        monkeypatch.setattr(crosshead, 'pieces_of', pieces_of)
        monkeypatch.setattr(box, 'pieces_of', pieces_of)
    step = cross_context(priors_per_cell, distributions, separate)
    weights = step.assignment.label_weights
    weights[0, :7], weights[1, 3] = 0, 2
    logits = rows(step, 'level_class_logits')
    each = brute_force.binary_kl(*logits, beta=1).sum(-1)
    classes = (each * weights.numpy()).sum() / step.assignment.positive.sum().item()
    scores = brute_force.sigmoid(logits[1]).max(-1) * (weights.numpy() > 0)
    if distributions:
        sides = brute_force.kl(*bins(step), temperature=1).mean(-1)  # a mean over 5 bins
        boxes = 4 * (scores * sides * 5).sum() / scores.sum()
    else:
        pairs = zip(*(b.reshape(-1, 4) for b in rows(step, 'level_boxes')), strict=True)
        giou = np.array([brute_force.generalized_iou(*pair) for pair in pairs])
        boxes = (scores.reshape(-1) * (1 - giou)).sum() / scores.sum()
    found = make(step)(step)
    assert found.item() == pytest.approx(classes + boxes, rel=1e-4)
    found.backward()
    for levels in step.student.head_features[1]:
        assert all(level.grad.isfinite().all() and level.grad.any() for level in levels)
    assert (max(cut, default=1) > 1) == in_pieces


def test_weights_of_the_parts() -> None:
    step = cross_context()
    whole = make(step)(step).item()
    classes = make(step, box_loss=dict(type='DistributionKLLoss', loss_weight=0))(step).item()
    boxes = make(step, loss=dict(type='BinaryKDLoss', loss_weight=0))(step).item()
    assert 0 < classes < whole
    assert whole == pytest.approx(classes + boxes, rel=1e-5)


def test_nothing_to_compare_is_zero_with_a_gradient() -> None:
    step = cross_context()
    step.assignment.label_weights.zero_()
    loss = make(step)(step)
    loss.backward()
    assert loss.item() == 0
    for levels in step.student.head_features[1]:
        assert all((level.grad == 0).all() for level in levels)


def test_schedule() -> None:
    step = cross_context()
    half = dict(type='ConstantSchedule', value=0.5)
    assert make(step, schedule=half)(step).item() == pytest.approx(0.5 * make(step)(step).item())


# the statistics


def test_statistics_become_the_teachers() -> None:
    student, teacher = torch.randn(2, 4, 5, 6) * 3 + 1, torch.randn(2, 4, 5, 6) * 0.5 - 2
    statistics = channel_statistics(teacher)
    found = with_statistics_of(student, statistics)
    over = 0, 2, 3
    torch.testing.assert_close(found.mean(over), teacher.mean(over))
    torch.testing.assert_close(found.std(over), teacher.std(over))
    torch.testing.assert_close(with_statistics_of(teacher, statistics), teacher)
    torch.testing.assert_close(with_statistics_of(7 * student - 3, statistics), found)


def test_statistics_of_half_precision_are_computed_in_float32() -> None:
    features = torch.randn(2, 4, 5, 6).bfloat16()
    pairs = zip(channel_statistics(features), channel_statistics(features.float()), strict=True)
    for found, expected in pairs:
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)


def test_gradient_of_the_statistics() -> None:
    student = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    statistics = channel_statistics(teacher)
    assert torch.autograd.gradcheck(lambda x: with_statistics_of(x, statistics), student)


@pytest.mark.parametrize(
    'student',
    [torch.ones(1, 3, 1, 1), torch.ones(2, 3, 4, 4), torch.full((2, 3, 1, 1), 1e4)],
    ids=['one position', 'constant', 'large and constant'],
)
def test_features_without_a_deviation(student: Tensor) -> None:
    teacher = torch.randn_like(student)
    found = with_statistics_of(student.requires_grad_(), channel_statistics(teacher))
    expected = teacher.mean((0, 2, 3), keepdim=True).expand_as(teacher)
    torch.testing.assert_close(found, expected)
    (found * torch.randn_like(found)).sum().backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_gradient_through_packed_convolutions(dtype: torch.dtype) -> None:
    plain = nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2).to(dtype).requires_grad_(False)
    packed = nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2).to(dtype).requires_grad_(False)
    packed.load_state_dict(plain.state_dict())
    PackedConv2d.convert(packed)
    gradients = []
    for conv in (plain, packed, packed):
        x = torch.randn(2, 4, 5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
        with torch.no_grad():
            conv(x)
        conv(x.requires_grad_()).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(gradients[2], gradients[0])


# whole models


def trained_once(family: str, path: Path, **head: Any) -> dict:
    """A teacher whose batch norm has seen images, so that its random predictions are bounded."""
    model = build(tiny(family, stacked_convs=2, **head), seed=3)
    data = model.data_preprocessor(batch(SHAPES), training=True)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model(**data, mode='tensor')
    torch.save(dict(state_dict=model.state_dict()), path)
    return dict(config=dict(model=tiny(family, stacked_convs=2, **head)), checkpoint=str(path))


def distilled(
    student: ConfigDict, teacher: ConfigDict | Mapping, cfg: Mapping = CROSS, **options: Any
) -> ConfigDict:
    if 'checkpoint' not in teacher:
        teacher = dict(config=dict(model=teacher), checkpoint=None)
    return tiny_distilled(dict(teacher, **options), dict(x=dict(cfg)), student)


@pytest.mark.parametrize('family', STACKED)
def test_a_step_of_every_family(family: str, tmp_path: Path) -> None:
    head = dict(exp_on_reg=True) if family == 'rtmdet' else {}  # boxes have no sides below 0
    teacher = trained_once(family, tmp_path / 't.pth', **head)
    stock = tiny(family, stacked_convs=2, **head)
    model, plain = build(distilled(stock, teacher)), build(tiny(family, stacked_convs=2, **head))
    plain.load_state_dict(model.state_dict(), strict=True)
    found, expected = losses(model, batch(SHAPES)), losses(plain, batch(SHAPES))
    for name, value in expected.items():
        pairs = zip(
            *((v if isinstance(v, list) else [v]) for v in (value, found[name])), strict=True
        )
        assert all(torch.equal(*pair) for pair in pairs), name
    assert 0 < found['loss_x'] < 1e3
    found['loss_x'].backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(name.startswith('backbone') for name in trained)
    assert any('convs' in name for name in trained)
    # only what comes before the features in the student's head learns from them
    assert all('convs' in name for name in trained if name.startswith('bbox_head'))
    assert all(p.grad is None for p in model.teacher._model.parameters())


@pytest.mark.parametrize('layer', [0, 1, 2])
def test_a_twin_has_nothing_to_learn(layer: int, tmp_path: Path) -> None:
    student = build(tiny_gfl(stacked_convs=2))
    torch.save(dict(state_dict=student.state_dict()), tmp_path / 'x.pth')
    teacher = dict(config=dict(model=tiny_gfl(stacked_convs=2)), checkpoint=str(tmp_path / 'x.pth'))
    cfg = CROSS | dict(layer=layer)
    model = build(distilled(tiny_gfl(stacked_convs=2), teacher, cfg), seed=1)
    other = distillation_loss(model, batch())
    model.load_state_dict(student.state_dict())
    assert distillation_loss(model, batch()) < 1e-3 * other


@pytest.mark.parametrize(
    ('shapes', 'objects'),
    [([(64, 64)], [1]), ([(64, 64), (48, 64)], [0, 0]), ([(32, 32)], [0])],
    ids=['batch of one', 'no objects', 'one small empty image'],
)
def test_small_batches(shapes: list, objects: list) -> None:
    # of a single position, the head's group norm wants two channels in a group
    stock = tiny_gfl(stacked_convs=2, channels=64)
    model = build(distilled(stock, stock))
    loss = distillation_loss(model, batch(shapes, objects))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    'precision', ['fp32', 'bf16', pytest.param('fp16', marks=needs.half_on_processors)]
)
@pytest.mark.parametrize('autocast', [False, True])
def test_precisions(precision: str, autocast: bool) -> None:
    stock = tiny_gfl(stacked_convs=2)
    model = build(distilled(stock, tiny_gfl(stacked_convs=2), precision=precision))
    exact = build(distilled(tiny_gfl(stacked_convs=2), tiny_gfl(stacked_convs=2)))
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        # on maps of few cells torch's bfloat16 gradient of a strided convolution is NaN at times
        loss = distillation_loss(model, batch(SHAPES))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(distillation_loss(exact, batch(SHAPES)).item(), rel=0.05)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_student_in_float64_before_plain_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which convert nothing, as on a GPU."""
    monkeypatch.setattr(packed_convolution, '_has_kernel', lambda dtype: False)
    model = build(distilled(tiny_gfl(stacked_convs=2), tiny_gfl(stacked_convs=2)))
    data = model.data_preprocessor(batch(), training=True)
    expected = model(**data, mode='loss')['loss_x']
    found = model.double()(data['inputs'].double(), data['data_samples'], mode='loss')['loss_x']
    assert found.item() == pytest.approx(expected.item(), rel=1e-3)


@needs.half_on_processors
def test_small_gradients_come_through_a_teacher_in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a large batch are divided by so many positives that a float16 would make them 0."""
    count = torch.tensor(2.0**18)
    monkeypatch.setattr(DistillationContext, 'mean_num_positives', count)
    gradients = []
    for precision in ('fp32', 'fp16'):
        student, teacher = (tiny_gfl(stacked_convs=2) for _ in range(2))
        model = build(distilled(student, teacher, precision=precision))
        distillation_loss(model, batch(SHAPES)).backward()
        gradients.append(model.bbox_head.cls_convs[0].conv.weight.grad * count)
    largest = gradients[0].abs().max()
    torch.testing.assert_close(*gradients, atol=0.05 * largest, rtol=0)


def test_what_is_not_looked_at_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, alive = [], []
    distill = CrossHeadDistiller.distill

    def watched(self: CrossHeadDistiller, context: DistillationContext) -> Tensor:
        seen.append(context)
        alive.extend(not storage.expired() for storage in outputs)
        return distill(self, context)

    monkeypatch.setattr(CrossHeadDistiller, 'distill', watched)
    monkeypatch.setattr('ld_plugin.dense.kept_inputs.is_large', lambda level: True)
    model = build(distilled(tiny_gfl(stacked_convs=2), tiny_gfl(stacked_convs=2)))
    head, outputs = model.bbox_head, []
    for module in (head.cls_convs[0].activate, head.reg_convs[0].activate, head.gfl_cls):
        module.register_forward_hook(
            lambda _, args, output: outputs.append(StorageWeakRef(output.untyped_storage()))
        )
    distillation_loss(model, batch()).backward()
    assert len(alive) == 3 * 5
    assert not any(alive[: 3 * 3])  # class maps of a single cell are the rows that are learnt from
    (context,) = seen
    assert not context.student.class_maps
    assert not context.student.box_maps
    for levels in context.teacher.head_features[1]:
        assert [level.mean.shape for level in levels] == [(1, 1, 1, 32)] * 5
    seen.clear()
    both = dict(x=CROSS, y=dict(type='ClassificationDistiller'))
    stock = dict(config=dict(model=tiny_gfl(stacked_convs=2)), checkpoint=None)
    losses(build(tiny_distilled(stock, both, tiny_gfl(stacked_convs=2))), batch())
    assert len(seen[0].student.class_maps) == 5


@pytest.mark.parametrize('family', ['gfl', 'gflv2', 'retinanet'])
@pytest.mark.parametrize('alone', [1, 5])
def test_large_levels_alone(family: str, alone: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss and its gradient are those of all levels in one pass."""
    model = build(distilled(tiny(family, stacked_convs=2), tiny(family, stacked_convs=2)))
    passes, found, crossing = [], [], DenseOutputs.cross_head

    def counted(*args: Any) -> DenseOutputs:
        passes.append(args)
        return crossing(*args)

    monkeypatch.setattr(DenseOutputs, 'cross_head', counted)
    first = 2 * 32 * 20 * 24  # numbers of the first level's features, two images
    for limit in (first, first - 1 if alone == 1 else 0):
        monkeypatch.setattr(crosshead, 'is_large', lambda level, limit=limit: level.numel() > limit)
        model.zero_grad()
        loss = distillation_loss(model, batch(SHAPES))
        loss.backward()
        found.append([loss, *(p.grad for p in model.parameters() if p.grad is not None)])
    branches = 1 if family == 'gflv2' else 2  # whose classes depend on its boxes
    assert len(passes) == branches * (1 + (2 if alone == 1 else 5))
    for pair in zip(*found, strict=True):
        torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-5)


def test_towers_of_another_width_get_adapters() -> None:
    student, teacher = tiny_gfl(stacked_convs=2), tiny_gfl(stacked_convs=2, feat_channels=64)
    model = build(distilled(student, teacher))
    extra = set(model.state_dict()) - set(build(tiny_gfl(stacked_convs=2)).state_dict())
    assert extra == {f'distillers.x.adapters.{i}.{n}' for i in (0, 1) for n in ('weight', 'bias')}
    distillation_loss(model, batch()).backward()
    assert all(a.weight.grad.abs().sum() > 0 for a in model.distillers.x.adapters)


def test_necks_of_another_width_get_adapters() -> None:
    student, teacher = tiny_gfl(stacked_convs=2), tiny_gfl(stacked_convs=2)
    teacher.neck.out_channels = teacher.bbox_head.in_channels = 64
    model = build(distilled(student, teacher, CROSS | dict(layer=0)))
    adapters = model.distillers.x.adapters
    assert [a.weight.shape for a in adapters] == [(64, 32, 1, 1)] * 2
    distillation_loss(model, batch()).backward()
    assert all(a.weight.grad.abs().sum() > 0 for a in adapters)


def test_a_head_of_distributions_teaches_one_without() -> None:
    head = dict(type='DistributionATSSHead', stacked_convs=2)
    model = build(distilled(tiny('atss', stacked_convs=2), tiny('atss', **head)))
    assert type(model.distillers.x.box_loss).__name__ == 'DistributionKLLoss'
    assert distillation_loss(model, batch()).isfinite()


def test_the_recipe_needs_four_stacked_convolutions_at_most() -> None:
    model = build(
        tiny_distilled(
            dict(config=dict(model=tiny_gfl(stacked_convs=4)), checkpoint=None),
            crosskd,
            tiny_gfl(stacked_convs=4),
        )
    )
    assert losses(model, batch())['loss_crosskd'] > 0


@pytest.mark.parametrize(
    ('student', 'teacher', 'cfg', 'message'),
    [
        (
            dict(stacked_convs=2),
            dict(stacked_convs=2),
            dict(layer=3),
            r'layer: found 3, expected 0',
        ),
        (dict(stacked_convs=2), dict(stacked_convs=2), dict(layer=-1), r'layer: found -1'),
        (dict(stacked_convs=2), dict(stacked_convs=2), dict(layer='1'), r"layer: found '1'"),
        (dict(stacked_convs=2), dict(stacked_convs=3), {}, ': stacked convolutions .* differ'),
        (
            dict(stacked_convs=0),
            dict(stacked_convs=2),
            {},
            "student's head GFLHead has no head feat",
        ),
        (
            dict(stacked_convs=2),
            dict(stacked_convs=0),
            {},
            "teacher's head GFLHead has no head feat",
        ),
        (
            dict(stacked_convs=2),
            dict(stacked_convs=2),
            dict(box_loss=dict(type='GIoULoss')),
            'box_loss: found GIoULoss, but GFLHead predicts distributions of boxes, and these are '
            "compared. Expected a loss such as {'type': 'DistributionKLLoss'",
        ),
        (
            dict(stacked_convs=2),
            dict(stacked_convs=2),
            dict(box_loss=dict(type='GIoULos')),
            "box_loss.type: 'GIoULos' is not a registered distillation loss",
        ),
        (
            dict(stacked_convs=2),
            dict(stacked_convs=2),
            dict(box_loss=dict(type='PearsonFeatureLoss')),
            'box_loss: found PearsonFeatureLoss, which compares whole maps, but every prior has',
        ),
    ],
)
def test_bad_configs(student: dict, teacher: dict, cfg: dict, message: str) -> None:
    config = distilled(tiny_gfl(**student), tiny_gfl(**teacher), CROSS | cfg)
    with pytest.raises(ConfigError, match=r'^model.distillers.x.*' + message):
        build(config)


def test_a_loss_of_bins_where_there_are_none() -> None:
    cfg = CROSS | dict(box_loss=dict(type='DistributionKLLoss'))
    message = (
        'box_loss: found DistributionKLLoss, but ATSSHead predicts boxes without distributions'
    )
    with pytest.raises(ConfigError, match=rf'^model\.distillers\.x\.{message}.*BoxLoss'):
        build(distilled(tiny('atss'), tiny('atss'), cfg))


def test_heads_without_stacked_convolutions_are_refused() -> None:
    with pytest.raises(ConfigError, match="student's head TOODHead has no head features"):
        build(distilled(tiny('tood'), tiny('tood')))


@pytest.fixture(scope='module')
def fcos_step() -> tuple[CrossHeadDistiller, DistillationContext]:
    """On a batch of which one image has padding, whose label weights FCOS leaves at 1."""
    fcos = tiny('fcos', stacked_convs=3)
    teacher = dict(config=dict(model=fcos), checkpoint=None)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = build(tiny_distilled(teacher, crosskd, fcos))
        data = model.data_preprocessor(batch([(128, 160), (64, 64)]), training=True)
        return model.distillers.crosskd, model.observe(data['inputs'], data['data_samples'])[1]


def test_padding_has_no_weight_whatever_its_label_weight(
    fcos_step: tuple[CrossHeadDistiller, DistillationContext],
) -> None:
    distiller, step = fcos_step
    padding = ~step.assignment.valid
    assert (step.assignment.label_weights[padding] > 0).any()
    for of_part in (distiller.class_weights, distiller.box_weights):
        weights = torch.cat([x.movedim(1, -1).flatten(1) for x in of_part(step)], dim=1)
        assert weights.any()
        assert not weights[padding].any()


def test_scores_are_averaged_over_the_gpus(
    fcos_step: tuple[CrossHeadDistiller, DistillationContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    distiller, step = fcos_step
    alone = distiller(step)
    monkeypatch.setattr(crosshead, 'reduce_mean', lambda x: 2 * x)  # the other one has three times
    beside = distiller(step)
    monkeypatch.setattr(distiller.box_loss, 'loss_weight', 0.0)
    classes = distiller(step)
    assert alone > classes
    torch.testing.assert_close(beside - classes, (alone - classes) / 2)


def test_box_distributions_are_a_mean_over_the_parameters() -> None:
    """Five of them where boxes are rotated."""
    step = cross_context()
    student, teacher = (
        replace(x, spec=replace(x.spec, box_dim=5, num_bins=4))
        for x in (step.student, step.teacher)
    )
    step = replace(step, student=student, teacher=teacher)
    found = make(step, loss=dict(type='BinaryKDLoss', loss_weight=0))(step)
    total = scores = 0
    weights = step.assignment.label_weights.split(student.num_level_priors, dim=1)
    for *maps, classes, weight in zip(
        student.box_maps, teacher.box_maps, teacher.class_maps, weights, strict=True
    ):
        mine, theirs, classes = (x.movedim(1, -1).flatten(1, 2) for x in (*maps, classes))
        mine, theirs = (x.unflatten(-1, (5, 4)).log_softmax(-1) for x in (mine, theirs))
        each = (theirs.exp() * (theirs - mine)).sum(-1).mean(-1)
        score = classes.amax(-1).sigmoid() * (weight > 0)
        total, scores = total + (score * each).sum(), scores + score.sum()
    torch.testing.assert_close(found, 4 * total / scores)


def test_scores_that_sum_up_to_less_than_one_are_no_smaller_weights() -> None:
    step, found = cross_context(), []
    for shift in (12, 13):
        maps = [level - shift for level in step.teacher.class_maps]
        shifted = replace(step, teacher=replace(step.teacher, class_maps=maps))
        found.append(make(shifted, loss=dict(type='BinaryKDLoss', loss_weight=0))(shifted))
    assert found[0] > 0
    torch.testing.assert_close(*found, rtol=1e-3, atol=0)


def test_the_branches_are_separate_where_those_of_the_teachers_head_are() -> None:
    students = tiny('gfl', stacked_convs=2), tiny('gflv2', stacked_convs=2)
    plain, other = (build(distilled(x, tiny('gflv2', stacked_convs=2))) for x in students)
    plain.load_state_dict(other.state_dict(), strict=False)
    plain.teacher = other.teacher
    found, expected = (distillation_loss(model, batch()) for model in (plain, other))
    torch.testing.assert_close(found, expected)


def test_layers_are_counted_by_whole_numbers() -> None:
    step = cross_context()
    with pytest.raises(ConfigError, match='layer: found True, expected 0 to '):
        make(step, layer=True)
