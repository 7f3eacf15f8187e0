"""Every recipe on every head family that it can work with, and what must hold for all of them.

A family's detector is built once, and what it and its teacher say about a batch is shared by all
recipes. The batch has a second image, padded, on which there is nothing.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from mmdet.registry import MODELS
from mmengine import ConfigDict
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ld_plugin import ConfigError, recipes
from ld_plugin.dense import DistillationContext, HeadSpec, get_reader
from ld_plugin.dense.rois import RoIReader
from ld_plugin.detectors import FrozenTeacher
from ld_plugin.distillers import (
    RankDistiller,
    build_distillers,
)
from ld_plugin.losses.box import ROTATED as ROTATED_BOX_LOSSES
from tests.dense.heads import build_head, rotated
from tests.families import (
    ALL_ROTATED,
    REFINED,
    ROTATED_TWO_STAGE,
    SINGLE_STAGE,
    TWO_STAGE,
    distilled_type,
    fit_boxes,
    scope,
    scope_name,
    tiny,
)
from tests.models import batch, build, tiny_distilled

Recipe = Mapping[str, Mapping[str, Any]]

RECIPES: dict[str, Recipe] = {
    name: recipe
    for name, recipe in vars(recipes).items()
    if isinstance(recipe, dict) and not name.startswith('_')
}
COMBINATIONS: dict[str, Recipe] = {
    'ld_full + pfi': recipes.ld_full | dict(pfi=recipes.rm_pfi['pfi']),
    'bckd + pkd': recipes.bckd | recipes.pkd,
}
#: what a distiller needs that not every head has
NEEDS = dict(
    BoxDistiller='boxes',
    CrossHeadDistiller='head_features',
    DecoupledRoIClassificationDistiller='rois',
    LocalizationDistiller='distributions',
    QualityDistiller='quality',
    RoIClassificationDistiller='rois',
)
#: a trainable layer stands between the features, so they differ behind it if they were equal before
WITH_A_LAYER = {'DecoupledFeatureDistiller'}
#: the head computes again what the teacher's said, so the two are equal up to rounding only, and
#: the derivative of an absolute difference is never 0
RECOMPUTED = {'CrossHeadDistiller'}
#: standardise features over the batch with the unbiased deviation, which repeated images change
WITH_DEVIATIONS = {'pkd', 'crosskd', 'bckd + pkd'}
#: an untrained head of these predicts boxes without extent, whose overlap with themselves is 0
WITHOUT_EXTENT = {'rotated_rtmdet'}
TWO_STAGES = (*TWO_STAGE, *ROTATED_TWO_STAGE)
#: one of every reader
ROTATED = [
    family
    for family in ALL_ROTATED
    if family
    in (
        *('rotated_retinanet', 'rotated_retinanet_csl', 'rotated_atss', 'rotated_fcos_psc'),
        *('rotated_rtmdet', 'distribution_rotated_retinanet_kld', 'distribution_rotated_fcos'),
    )
]
#: whose assigners can leave out priors in ignored objects; MMRotate's RPN cannot
IGNORING = [f for f in ALL_ROTATED if 'fcos' not in f and 'rtmdet' not in f]


def lacks(recipe: Recipe, spec: HeadSpec) -> set[str]:
    """What a recipe needs and a head does not have."""
    types = {cfg['type'] for cfg in recipe.values()}
    needed = {NEEDS.get(name, 'features') for name in types}
    if ('on', 'iou') in walk(recipe):
        needed.add('boxes')
    missing = needed - spec.offers
    if 'boxes' in needed and not spec.boxes_have_gradient:
        missing.add('gradient')
    if spec.num_classes == 1 and 'DecoupledClassificationDistiller' in types:
        missing.add('several classes')  # its distributions are over the classes
    return missing


def model_of(family: str) -> ConfigDict:
    # the recipe for cross-head distillation asks for so many convolutions
    model = tiny(family) if family in TWO_STAGES else tiny(family, stacked_convs=3)
    for key, value in walk(model.get('train_cfg')):
        if key == 'sampler' and family in TWO_STAGES:
            value.num = 10**6  # all, for a random choice would differ from step to step
        if key == 'assigner' and family in IGNORING:
            value.ignore_iof_thr = 0.5
    if family == 's2anet':  # untrained, it predicts boxes too far away to have overlaps
        model.bbox_head_init.bbox_coder.target_stds = [0.1] * 5
    return model


def walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value inside a config."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield key, item
            yield from walk(item)
    elif isinstance(value, list):
        for item in value:
            yield from walk(item)


def spec_of(family: str) -> HeadSpec:
    if family not in TWO_STAGES:
        return get_reader(build_head(family, stacked_convs=3)).spec
    with scope(family):
        rois = RoIReader(MODELS.build(tiny(family).roi_head)).spec
    return replace(get_reader(build_head(family)).spec, rois=rois)


ROTATED_FAMILIES = (*ROTATED, *REFINED, *ROTATED_TWO_STAGE)
SPECS = {family: spec_of(family) for family in (*SINGLE_STAGE, *ALL_ROTATED, *REFINED, *TWO_STAGES)}
#: heads that differ from one of the others in their coder or loss alone
VARIANTS = [family for family in ALL_ROTATED if family not in ROTATED]
#: with random weights, the stock losses of these are not finite, in the stock detectors either
WITHOUT_STOCK_LOSS = {'rotated_retinanet_kfiou', 'rotated_fcos'}
PAIRS = [
    (family, name)
    for family, spec in SPECS.items()
    for name, recipe in (RECIPES | COMBINATIONS).items()
    if family not in VARIANTS and not lacks(recipe, spec)
]
REFUSED = [
    (family, name)
    for family, spec in SPECS.items()
    for name, recipe in RECIPES.items()
    if lacks(recipe, spec)
]
every_pair = pytest.mark.parametrize(('family', 'name'), PAIRS)


@dataclass
class Step:
    """A student, its teacher as it was before it was frozen, and what both said about a batch."""

    student: nn.Module
    teacher: nn.Module
    data: dict[str, list]
    context: DistillationContext


@pytest.fixture(autouse=True)
def in_training() -> None:
    MessageHub.get_current_instance().update_info('epoch', 0)  # TOOD's assigner depends on it


@cache
def step_of(family: str) -> Step:
    model = model_of(family)
    config = dict(model=model, default_scope=scope_name(family))
    distilled = tiny_distilled(dict(config=config, checkpoint=None), recipes.fitnet, model)
    distilled.type = distilled_type(model)
    data = batch(((128, 128), (96, 128)), objects=(3, 0))
    fit_boxes(family, data)
    with scope(family):
        student, teacher = build(distilled), build(model, seed=1)
    for detector in (student, teacher):
        learn_statistics(detector, data)
    student.teacher = frozen(teacher)
    return Step(student, teacher, data, observe(student, data))


def learn_statistics(detector: nn.Module, data: Mapping[str, list]) -> None:
    """Let batch norm know the images, as after a training; without it activations explode."""
    norms = [module for module in detector.modules() if isinstance(module, _BatchNorm)]
    for module in norms:
        module.momentum = 1.0
        module.train()
    with torch.no_grad():
        detector.extract_feat(detector.data_preprocessor(dict(data))['inputs'])
    detector.train()


def frozen(model: nn.Module) -> FrozenTeacher:
    """A teacher that is asked for everything it offers."""
    teacher = FrozenTeacher(model)
    teacher.reads = teacher.spec.offers
    if 'head_features' in teacher.reads:
        teacher.head_layers = frozenset({3})
    return teacher


def observe(student: nn.Module, data: Mapping[str, list]) -> DistillationContext:
    inputs = student.data_preprocessor(dict(data), training=True)
    return student.observe(inputs['inputs'], inputs['data_samples'])[1]


@cache
def twin_of(family: str) -> DistillationContext:
    """What a student and a teacher of its own weights say."""
    # as the teacher's: batch norm by its running statistics
    student = deepcopy(step_of(family).student)
    for module in student.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    student.teacher = frozen(deepcopy(student))
    return observe(student, step_of(family).data)


def build_recipe(family: str, name: str) -> nn.ModuleDict:
    torch.manual_seed(0)
    return build_distillers((RECIPES | COMBINATIONS)[name], SPECS[family], SPECS[family])


def gradients(loss: Tensor, inputs: Iterable[Tensor]) -> list[Tensor]:
    return list(
        torch.autograd.grad(
            loss, list(inputs), retain_graph=True, allow_unused=True, materialize_grads=True
        )
    )


def has_nothing_to_learn(distiller: nn.Module, context: DistillationContext) -> bool:
    """Where the loss is 0 by its definition.

    Dynamic assigners give each object a single prior while predictions are bad.
    """
    return isinstance(distiller, RankDistiller) and all(
        len(gts) == len(gts.unique()) for gts in context.assignment.positive_gts
    )


@every_pair
@pytest.mark.filterwarnings('ignore:.*the teacher has random weights')
def test_learns(family: str, name: str) -> None:
    """Losses are finite, and their gradients reach the student and never the teacher."""
    step = step_of(family)
    weights = [p for p in step.student.parameters() if p.requires_grad]
    for distiller in build_recipe(family, name).values():
        loss = distiller(step.context)
        assert loss.shape == ()
        assert loss.isfinite()
        if has_nothing_to_learn(distiller, step.context):
            continue
        assert loss > 0
        found = gradients(loss, [*weights, *distiller.parameters()])
        assert all(gradient.isfinite().all() for gradient in found)
        assert any(gradient.any() for gradient in found[: len(weights)])
        # a convolution's bias has none where the features are standardised behind it
        assert all(gradient.any() for gradient in found[len(weights) :] if gradient.dim() > 1)
    assert not any(p.requires_grad or p.grad is not None for p in step.teacher.parameters())


@pytest.mark.parametrize(
    ('family', 'name'),
    [
        (family, name)
        for family, name in PAIRS
        if not (family in WITHOUT_EXTENT and name == 'crosskd')
    ],
)
def test_an_equal_teacher_teaches_nothing(family: str, name: str) -> None:
    step, twin = step_of(family), twin_of(family)
    exact = taught_by_itself(twin)
    compared = [
        d for d in build_recipe(family, name).values() if type(d).__name__ not in WITH_A_LAYER
    ]
    assert compared
    for distiller in compared:
        assert distiller(twin) <= 1e-3 * distiller(step.context) + 1e-6
        if type(distiller).__name__ not in RECOMPUTED:
            loss = distiller(exact)
            assert loss.abs() <= 1e-6
            assert all(g.abs().max() <= 1e-6 for g in gradients(loss, predictions(twin)))


def predictions(context: DistillationContext) -> list[Tensor]:
    student = context.student
    maps = [student.class_maps, student.box_maps, student.features, student.quality_maps]
    return [*(level for levels in maps for level in levels), *(r.student for r in context.rois)]


def taught_by_itself(context: DistillationContext) -> DistillationContext:
    """A teacher that says to the last bit what the student says."""
    student = context.student
    names = 'class_maps', 'box_maps', 'features', 'quality_maps'
    said = {name: [level.detach() for level in getattr(student, name)] for name in names}
    rois = [replace(stage, teacher=stage.student.detach()) for stage in context.rois]
    return replace(context, teacher=replace(student, **said), rois=rois)


@cache
def again(family: str, images: tuple[int, ...]) -> DistillationContext:
    step = step_of(family)
    data = {key: [items[i] for i in images] for key, items in step.data.items()}
    return observe(step.student, data)


@every_pair
def test_the_same_images_give_the_same_loss(family: str, name: str) -> None:
    """Repeated, or where that cannot hold in another order."""
    context = step_of(family).context
    images = (1, 0) if name in WITH_DEVIATIONS else (0, 1, 0, 1)
    for distiller in build_recipe(family, name).values():
        found = distiller(again(family, images))
        torch.testing.assert_close(found, distiller(context), rtol=1e-3, atol=1e-6)


#: (x, y, width, height, angle) in an image of 128 x 128 pixels
UNUSUAL = dict(
    partly_outside=(2.0, 60.0, 80.0, 30.0, 0.5),
    with_its_centre_outside=(131.0, -3.0, 60.0, 30.0, 0.8),
    tiny=(40.3, 50.2, 0.5, 0.5, 0.2),
    long_and_thin=(64.0, 64.0, 120.0, 0.5, 0.7),
    small_and_thin=(90.0, 100.0, 3.0, 0.01, 1.3),
)
IGNORED = (30.0, 40.0, 50.0, 30.0, 0.4)


def unusual_batch(family: str, kind: str) -> dict[str, list]:
    """Two images: without objects, or with unusual ones and an ignored one beside them."""
    count = 0 if kind == 'nothing' else len(UNUSUAL)
    data = batch(((128, 128), (96, 128)), objects=(count, count))
    fit_boxes(family, data)
    for sample in data['data_samples'] if count else ():
        objects = sample.gt_instances
        kind_of_boxes = type(objects.bboxes)
        unusual, ignored = torch.tensor([*UNUSUAL.values(), IGNORED]).split([count, 1])
        objects.bboxes = rotated(unusual).convert_to(kind_of_boxes)
        sample.ignored_instances = InstanceData(
            bboxes=rotated(ignored).convert_to(kind_of_boxes),
            labels=torch.zeros(1, dtype=torch.int64),
        )
    return data


@cache
def on_unusual_images(family: str, kind: str) -> DistillationContext:
    return observe(step_of(family).student, unusual_batch(family, kind))


@pytest.mark.parametrize('kind', ['nothing', 'objects'])
@pytest.mark.parametrize(('family', 'name'), [p for p in PAIRS if p[0] in ROTATED_FAMILIES])
def test_unusual_objects(family: str, name: str, kind: str) -> None:
    """Losses and gradients are finite whatever the objects are, and without any."""
    context = on_unusual_images(family, kind)
    for distiller in build_recipe(family, name).values():
        loss = distiller(context)
        assert loss.isfinite()
        assert loss >= -1e-6  # a divergence of nearly equal ranks is 0 but for rounding
        assert all(g.isfinite().all() for g in gradients(loss, predictions(context)))


@pytest.mark.parametrize('family', [f for f in ROTATED if f in IGNORING])
def test_ignored_objects_are_left_out(family: str) -> None:
    assigned = on_unusual_images(family, 'objects').assignment
    ignored = assigned.valid & (assigned.label_weights == 0)
    assert ignored.any(1).all()
    assert not assigned.positive[ignored].any()


@pytest.mark.parametrize('kind', ['nothing', 'objects'])
@pytest.mark.parametrize('rotated', ROTATED_BOX_LOSSES)
@pytest.mark.parametrize('family', [f for f in ROTATED if SPECS[f].boxes_have_gradient])
def test_unusual_objects_with_every_box_loss(family: str, rotated: str, kind: str) -> None:
    """What is compared on a GPU, too: untrained heads predict boxes inside out."""
    loss = dict(type='BoxLoss', rotated=rotated)
    spec, context = SPECS[family], on_unusual_images(family, kind)
    for region in ('EverywhereRegion', 'MainRegion'):
        cfg = dict(type='BoxDistiller', loss=loss, region=dict(type=region))
        found = build_distillers(dict(x=cfg), spec, spec)['x'](context)
        # each pair's loss is in [0, 1], and so are the weights
        assert 0 <= found <= context.assignment.valid.numel()
        assert all(g.isfinite().all() for g in gradients(found, predictions(context)))


@pytest.mark.parametrize('family', SPECS)
def test_all_recipes_at_once_train(family: str) -> None:
    """One whole step; every part of it has the loss that it has alone."""
    step = step_of(family)
    student = deepcopy(step.student)
    student.distillers = nn.ModuleDict(
        {
            f'{name}_{key}': distiller
            for name, recipe in RECIPES.items()
            if not lacks(recipe, SPECS[family])
            for key, distiller in build_recipe(family, name).items()
        }
    )
    alone = {f'loss_{key}': d(step.context).item() for key, d in student.distillers.items()}
    with scope(family):
        stock = MODELS.build(model_of(family))
    ours = {key for key in student.state_dict() if not key.startswith('distillers.')}
    assert ours == set(stock.state_dict())

    before = deepcopy(student.state_dict())
    teacher_before = deepcopy(step.teacher.state_dict())
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-6)
    found = student.train_step(step.data, OptimWrapper(optimizer))

    assert found['loss'].isfinite() or family in WITHOUT_STOCK_LOSS
    for key, value in alone.items():
        assert math.isfinite(value)
        assert found[key].item() == pytest.approx(value, rel=1e-3), key
    after = student.state_dict()
    for part, _ in stock.named_children():
        weights = [key for key in after if key.startswith(f'{part}.')]
        assert not weights or any(not torch.equal(before[key], after[key]) for key in weights)
    for key, value in step.teacher.state_dict().items():
        assert torch.equal(value, teacher_before[key])


@pytest.mark.parametrize(('family', 'name'), REFUSED)
def test_a_head_that_lacks_something_is_refused(family: str, name: str) -> None:
    spec = SPECS[family]
    with pytest.raises(ConfigError, match=rf'^model\.distillers\.[\w.]+: .*{spec.name}'):
        build_distillers(RECIPES[name], spec, spec)


def test_every_recipe_works_somewhere() -> None:
    assert {name for _, name in PAIRS} == {*RECIPES, *COMBINATIONS}
