"""Features inside a head, and the rest of the head from there: the stock forward, cut in two."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.logging import MessageHub
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from ld_plugin.dense import HeadRecorder, get_reader
from ld_plugin.dense.head_features import HeadFeatures, Tower, is_large
from ld_plugin.dense.matching import ClassMatch, take_levels
from ld_plugin.dense.readers.base import WITH_SEPARATE_BRANCHES
from tests.dense.heads import build_head, random_features
from tests.families import ALL_ROTATED, REFINED, SINGLE_STAGE

STACKED = [family for family in SINGLE_STAGE if 'tood' not in family]
DEPTH = 2
every_branch = pytest.mark.parametrize('branch', HeadFeatures._fields)
every_layer = pytest.mark.parametrize('layer', range(DEPTH + 1))


@pytest.fixture(params=STACKED)
def head(request: pytest.FixtureRequest) -> nn.Module:
    return build_head(request.param, stacked_convs=DEPTH)


def forward(head: nn.Module, layers: range) -> tuple[tuple, dict[int, HeadFeatures]]:
    """Class and box maps, and the features after every layer."""
    reader = get_reader(head)
    with HeadRecorder(head, watched=reader.watched(layers)) as record:
        outs = head(random_features(head))
    return reader.maps(outs), reader.head_features(record, layers)


def copied(features: HeadFeatures) -> HeadFeatures:
    return HeadFeatures(*([level.clone() for level in branch] for branch in features))


def assert_equal(found: tuple, expected: tuple) -> None:
    for found_levels, expected_levels in zip(found, expected, strict=True):
        for pair in zip(found_levels, expected_levels, strict=True):
            torch.testing.assert_close(*pair, rtol=0, atol=0)


@pytest.mark.parametrize('training', [True, False])
def test_the_rest_of_the_head_continues_the_stock_forward(head: nn.Module, training: bool) -> None:
    head.train(training)
    maps, features = forward(head, range(DEPTH + 1))
    for layer, recorded in features.items():
        assert_equal(get_reader(head).rest_of_head(layer, copied(recorded)), maps)


def test_recording_changes_nothing_and_leaves_nothing(head: nn.Module) -> None:
    before, names = list(head.modules()), set(vars(head))
    torch.manual_seed(1)
    plain = get_reader(head).maps(head(random_features(head)))
    torch.manual_seed(1)
    maps, features = forward(head, range(DEPTH + 1))
    get_reader(head).rest_of_head(1, copied(features[1]))
    assert_equal(maps, plain)
    assert all(a is b for a, b in zip(before, head.modules(), strict=True))
    assert set(vars(head)) == names
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in head.modules())


def test_an_error_leaves_the_head_as_it_was() -> None:
    head = build_head('gfl', stacked_convs=DEPTH)
    before = list(head.modules())
    wrong = [torch.zeros(1, 5, 4, 4)] * 5
    with pytest.raises(RuntimeError):
        get_reader(head).rest_of_head(1, HeadFeatures(wrong, wrong))
    assert all(a is b for a, b in zip(before, head.modules(), strict=True))


def test_somebody_elses_wrapper_stays_on_the_head() -> None:
    head, calls = build_head('gfl'), []
    stock = head.loss_by_feat

    def wrapper(*args: object, **kwargs: object) -> object:
        calls.append(args)
        return stock(*args, **kwargs)

    head.loss_by_feat = wrapper
    for number in (1, 2):
        with HeadRecorder(head, ('loss_by_feat',)), pytest.raises(TypeError):
            head.loss_by_feat()
        assert head.loss_by_feat is wrapper
        assert len(calls) == number


def test_activations_overwrite_their_inputs_again_after_an_error() -> None:
    head = build_head('retinanet', stacked_convs=DEPTH)
    watched = get_reader(head).watched([1])
    with pytest.raises(RuntimeError), HeadRecorder(head, watched=watched):
        head([torch.zeros(1, 5, 4, 4)] * 5)
    assert head.cls_convs[0].activate.inplace and head.reg_convs[0].activate.inplace


def test_features_are_those_before_the_activation() -> None:
    head = build_head('retinanet', stacked_convs=DEPTH)
    head.double()
    inputs = [level.double() for level in random_features(head)]
    expected = head([level.clone() for level in inputs])
    reader = get_reader(head)
    with HeadRecorder(head, watched=reader.watched([1])) as record:
        assert_equal(head(inputs), expected)
    assert head.cls_convs[0].activate.inplace and head.reg_convs[0].activate.inplace
    features = reader.head_features(record, [1])[1]
    for branch, convolutions in zip(features, (head.cls_convs, head.reg_convs), strict=True):
        for level, x in zip(branch, inputs, strict=True):
            torch.testing.assert_close(level, convolutions[0].conv(x))
            assert (level < 0).any()


@contextmanager
def counted_layers(head: nn.Module) -> Iterator[Counter]:
    """Counts the calls of the stacked convolutions of both branches."""
    calls: Counter = Counter()
    hooks = [
        layer.register_forward_hook(lambda *_, name=tower.name: calls.update([name]))
        for tower in get_reader(head).towers
        for layer in getattr(head, tower.name).modules()
        if isinstance(layer, nn.Conv2d)
    ]
    yield calls
    for hook in hooks:
        hook.remove()


@every_branch
@pytest.mark.parametrize('family', [*STACKED, *ALL_ROTATED, *REFINED])
def test_a_branch_alone(family: str, branch: str) -> None:
    head = build_head(family, stacked_convs=DEPTH).eval()
    features = random_features(head)
    towers = dict(zip(HeadFeatures._fields, get_reader(head).towers, strict=True))
    left_out = towers.pop(branch).name
    ((kept, tower),) = towers.items()
    with counted_layers(head) as complete:
        expected = HeadFeatures(*get_reader(head).maps(head(features)))
    with counted_layers(head) as some, get_reader(head).without_branch(branch):
        found = HeadFeatures(*get_reader(head).maps(head(features)))
    assert_equal((getattr(found, kept),), (getattr(expected, kept),))
    assert some[tower.name] == complete[tower.name] > 0
    is_separate = type(head).__name__ in WITH_SEPARATE_BRANCHES
    assert some[left_out] == (0 if is_separate else complete[left_out])
    with counted_layers(head) as again:
        head(features)
    assert again == complete


@every_branch
@pytest.mark.parametrize('levels', [range(5), [2, 0]], ids=['all levels', 'some levels'])
@pytest.mark.parametrize('family', ['gfl', 'retinanet', 'fcos', 'distribution_atss'])
def test_the_rest_of_one_branch(family: str, levels: Sequence[int], branch: str) -> None:
    """Its maps are those of the rest of both, and no convolution of the other is computed."""
    head = build_head(family, stacked_convs=DEPTH).eval()
    outputs = take_levels(outputs_of(head), levels)
    assert outputs.spec.has_separate_branches
    features = outputs.head_features[1]
    both = outputs.cross_head(1, copied(features))
    assert not both.quality_maps  # which would be those of its own features
    alone = [level.clone() for level in getattr(features, branch)]
    with counted_layers(head) as calls:
        found = outputs.cross_head(1, HeadFeatures(**{branch: alone}))
    names = dict(classes=('cls_convs', 'class_maps'), boxes=('reg_convs', 'box_maps'))
    tower, maps = names.pop(branch)
    assert_equal((getattr(found, maps),), (getattr(both, maps),))
    assert set(calls) == {tower}
    ((_, other),) = names.values()
    assert not getattr(found, other)


@every_branch
def test_only_heads_that_are_known_do_without_a_branch(branch: str) -> None:
    """What one's own head makes of its branches nobody has looked at."""
    head = build_head('gfl', stacked_convs=DEPTH)
    head.__class__ = type('MyHead', (type(head),), {})
    with counted_layers(head) as calls, get_reader(head).without_branch(branch):
        head(random_features(head))
    assert calls['reg_convs'] == calls['cls_convs'] > 0


