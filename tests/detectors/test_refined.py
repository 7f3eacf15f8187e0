"""R3Det and S2ANet, whose heads refine the boxes of a first one, as students and as teachers."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from mmengine import ConfigDict
from torch import nn

from ld_plugin import ConfigError, recipes
from ld_plugin.detectors.checkpoint import weights_of
from ld_plugin.detectors.model_config import student_model
from tests.detectors.test_two_stage import (
    build_stock,
    check_against_stock,
    check_predictions,
    save,
    seeded_losses,
    whole_config,
)
from tests.families import REFINED, distilled_type, scope, tiny
from tests.models import build, tiny_distilled

pytest.importorskip('mmrotate')

every_family = pytest.mark.parametrize('family', REFINED)
LEARNT = recipes.bckd | recipes.pkd
FEATURES = recipes.pkd


def distilled(
    student: str,
    teacher: str | ConfigDict,
    distillers: Mapping[str, Any] = LEARNT,
    **options: Any,
) -> ConfigDict:
    taught_by = tiny(teacher) if isinstance(teacher, str) else teacher
    model = tiny(student)
    options = dict(config=whole_config(taught_by), checkpoint=None) | options
    learning = tiny_distilled(options, distillers, model)
    learning.type = distilled_type(model)
    return learning


def built(student: str, teacher: str | ConfigDict, *args: Any, **options: Any) -> nn.Module:
    with scope(student):
        return build(distilled(student, teacher, *args, **options))


def refusal(model: ConfigDict, family: str = 's2anet') -> str:
    with scope(family), pytest.raises(ConfigError) as error:
        build(model)
    return str(error.value)


@every_family
def test_stock_losses_and_their_gradients_are_bit_identical(family: str) -> None:
    check_against_stock(built(family, family), family, {f'loss_{name}' for name in LEARNT})


@every_family
def test_checkpoint_and_predictions_are_the_stock_ones(family: str) -> None:
    check_predictions(built(family, family), family)


@every_family
def test_what_the_first_head_says_is_learnt(family: str) -> None:
    model = built(family, family, recipes.bckd)
    found = seeded_losses(model, family)
    sum(found[f'loss_{name}'] for name in recipes.bckd).backward()
    assert model.bbox_head_init.retina_cls.weight.grad.any()
    assert model.bbox_head_init.retina_reg.weight.grad.any()
    assert all(p.grad is None for p in model.bbox_head_refine.parameters())


@every_family
def test_nothing_to_learn_from_a_twin(family: str, tmp_path: Path) -> None:
    far = seeded_losses(built(family, family), family)
    model = built(family, family, **save(build_stock(family), tmp_path / 't.pth'))
    model.load_state_dict(model.teacher._model.state_dict(), strict=False)
    model.eval()  # batch norm by its statistics, as the teacher's
    found = seeded_losses(model, family)
    for name in LEARNT:
        assert found[f'loss_{name}'] <= 1e-3 * far[f'loss_{name}']


@pytest.mark.parametrize(
    ('student', 'teacher', 'distillers'),
    [
        ('r3det', 'rotated_retinanet_hbox', LEARNT),  # as many anchors
        ('rotated_retinanet_hbox', 'r3det', LEARNT),
        ('s2anet', 'rotated_retinanet', FEATURES),
        ('s2anet', 'gfl', FEATURES),
        ('gfl', 's2anet', FEATURES),
        ('r3det', 's2anet', FEATURES),
    ],
)
def test_other_detectors_teach_and_learn(
    student: str, teacher: str, distillers: Mapping[str, Any]
) -> None:
    found = seeded_losses(built(student, teacher, distillers), student)
    assert all(0 < found[f'loss_{name}'] < math.inf for name in distillers)


def test_a_distilled_student_teaches_in_its_turn() -> None:
    student = distilled('s2anet', 's2anet')
    model = built('s2anet', student)
    assert type(model.teacher._model).__name__ == 'RefineSingleStageDetector'
    assert student_model(ConfigDict(model=student)).type == 'mmrotate.RefineSingleStageDetector'
    assert 0 < seeded_losses(model, 's2anet')['loss_pkd'] < math.inf


def test_a_published_student_is_a_stock_detector() -> None:
    wide = tiny('s2anet')
    wide.neck.out_channels = 64
    for head in (wide.bbox_head_init, *wide.bbox_head_refine):
        head.in_channels = 64
    wide.bbox_head_refine[0].frm_cfg.feat_channels = 64
    model = built('s2anet', wide, recipes.fitnet)
    assert any(key.startswith('distillers.im.adapter') for key in model.state_dict())
    published = weights_of(dict(state_dict=model.state_dict()))
    build_stock('s2anet').load_state_dict(published, strict=True)


def test_priors_of_another_kind_are_refused() -> None:
    found = refusal(distilled('s2anet', 'r3det', recipes.bckd))
    assert found.startswith('model.distillers.bckd_cls: priors per cell (num_base_priors) differ')


def test_the_number_of_classes_stands_in_the_first_head() -> None:
    model = built('s2anet', 's2anet', recipes.bckd, classes=['a', 'b', 'c'])
    with pytest.raises(ConfigError, match=r'^model\.bbox_head_init\.num_classes: found 3, expec'):
        model.match_classes(('a', 'b'))


@pytest.mark.parametrize('name', ['cls_init', 'bbox_refine_1'])
def test_a_key_does_not_hide_a_stock_loss(name: str) -> None:
    found = refusal(distilled('r3det', 'r3det', {name: recipes.pkd['pkd']}), 'r3det')
    assert found.startswith(f'model.distillers.{name}: the student has a loss named')


def test_parts_of_another_detector_are_refused() -> None:
    model = distilled('rotated_retinanet', 's2anet')
    model.type = distilled_type(tiny('s2anet'))
    assert refusal(model).startswith(
        'model: found no bbox_head_init, no bbox_head_refine, bbox_head; expected the parts of a '
        'detector whose heads refine boxes: backbone, neck, bbox_head_init, bbox_head_refine'
    )
    model = distilled('s2anet', 's2anet')
    model.type = distilled_type(tiny('rotated_retinanet'))
    found = refusal(model)
    assert 'model: found no bbox_head, bbox_head_init, bbox_head_refine; ' in found
    assert found.endswith("DistilledRefineSingleStageDetector over MMRotate's R3Det and S2ANet.")
