"""The frozen teacher: outside of the student, an exact inference engine, never learning."""

import copy
import gc
import io
import pickle
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from mmengine import ConfigDict
from mmengine.hub import get_config
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from ld_plugin import NonFiniteTeacherError
from ld_plugin.dense import DenseOutputs, Positions
from ld_plugin.detectors import FrozenTeacher
from ld_plugin.recipes import bckd, defeat, imitation_everywhere, imitation_gi, ld_kd, ld_main
from tests import needs
from tests.families import tiny
from tests.models import GFL, batch, build, distillation_loss, losses, tiny_distilled, tiny_gfl

SHAPES = [(128, 160), (96, 128)]


def caffe_style() -> ConfigDict:
    model = tiny_gfl(depth=50)
    model.backbone.update(style='caffe', norm_cfg=dict(type='BN', requires_grad=False))
    return model


def deformable() -> ConfigDict:
    model = tiny_gfl(depth=50)
    model.backbone.update(
        dcn=dict(type='DCNv2', deform_groups=1, fallback_on_stride=False),
        stage_with_dcn=(False, True, True, True),
    )
    return model


def swin() -> ConfigDict:
    """GFL over a Swin transformer with drop path and dropout."""
    model = tiny_gfl()
    model.backbone = ConfigDict(
        type='SwinTransformer',
        embed_dims=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 2],
        window_size=4,
        drop_rate=0.5,
        drop_path_rate=0.9,
    )
    model.neck.in_channels = [8, 16, 32, 64]
    return model


def stock_with_statistics(model: ConfigDict, seed: int = 3) -> nn.Module:
    """A stock detector whose batch norms do something, and whose offsets are not all zero."""
    stock = build(model, seed)
    for name, value in stock.state_dict().items():
        if name.endswith('running_var'):
            value.uniform_(0.5, 1.5)
        elif name.endswith('running_mean') or 'conv_offset' in name:
            value.normal_(std=0.1)
        elif value.ndim == 1 and name.endswith('weight'):  # norm layers
            value.uniform_(0.5, 1.5)
    return stock.eval()


def images_of(stock: nn.Module, shapes: Sequence = SHAPES) -> tuple[Tensor, list]:
    data = batch(shapes, [1] * len(shapes))
    return stock.data_preprocessor(data, training=False)['inputs'], list(shapes)


def relative_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Length of the error over the length of what is expected, all levels together.

    Not the largest error of an element: group norm over a level of two cells amplifies rounding.
    """
    assert [f.shape for f in found] == [e.shape for e in expected]
    error = sum((f.double() - e).square().sum() for f, e in zip(found, expected, strict=True))
    return (error / sum(e.double().square().sum() for e in expected)).sqrt().item()


@pytest.mark.parametrize('model', [tiny_gfl, caffe_style, deformable, swin])
@pytest.mark.parametrize(
    ('precision', 'tolerance'),
    [
        ('fp32', 1e-4),
        ('bf16', 5e-2),
        pytest.param('fp16', 1e-2, marks=needs.half_on_processors),
    ],
)
def test_folded_channels_last_teacher_equals_the_stock_detector(
    model: Any, precision: str, tolerance: float
) -> None:
    stock = stock_with_statistics(model())
    images, shapes = images_of(stock)
    with torch.no_grad():
        features = stock.extract_feat(images)
        class_maps, box_maps = stock.bbox_head(features)

    found = FrozenTeacher(copy.deepcopy(stock), precision)(images, shapes).outputs

    assert relative_error(found.features, features) < tolerance
    assert relative_error(found.class_maps, class_maps) < tolerance
    assert relative_error(found.box_maps, box_maps) < tolerance


def test_batch_norm_is_folded_and_convolutions_are_channels_last() -> None:
    teacher = FrozenTeacher(stock_with_statistics(tiny_gfl()))
    modules = list(teacher._model.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in modules)
    convolutions = [
        m.weight for m in modules if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)
    ]
    assert convolutions
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in convolutions)


@pytest.mark.parametrize(
    ('precision', 'dtype'), [('bf16', torch.bfloat16), ('fp16', torch.float16)]
)
def test_low_precision_keeps_its_weights_in_that_precision(
    precision: str, dtype: torch.dtype
) -> None:
    teacher = FrozenTeacher(build(tiny_gfl()), precision)
    weights = [m.weight for m in teacher._model.modules() if isinstance(m, nn.Conv2d)]
    assert {w.dtype for w in weights} == {dtype}


class Doubled(nn.ReLU):
    """An activation of somebody's own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_activations_derived_from_a_relu_stay_as_they_are() -> None:
    stock = stock_with_statistics(tiny_gfl())
    stock.bbox_head.cls_convs[0].activate = Doubled()
    images, shapes = images_of(stock)
    expected = stock.bbox_head(stock.extract_feat(images))[0]
    found = FrozenTeacher(stock)(images, shapes).outputs.class_maps
    assert relative_error(found, expected) < 1e-4


