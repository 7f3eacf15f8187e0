"""Every family's head as a frozen teacher, beside the stock detector it was made from."""

import copy

import pytest
import torch
from mmengine import ConfigDict

from ld_plugin.dense import get_reader
from ld_plugin.detectors import FrozenTeacher
from ld_plugin.recipes import bckd, crosskd, rm_pfi
from tests.detectors.test_teacher import images_of, relative_error, stock_with_statistics
from tests.families import SINGLE_STAGE, tiny
from tests.models import batch, build, losses, tiny_distilled

#: RetinaNet's head with batch norm of its own for every level, as over NAS-FPN
SEPARATE_NORM = 'RetinaSepBNHead'


def model_of(family: str) -> ConfigDict:
    if family != SEPARATE_NORM:
        return tiny(family)
    head = dict(type=SEPARATE_NORM, num_ins=5, norm_cfg=dict(type='BN'), stacked_convs=3)
    return tiny('retinanet', **head)


@pytest.mark.parametrize('family', [*SINGLE_STAGE, SEPARATE_NORM])
@pytest.mark.parametrize(('precision', 'tolerance'), [('fp32', 1e-4), ('bf16', 0.1)])
def test_teacher_equals_the_stock_detector(family: str, precision: str, tolerance: float) -> None:
    stock = stock_with_statistics(model_of(family))
    images, shapes = images_of(stock)
    with torch.no_grad():
        features = stock.extract_feat(images)
        expected = get_reader(stock.bbox_head).read(stock.bbox_head(features), features)

    found = FrozenTeacher(copy.deepcopy(stock), precision)(images, shapes).outputs

    assert relative_error(found.box_maps, expected.box_maps) < tolerance
    assert relative_error(found.class_maps, expected.class_maps) < tolerance
    assert relative_error(found.features, features) < tolerance
    if expected.quality_maps:
        assert relative_error(found.quality_maps, expected.quality_maps) < tolerance


def test_head_with_batch_norm_for_every_level_learns() -> None:
    model = model_of(SEPARATE_NORM)
    teacher = dict(config=dict(model=model), checkpoint=None)
    student = build(tiny_distilled(teacher, bckd | rm_pfi | crosskd, model))
    found = losses(student, batch())
    for name in bckd | rm_pfi | crosskd:
        assert found[f'loss_{name}'].isfinite()
    sum(found[f'loss_{name}'] for name in bckd | crosskd).backward()
    assert student.bbox_head.cls_convs[0][0].conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize('head', ['FreeAnchorRetinaHead', 'PISARetinaHead'])
def test_head_that_learns_otherwise_teaches_its_base(head: str) -> None:
    config = dict(model=tiny('retinanet', type=head))
    student = build(tiny_distilled(dict(config=config, checkpoint=None), bckd, tiny('retinanet')))
    student.eval()  # batch norm by its statistics, as the teacher's
    far = losses(student, batch())
    student.load_state_dict(student.teacher._model.state_dict(), strict=False)
    close = losses(student, batch())
    for name in bckd:
        assert close[f'loss_{name}'].abs() < 1e-3 * far[f'loss_{name}']