@every_branch
def test_a_branch_of_another_width_than_its_input_runs(branch: str) -> None:
    head = build_head('gfl', stacked_convs=DEPTH, feat_channels=64)
    with counted_layers(head) as calls, get_reader(head).without_branch(branch):
        head(random_features(head))
    assert calls['reg_convs'] == calls['cls_convs'] > 0


@pytest.mark.parametrize('family', ['tood', 'faster_rcnn'])
def test_heads_without_stacked_convolutions_offer_none(family: str) -> None:
    MessageHub.get_current_instance().update_info('epoch', 0)
    spec = get_reader(build_head(family)).spec
    assert 'head_features' not in spec.offers
    assert spec.tower_channels == ()


@pytest.mark.parametrize(
    ('family', 'settings'),
    [
        ('gfl', dict(stacked_convs=0)),
        ('yolox', dict(use_depthwise=True)),
    ],
)
def test_settings_without_stacked_convolutions(family: str, settings: dict) -> None:
    assert 'head_features' not in get_reader(build_head(family, **settings)).spec.offers


def test_branches_of_other_depths_offer_none() -> None:
    head = build_head('gfl', stacked_convs=2)
    del head.reg_convs[1]
    assert 'head_features' not in get_reader(head).spec.offers


def test_what_enters_a_head_is_recorded_without_its_layers() -> None:
    reader = get_reader(build_head('gfl', stacked_convs=DEPTH))
    assert list(reader.watched({0, 1})) == [(1, 'cls_convs'), (1, 'reg_convs')]