def test_teacher_is_no_part_of_the_student() -> None:
    model, stock = build(tiny_distilled()), build(tiny_gfl())
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    frozen = [*model.teacher._model.parameters(), *model.teacher._model.buffers()]
    assert frozen
    assert own.isdisjoint(map(id, frozen))
    assert not any(module is model.teacher._model for module in model.modules())
    assert len(list(model.parameters())) == len(list(stock.parameters()))
    assert not any(p.requires_grad for p in model.teacher._model.parameters())


def test_train_does_not_reach_the_teacher() -> None:
    teacher = dict(config=dict(model=swin()), checkpoint=None)
    model = build(tiny_distilled(teacher, ld_main))
    modes = []
    for module in model.teacher._model.modules():
        if isinstance(module, nn.Dropout) or type(module).__name__ == 'DropPath':
            module.register_forward_hook(lambda m, *_: modes.append(m.training))
    images = model.data_preprocessor(batch(), training=True)['inputs']
    outputs = []
    for mode in (True, False, True):
        model.train(mode)
        outputs.append(model.teacher(images, [(64, 64), (48, 64)]).outputs.class_maps)
    assert modes
    assert not any(modes)
    for other in outputs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outputs[0], other, strict=True))


def test_teacher_runs_without_autograd() -> None:
    model = build(tiny_distilled(distillers=ld_kd | imitation_everywhere))
    images = model.data_preprocessor(batch(), training=True)['inputs'].requires_grad_()
    outputs = model.teacher(images, [(64, 64), (48, 64)]).outputs
    maps = [*outputs.class_maps, *outputs.box_maps, *outputs.features]
    assert len(maps) == 15
    assert not any(m.requires_grad for m in maps)


@pytest.mark.parametrize(
    'distillers, features, maps',
    [(ld_kd, 0, 5), (imitation_everywhere, 5, 0), (imitation_gi, 5, 5)],
    ids=['head', 'features', 'features, and the head for the region'],
)
def test_only_what_a_distiller_reads_is_computed(
    distillers: dict, features: int, maps: int
) -> None:
    images, shapes = images_of(build(tiny_gfl()))
    outputs = build(tiny_distilled(distillers=distillers)).teacher(images, shapes).outputs
    assert len(outputs.features) == features
    assert len(outputs.class_maps) == len(outputs.box_maps) == maps
    assert outputs.num_images == len(images)
    assert outputs.level_shapes[0] == (16, 20, 1)


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
@pytest.mark.parametrize(
    ('distillers', 'unread', 'read'),
    [(defeat, 'box_maps', ('class_maps', 'features')), (ld_main, 'class_maps', ('box_maps',))],
    ids=['classes', 'boxes'],
)
def test_what_is_read_of_one_branch_is_what_the_whole_head_says(
    distillers: dict, unread: str, read: tuple[str, ...], precision: str
) -> None:
    teacher = dict(config=dict(model=tiny_gfl()), checkpoint=None, precision=precision)
    model = build(tiny_distilled(teacher, distillers))
    images, shapes = images_of(model)
    some = model.teacher(images, shapes).outputs
    assert not getattr(some, unread)
    model.teacher.reads |= {'class_logits', 'distributions'}
    everything = model.teacher(images, shapes).outputs
    assert getattr(everything, unread)
    assert some.level_shapes == everything.level_shapes
    for name in read:
        found, expected = getattr(some, name), getattr(everything, name)
        assert len(found) == 5
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ('distillers', 'broken'),
    [(defeat, ('reg_convs', 'gfl_reg')), (ld_main, ('cls_convs', 'gfl_cls'))],
    ids=['boxes', 'classes'],
)
def test_what_nobody_reads_may_be_nan(distillers: dict, broken: tuple[str, ...]) -> None:
    model = build(tiny_distilled(distillers=distillers))
    for name in broken:
        for parameter in getattr(model.teacher._reader.head, name).parameters():
            parameter.fill_(torch.nan)
    assert distillation_loss(model, batch()).isfinite()


