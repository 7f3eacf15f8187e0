"""Heads whose predictions are not read: their features are distilled, and nothing else."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine import ConfigDict
from mmengine.hub import get_config
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from torch import Tensor, nn

from ld_plugin import ConfigError, recipes
from ld_plugin.dense import DistillationContext
from ld_plugin.dense.readers import FeatureReader
from ld_plugin.distillers import FeatureDistiller
from ld_plugin.losses import FeatureMSELoss
from ld_plugin.regions import Region
from tests.detectors.test_two_stage import check_against_stock, observed, save, seeded_losses
from tests.families import UNREAD, UNREAD_TWO_STAGE, WITH_SOFTMAX, tiny
from tests.models import batch, build, losses, tiny_distilled

FAMILIES = (*UNREAD, *UNREAD_TWO_STAGE, *WITH_SOFTMAX)
every_family = pytest.mark.parametrize('family', FAMILIES)
#: every way to compare features that needs no priors
FEATURES = {
    **recipes.pkd,
    **recipes.imitation_decoupled,
    'defeat_neck': recipes.defeat['defeat_neck'],
}


def distilled(
    student: ConfigDict, teacher: ConfigDict, distillers: Mapping[str, Any] = FEATURES
) -> ConfigDict:
    model = tiny_distilled(dict(config=dict(model=teacher), checkpoint=None), distillers, student)
    if 'roi_head' in student:
        model.type = 'DistilledTwoStageDetector'
    return model


def twins(family: str, distillers: Mapping[str, Any] = FEATURES) -> nn.Module:
    return build(distilled(tiny(family), tiny(family), distillers))


def refusal(model: ConfigDict) -> str:
    with pytest.raises(ConfigError) as error:
        build(model)
    return str(error.value)


@every_family
def test_stock_losses_and_their_gradients_are_bit_identical(family: str) -> None:
    check_against_stock(twins(family), family, {f'loss_{name}' for name in FEATURES})


@every_family
def test_features_learn_and_the_head_does_not(family: str) -> None:
    model = twins(family)
    found = seeded_losses(model, family)
    assert all(0 < found[f'loss_{name}'] < math.inf for name in FEATURES)
    sum(found[f'loss_{name}'] for name in FEATURES).backward()
    head = getattr(model, model.dense_head_name)
    assert all(p.grad.any() for p in model.neck.parameters() if p.dim() == 4)
    assert all(p.grad is None for p in head.parameters())


@every_family
def test_nothing_to_learn_from_a_twin(family: str, tmp_path: Path) -> None:
    teacher = dict(config=dict(model=tiny(family)), **save(build(tiny(family)), tmp_path / 't.pth'))
    model = distilled(tiny(family), tiny(family), {**recipes.pkd, **recipes.imitation_decoupled})
    model.teacher = teacher
    found = seeded_losses(build(model), family)
    for name in ('pkd', 'im_fg', 'im_bg'):
        assert abs(found[f'loss_{name}']) < 1e-5


@pytest.mark.parametrize(
    'family', ['fsaf', 'free_anchor', 'softmax_retinanet', 'ga_faster_rcnn', 'softmax_faster_rcnn']
)
def test_any_detector_teaches_features_and_learns_them(family: str) -> None:
    stride_4 = family.endswith('faster_rcnn')
    other = tiny('faster_rcnn' if stride_4 else 'gfl', 5)
    for student, teacher in ((tiny(family), other), (other, tiny(family))):
        model = build(distilled(student, teacher))
        found = seeded_losses(model, family)
        assert all(0 < found[f'loss_{name}'] < math.inf for name in FEATURES)


@pytest.mark.parametrize('family', ['fsaf', 'ga_faster_rcnn'])
@pytest.mark.parametrize(
    ('recipe', 'missing'),
    [
        ('ld_main', 'distributions, priors'),
        ('bckd', 'class logits'),
        ('rm_pfi', 'class logits, matched gts, priors'),
        ('crosskd', 'boxes, class logits, head features, priors'),
        ('imitation_main', 'priors'),
        ('imitation_fine_grained', 'priors'),
        ('imitation_gi', 'boxes, class logits, priors'),
    ],
)
def test_what_needs_a_reader_says_so(family: str, recipe: str, missing: str) -> None:
    distillers = getattr(recipes, recipe)
    student = tiny(family)
    head = student.rpn_head if 'rpn_head' in student else student.bbox_head
    found = refusal(distilled(student, tiny(family), distillers))
    assert found.startswith(
        f"model.distillers.{next(iter(distillers))}: the student's head {head.type} has no reader, "
        f'so this distiller or its region finds no {missing}. Expected one of features alone'
    )
    assert f"@register_reader('{head.type}')" in found
    assert 'custom_imports' in found


@pytest.mark.parametrize('family', WITH_SOFTMAX)
@pytest.mark.parametrize('owner', ['student', 'teacher'])
def test_classes_of_a_softmax_are_not_compared(family: str, owner: str) -> None:
    sigmoid = tiny(family.removeprefix('softmax_'))
    models = dict(student=sigmoid, teacher=sigmoid) | {owner: tiny(family)}
    head = sigmoid.rpn_head if 'rpn_head' in sigmoid else sigmoid.bbox_head
    found = refusal(distilled(**models, distillers=recipes.bckd))
    assert found.startswith(
        f"model.distillers.bckd_cls: the {owner}'s head {head.type} has a softmax over its classes "
        'and a background (loss_cls.use_sigmoid=False), so this distiller or its region finds no '
        'class logits. Expected one of features alone'
    )
    assert found.endswith('or a head whose classes have a score each (loss_cls.use_sigmoid=True).')


def test_a_teacher_without_a_reader_is_named() -> None:
    found = refusal(distilled(tiny('gfl'), tiny('fsaf'), recipes.bckd))
    assert found.startswith(
        "model.distillers.bckd_cls: the teacher's head FSAFHead has no reader, so this distiller "
        'or its region finds no class logits. '
    )


@pytest.mark.parametrize(
    'region',
    [
        dict(type='EverywhereRegion', exclude_positives=True),
        dict(type='GTCellsRegion', levels='assigner'),
        dict(type='ValuableLocalizationRegion'),
        dict(type='OverlapRegion'),
    ],
)
def test_regions_of_priors_are_refused(region: dict) -> None:
    distillers = dict(im=dict(type='FeatureDistiller', region=region))
    assert 'has no reader' in refusal(distilled(tiny('fsaf'), tiny('fsaf'), distillers))
    build(distilled(tiny('gfl'), tiny('gfl'), distillers))


def test_a_region_of_ones_own_is_taken_to_need_priors() -> None:
    class Mine(Region):
        def weights(self, context: DistillationContext) -> Tensor:
            return context.assignment.valid

    spec = FeatureReader(build(tiny('fsaf')).bbox_head).spec
    distiller = FeatureDistiller(Mine(), FeatureMSELoss())
    with pytest.raises(ConfigError, match=r'^im: .* finds no priors'):
        distiller.prepare(spec, spec, 'im')
    Mine.reads_of_student = frozenset()
    distiller.prepare(spec, spec, 'im')


@pytest.mark.parametrize(
    ('config', 'head'),
    [
        ('mmdet::ssd/ssd300_coco.py', 'SSDHead'),
        ('mmdet::yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py', 'YOLOV3Head'),
        ('mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco.py', 'CenterNetHead'),
    ],
)
@pytest.mark.parametrize('owner', ['student', 'teacher'])
def test_levels_that_the_head_does_not_tell(config: str, head: str, owner: str) -> None:
    model = get_config(config).model
    model.backbone.init_cfg = None
    models = dict(student=tiny('gfl'), teacher=tiny('gfl')) | {owner: model}
    key = 'model.' if owner == 'student' else 'model.teacher.config: '
    found = refusal(distilled(**models, distillers=recipes.pkd))
    assert found.startswith(
        f'{key}bbox_head: found {head}, which does not tell the strides and the one width of its '
        'levels, expected a head that has a reader: '
    )


def test_a_head_without_a_gradient_is_refused() -> None:
    model = twins('foveabox', recipes.pkd)
    turn_on_activation_checkpointing(model, ['bbox_head'])
    with pytest.raises(
        ConfigError, match=r'^activation_checkpointing: what FoveaHead predicts has'
    ):
        losses(model, batch())


def test_padding_is_left_out() -> None:
    context = observed(twins('fsaf'), batch(((128, 128), (64, 128))))
    valid = context.assignment.valid.split(context.student.num_level_priors, dim=1)
    for level, (height, width, _) in zip(valid, context.student.level_shapes, strict=True):
        whole, padded = level.unflatten(1, (height, width))
        assert whole.all()
        rows = -(-height // 2)
        assert padded[:rows].all()
        assert not padded[rows:].any()


def test_cells_are_those_of_a_head_with_points() -> None:
    """FCOS's points are the middles of cells, so both readers find the same cells in objects."""
    model = build(distilled(tiny('fcos'), tiny('fcos')))
    expected = observed(model)
    outputs = FeatureReader(model.bbox_head).read((), expected.student.features)
    assert outputs.level_shapes == expected.student.level_shapes
    assert torch.equal(outputs.prior_strides, expected.student.prior_strides)
    left, top, right, bottom = outputs.priors.unbind(1)
    assert torch.equal(right - left, outputs.prior_strides[:, 0])
    assert torch.equal(bottom - top, outputs.prior_strides[:, 0])
    corners = expected.student.priors
    assert torch.equal((left + right) / 2, (corners[:, 0] + corners[:, 2]) / 2)
    assert torch.equal((top + bottom) / 2, (corners[:, 1] + corners[:, 3]) / 2)