def test_widths_of_the_layers() -> None:
    head = build_head('gfl', stacked_convs=3, feat_channels=64)
    assert get_reader(head).spec.tower_channels == (32, 64, 64, 64)


def outputs_of(head: nn.Module):
    reader = get_reader(head)
    layers = range(DEPTH + 1)
    with HeadRecorder(head, watched=reader.watched(layers)) as record:
        outs = head(random_features(head))
    outputs = reader.read(outs, record.inputs)
    features = reader.head_features(record, layers)
    return replace(outputs, head_features=features, rest_of_head=reader.rest_of_head)


@pytest.mark.parametrize('family', ['gfl', 'rtmdet'])
@every_layer
def test_some_levels_alone(family: str, layer: int) -> None:
    outputs = outputs_of(build_head(family, stacked_convs=DEPTH, in_channels=64))
    levels = [2, 0]
    some = take_levels(outputs, levels)
    crossed = some.cross_head(layer, copied(some.head_features[layer]))
    expected = [
        [branch[level] for level in levels] for branch in (outputs.class_maps, outputs.box_maps)
    ]
    assert_equal((crossed.class_maps, crossed.box_maps), expected)


def test_a_level_is_asked_for_when_the_others_are_gone() -> None:
    outputs = take_levels(outputs_of(build_head('gfl', stacked_convs=DEPTH)), [1, 2, 3])
    storages, alive = [], []

    def one_by_one() -> Iterator[Tensor]:
        for level in outputs.head_features[1].classes:
            alive.append(sum(not storage.expired() for storage in storages))
            features = level.clone()
            storages.append(StorageWeakRef(features.untyped_storage()))
            yield features
            del features

    with torch.no_grad():
        outputs.cross_head(1, HeadFeatures(classes=one_by_one()))
    assert alive == [0, 0, 0]


def test_some_classes_alone() -> None:
    outputs = outputs_of(build_head('retinanet', stacked_convs=DEPTH))
    match = ClassMatch((0, 1), (2, 0), num_student_classes=2, num_teacher_classes=3)
    some = match.teacher_outputs(outputs)
    crossed = some.cross_head(1, copied(some.head_features[1]))
    assert_equal((crossed.class_maps, crossed.box_maps), (some.class_maps, some.box_maps))


def test_gradient_through_the_rest_of_a_head() -> None:
    head = build_head('gfl', stacked_convs=DEPTH, reg_max=2).double().requires_grad_(False)
    levels = [torch.randn(1, 32, 1, 2, dtype=torch.float64) for _ in range(5)]

    def rest(classes: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        features = (
            [branch.clone(), *(x.clone() for x in levels[1:])] for branch in (classes, boxes)
        )
        maps = get_reader(head).rest_of_head(1, HeadFeatures(*features))
        return maps[0][0], maps[1][0].double()

    inputs = [levels[0].clone().requires_grad_() for _ in range(2)]
    # the stock head rounds boxes to float32
    assert torch.autograd.gradcheck(lambda classes: rest(classes, inputs[1])[0], inputs[:1])
    _, boxes = rest(*inputs)
    own, other = torch.autograd.grad(boxes.sum(), inputs[::-1], allow_unused=True)
    assert own.abs().sum() > 0
    assert other is None


def test_levels_of_more_than_8_megabytes_are_large() -> None:
    sizes = (1, 256, 64, 128), (1, 256, 64, 129), (2, 256, 64, 64), (2, 256, 64, 65)
    assert [is_large(torch.empty(size, device='meta')) for size in sizes] == [False, True] * 2


def test_the_first_and_the_last_width_are_compared() -> None:
    head = nn.Module()
    for widths, keeps in (((4, 8, 4), True), ((4, 4, 8), False), ((4,), False)):
        head.cls_convs = nn.ModuleList(ConvModule(*pair, 3) for pair in pairwise(widths))
        assert Tower(head, 'cls_convs').keeps_width == keeps


def test_convolutions_without_activations_are_no_tower() -> None:
    head = nn.Module()
    layers = [ConvModule(4, 4, 3), ConvModule(4, 4, 3, act_cfg=None)]
    for kept in (1, 2):
        head.cls_convs = nn.ModuleList(layers[:kept])
        assert Tower(head, 'cls_convs').channels == ((4, 4) if kept == 1 else ())