@pytest.mark.parametrize(
    ('distillers', 'read', 'missing'),
    [
        (ld_main, lambda said: said.class_views, 'class_maps'),
        (ld_main, lambda said: said.class_logits(everywhere(said)), 'class_maps'),
        (ld_main, lambda said: said.level_class_logits(0), 'class_maps'),
        (defeat, lambda said: said.boxes(everywhere(said)), 'box_maps'),
        (defeat, lambda said: said.level_boxes(0), 'box_maps'),
        (defeat, lambda said: said.distribution_logits(everywhere(said)), 'box_maps'),
        (defeat, lambda said: said.quality_logits(everywhere(said)), 'quality_maps'),
    ],
)
def test_reading_what_was_not_asked_for(distillers: dict, read: Any, missing: str) -> None:
    """As a region of one's own might that does not say so."""
    model = build(tiny_distilled(distillers=distillers))
    said = model.teacher(*images_of(model)).outputs
    with pytest.raises(ValueError, match=f'^{missing} of GFLHead: found none.* in the `reads` of'):
        read(said)


def everywhere(said: DenseOutputs) -> Positions:
    mask = torch.ones(said.num_images, sum(said.num_level_priors), dtype=torch.bool)
    return Positions.from_mask(mask, said.level_shapes)


def test_teacher_moves_to_a_fake_gpu_and_runs_there() -> None:
    model = build(tiny_distilled(distillers=ld_kd | imitation_everywhere))
    assert model.teacher.device.type == 'cpu'
    with needs.fake_gpu(allow_non_fake_inputs=True):
        model.cuda()
        assert model.teacher.device.type == 'cuda'
        anchors = model.teacher._reader.head.prior_generator.base_anchors
        assert {level.device.type for level in anchors} == {'cuda'}  # not copied in every step
        images = torch.zeros(2, 3, 64, 64, device='cuda')
        outputs = model.teacher(images, [(64, 64), (48, 64)]).outputs
        maps = [*outputs.class_maps, *outputs.box_maps, *outputs.features]
        assert {m.device.type for m in maps} == {'cuda'}
        assert outputs.priors.device.type == 'cuda'


@needs.packed_kernels
def test_packed_weights_become_plain_before_they_move() -> None:
    teacher = FrozenTeacher(build(tiny_gfl()))
    teacher(torch.zeros(2, 3, 64, 64), [(64, 64)] * 2)
    packed = [m for m in teacher._model.modules() if getattr(m, 'packed', None) is not None]
    assert packed
    teacher.to(torch.device('cpu:0'))  # a move by its name alone
    assert all(m.packed is None and m.weight.numel() for m in packed)


def test_teacher_follows_the_images() -> None:
    """Copies of the student share it, and mmengine's EMA hook may keep one on another device."""
    model = build(tiny_distilled(distillers=ld_kd | imitation_everywhere))
    with needs.fake_gpu(allow_non_fake_inputs=True):
        images = torch.zeros(2, 3, 64, 64, device='cuda')
        outputs = model.teacher(images, [(64, 64), (48, 64)]).outputs
        maps = [*outputs.class_maps, *outputs.box_maps, *outputs.features, outputs.priors]
        assert {m.device.type for m in maps} == {'cuda'}


def test_precision_stays_when_the_student_changes_its_own() -> None:
    model = build(tiny_distilled(dict(config=dict(model=tiny_gfl()), checkpoint=None)))
    model.double()
    assert {p.dtype for p in model.teacher._model.parameters()} == {torch.float32}


def test_copies_of_the_student_share_the_teacher() -> None:
    model = build(tiny_distilled())
    twin = copy.deepcopy(model)
    assert twin.teacher is model.teacher
    assert next(twin.parameters()) is not next(model.parameters())
    assert torch.equal(distillation_loss(twin, batch()), distillation_loss(model, batch()))


@pytest.mark.parametrize('teacher', [tiny_gfl, deformable])
def test_pickled_student_is_whole(teacher: Callable[[], ConfigDict]) -> None:
    model = build(tiny_distilled(dict(config=dict(model=teacher()), checkpoint=None)))
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(distillation_loss(twin, batch()), distillation_loss(model, batch()))
    file = io.BytesIO()
    torch.save(model, file)  # what some deployment tools do with a whole model
    assert file.tell() > 0


@pytest.mark.parametrize('on', ['logit', 'score'])
def test_pickled_student_that_imitates_by_predictions(on: str) -> None:
    pfi = dict(pfi=dict(type='PredictionGuidedFeatureDistiller', on=on))
    model = build(tiny_distilled(distillers=pfi))
    twin = pickle.loads(pickle.dumps(model))
    found, expected = (losses(m, batch())['loss_pfi'] for m in (twin, model))
    assert torch.equal(found, expected)


def test_images_of_a_converted_student_on_a_gpu() -> None:
    model = build(tiny_distilled(distillers=ld_kd | imitation_everywhere))
    with needs.fake_gpu(allow_non_fake_inputs=True):
        images = torch.zeros(2, 3, 64, 64, device='cuda', dtype=torch.bfloat16)
        outputs = model.teacher(images, [(64, 64), (48, 64)]).outputs
        assert {level.dtype for level in outputs.class_maps} == {torch.float32}


@needs.half_on_processors
def test_sums_of_half_precision_do_not_overflow() -> None:
    model = build(tiny_gfl())
    nn.init.constant_(model.bbox_head.gfl_cls.bias, 2000.0)
    found = FrozenTeacher(model, precision='fp16')(torch.randn(2, 3, 64, 64), [(64, 64)] * 2)
    assert found.outputs.class_maps[0].dtype == torch.float16
    found.check_finite()


def test_the_necks_levels_are_not_kept_where_nobody_pools_them() -> None:
    model = build(tiny_distilled())
    assert len(model.teacher(torch.zeros(2, 3, 64, 64), [(64, 64)] * 2).neck) == 0


def test_teacher_is_freed_with_the_student() -> None:
    model = build(tiny_distilled())
    distillation_loss(model, batch()).backward()
    weight = next(model.teacher._model.parameters())
    alive = weakref.ref(weight)
    del model, weight
    gc.collect()
    assert alive() is None


def test_teacher_ignores_the_autocast_of_the_student() -> None:
    stock = stock_with_statistics(tiny_gfl())
    teacher = FrozenTeacher(copy.deepcopy(stock))
    images, shapes = images_of(stock)
    expected = teacher(images, shapes).outputs.box_maps
    with torch.autocast('cpu', torch.bfloat16):
        found = teacher(images, shapes).outputs.box_maps
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


def test_distilled_config_can_teach_in_its_turn() -> None:
    student = tiny_distilled()
    model = build(tiny_distilled(dict(config=dict(model=student), checkpoint=None)))
    assert type(model.teacher._model).__name__ == 'SingleStageDetector'
    assert torch.isfinite(distillation_loss(model, batch()))


def test_distilled_checkpoint_with_adapters_teaches(tmp_path: Any) -> None:
    wide = dict(config=dict(model=tiny_gfl(channels=64)), checkpoint=None)
    first = build(tiny_distilled(wide, imitation_everywhere), seed=5)
    path = tmp_path / 'epoch_1.pth'
    torch.save(dict(state_dict=first.state_dict(), meta={}), path)
    teacher = dict(
        config=dict(model=tiny_distilled(wide, imitation_everywhere)), checkpoint=str(path)
    )
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*holds weights')
        second = build(tiny_distilled(teacher, ld_kd), seed=6)
    second.load_state_dict(
        {k: v for k, v in first.state_dict().items() if not k.startswith('distillers.')}
    )
    # now the student is its own teacher
    assert distillation_loss(second, batch()).item() == pytest.approx(0, abs=1e-5)


def test_teacher_is_built_in_the_scope_of_its_own_config() -> None:
    config = dict(model=tiny_gfl(), default_scope='mmdet')
    with DefaultScope.overwrite_default_scope('mmengine'):
        teacher = FrozenTeacher.from_config(dict(config=config, checkpoint=None))
    assert teacher.spec.name == 'GFLHead'


def test_config_by_stock_name_by_path_and_by_dict(tmp_path: Any) -> None:
    config = get_config(GFL)
    config.model.backbone.init_cfg = None
    config.dump(tmp_path / 'teacher.py')
    specs = [
        FrozenTeacher.from_config(dict(config=source, checkpoint=None)).spec
        for source in (GFL, str(tmp_path / 'teacher.py'), dict(config))
    ]
    assert specs[0] == specs[1] == specs[2]
    assert specs[0].num_classes == 80
    assert specs[0].num_bins == 17
    assert specs[0].strides == ((8, 8), (16, 16), (32, 32), (64, 64), (128, 128))


def test_random_weights_are_announced() -> None:
    with pytest.warns(UserWarning, match=r'model\.teacher\.checkpoint is None.*random weights'):
        FrozenTeacher.from_config(dict(config=dict(model=tiny_gfl()), checkpoint=None))


@pytest.mark.parametrize(
    ('parameter', 'place'),
    [
        ('bbox_head.gfl_cls.bias', 'class_logits of level 0, image 0; class_logits of level 0'),
        (
            'bbox_head.scales.3.scale',
            'box_logits of level 3, image 0; box_logits of level 3, image 1',
        ),
    ],
)
def test_teacher_that_outputs_nan_stops_the_training(parameter: str, place: str) -> None:
    model = build(tiny_distilled())
    model.teacher._model.get_parameter(parameter).data.fill_(torch.nan)
    with pytest.raises(NonFiniteTeacherError) as error:
        losses(model, batch())
    assert str(error.value).startswith(f'The teacher produced NaN or infinity: {place}')
    assert 'model.teacher.checkpoint' in str(error.value)


@pytest.mark.parametrize(
    ('recipe', 'branch', 'what'),
    [(ld_main, 1, 'box_logits'), (bckd, 1, 'box_logits'), (defeat, 0, 'class_logits')],
    ids=['ld_main', 'bckd', 'defeat'],
)
def test_message_names_the_one_bad_image_and_level(recipe: dict, branch: int, what: str) -> None:
    model = build(tiny_distilled(distillers=recipe))
    prepared = model.data_preprocessor(batch([(64, 64)] * 3, [1] * 3), training=True)

    def spoil(head: nn.Module, args: tuple, outs: tuple) -> None:
        outs[branch][2][1, 1, 0, 0] = torch.inf

    model.teacher._model.bbox_head.register_forward_hook(spoil)
    with pytest.raises(NonFiniteTeacherError, match=rf': {what} of level 2, image 1 \(counted'):
        model(**prepared, mode='loss')


@pytest.mark.parametrize(
    ('distillers', 'width'),
    [
        (ld_main, 4 * 17),
        (ld_main | bckd, 4 * 17),
        (dict(cross=dict(type='CrossHeadDistiller', layer=0)), 4 * 17),
        (bckd, 4),
        (imitation_gi, 4),
        (defeat, None),
        (ld_kd | defeat, 4 * 17),
    ],
)
def test_boxes_are_kept_as_far_as_they_are_read(distillers: dict, width: int | None) -> None:
    model = build(tiny_distilled(distillers=distillers))
    prepared = model.data_preprocessor(batch(), training=True)
    _, context = model.observe(prepared['inputs'], prepared['data_samples'])
    widths = {level.shape[1] for level in context.teacher.box_maps}
    assert widths == (set() if width is None else {width})
    assert bool(context.teacher.class_maps) == ('class_logits' in model.teacher.reads)


@pytest.mark.parametrize(
    ('family', 'decoded'), [('retinanet', False), ('distribution_retinanet', True)]
)
def test_boxes_are_decoded_early_where_that_takes_less_memory(family: str, decoded: bool) -> None:
    teacher = dict(config=dict(model=tiny(family)), checkpoint=None)
    model = build(tiny_distilled(teacher, bckd, tiny(family)))
    prepared = model.data_preprocessor(batch(), training=True)
    _, context = model.observe(prepared['inputs'], prepared['data_samples'])
    level, rows = context.teacher.box_maps[0], torch.zeros(1, 4)
    found = context.teacher.decoder(rows, torch.ones(1, 4), torch.ones(1, 1))
    assert level.shape[1] == 4 * context.teacher.spec.num_base_priors[0]
    assert torch.equal(found, rows) == decoded


@pytest.mark.parametrize('reads', ['class_logits', 'boxes'])
def test_features_inside_a_head_are_kept_beside_one_branch(reads: str) -> None:
    teacher = FrozenTeacher(build(tiny_gfl()))
    teacher.reads, teacher.head_layers = frozenset({reads, 'head_features'}), frozenset({1})
    said = teacher(torch.zeros(2, 3, 64, 64), [(64, 64)] * 2).outputs
    assert [len(levels) for levels in said.head_features[1]] == [5, 5]


@pytest.mark.parametrize(
    ('distiller', 'kept'),
    [
        ('QualityDistiller', ['class_maps', 'quality_maps']),
        ('ClassificationDistiller', ['class_maps']),
    ],
)
def test_maps_beside_a_quality_are_kept_as_far_as_they_are_read(
    distiller: str, kept: list[str]
) -> None:
    teacher = dict(config=dict(model=tiny('atss')), checkpoint=None)
    model = build(tiny_distilled(teacher, dict(x=dict(type=distiller)), tiny('atss')))
    said = model.teacher(*images_of(model)).outputs
    names = 'class_maps', 'box_maps', 'quality_maps'
    assert [name for name in names if getattr(said, name)] == kept


def test_quality_logits_are_checked() -> None:
    model = tiny('atss')
    teacher = dict(config=dict(model=tiny('atss')), checkpoint=None)
    model = build(tiny_distilled(teacher, dict(quality=dict(type='QualityDistiller')), model))
    model.teacher._model.bbox_head.atss_centerness.bias.data.fill_(torch.nan)
    with pytest.raises(NonFiniteTeacherError, match=r': quality_logits of level 0, image 0; qual'):
        losses(model, batch())


def test_features_that_are_distilled_are_checked() -> None:
    def spoil(neck: nn.Module, args: tuple, outs: tuple) -> tuple:
        return (*outs[:-1], outs[-1] * torch.nan)

    model = build(tiny_distilled(distillers=imitation_everywhere))
    model.teacher._model.neck.register_forward_hook(spoil)
    with pytest.raises(NonFiniteTeacherError, match='features of level 4, image 0'):
        losses(model, batch())
