"""Students over MMRotate's configs: stock in everything but what the distillers add."""

from typing import Any

import pytest
import torch
from mmengine import ConfigDict
from torch import nn

from ld_plugin import ConfigError, recipes
from ld_plugin.detectors import model_config
from tests.families import scope, tiny
from tests.models import batch, build, losses, rotate, tiny_distilled

pytest.importorskip('mmrotate')

SHAPES = ((128, 128), (96, 128))
STUDENT = 'rotated_retinanet'


def data(objects: tuple[int, int] = (3, 2)) -> dict[str, list]:
    found = batch(SHAPES, objects)
    rotate(found)
    return found


def distilled(
    distillers: dict = recipes.bckd, teacher: ConfigDict | None = None, student: str = STUDENT
) -> ConfigDict:
    """The ``model`` of a config whose default scope is MMRotate's."""
    config = dict(model=teacher or tiny(student), default_scope='mmrotate')
    model = tiny_distilled(dict(config=config, checkpoint=None), distillers, tiny(student))
    model.type = 'mmdet.DistilledSingleStageDetector'
    return model


def build_rotated(model: ConfigDict, seed: int = 0) -> nn.Module:
    with scope(STUDENT):
        return build(model, seed)


def message(*args: Any, **kwargs: Any) -> str:
    """What building says."""
    with pytest.raises(ConfigError) as caught:
        build_rotated(distilled(*args, **kwargs))
    return str(caught.value)


@pytest.fixture
def pair() -> tuple[nn.Module, nn.Module]:
    """A stock detector, and a distilled one with the same weights."""
    stock, student = build_rotated(tiny(STUDENT), seed=1), build_rotated(distilled(), seed=2)
    student.load_state_dict(stock.state_dict(), strict=True)
    return stock, student


def test_stock_losses_are_bit_identical(pair: tuple[nn.Module, nn.Module]) -> None:
    stock, student = (losses(model, data()) for model in pair)
    assert set(student) == {*stock, 'loss_bckd_cls', 'loss_bckd_box'}
    for name, levels in stock.items():
        for expected, found in zip(levels, student[name], strict=True):
            assert torch.equal(expected, found), name
    assert all(student[f'loss_{name}'] > 0 for name in recipes.bckd)


def test_predictions_are_bit_identical(pair: tuple[nn.Module, nn.Module]) -> None:
    results = []
    for model in pair:
        inputs = model.data_preprocessor(data(), training=False)
        with torch.no_grad():
            results.append(model.eval()(**inputs, mode='predict'))
    for stock, student in zip(*results, strict=True):
        assert torch.equal(stock.pred_instances.bboxes, student.pred_instances.bboxes)
        assert torch.equal(stock.pred_instances.scores, student.pred_instances.scores)


@pytest.mark.parametrize('recipe', ['rotated_ld_gwd', 'rotated_ld_kld'])
@pytest.mark.parametrize('objects', [(3, 2), (0, 0)], ids=str)
def test_rotated_localization_distillation(recipe: str, objects: tuple[int, int]) -> None:
    distillers = getattr(recipes, recipe)
    model = build_rotated(distilled(distillers, student='distribution_rotated_retinanet_gwd'))
    found = losses(model, data(objects))
    total = sum(found[f'loss_{name}'] for name in distillers)
    assert (total > 0) == (sum(objects) > 0)
    total.backward()
    gradient = model.bbox_head.retina_reg.weight.grad
    assert gradient.isfinite().all()
    assert gradient.any() == (sum(objects) > 0)


def test_a_distilled_student_teaches_in_its_turn() -> None:
    model = build_rotated(distilled(recipes.fitnet, teacher=distilled(recipes.fitnet)))
    assert losses(model, data())['loss_im'] > 0


def test_an_object_at_the_border_and_a_long_thin_one() -> None:
    distillers = recipes.bckd | recipes.rm_pfi
    model, found = build_rotated(distilled(distillers)), data()
    boxes = found['data_samples'][0].gt_instances.bboxes.tensor
    boxes[0, :4] = torch.tensor([0.0, 60, 90, 20])
    boxes[1, 2:4] = torch.tensor([120, 0.5])
    found = losses(model, found)
    assert all(found[f'loss_{name}'].isfinite() for name in distillers)


# ------------------------------------------------------------------------------------ bad input


def test_angle_versions_differ() -> None:
    other = tiny('rotated_retinanet_hbox')
    assert message(teacher=other).startswith(
        'model.distillers.bckd_box: angle versions (bbox_head.bbox_coder.angle_version) differ: '
        'student le90, teacher oc, expected the same. Set angle_version'
    )
    build_rotated(distilled(recipes.fitnet, teacher=other))


def test_a_horizontal_teacher_has_only_features() -> None:
    teacher = dict(config='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', checkpoint=None)
    model = distilled()
    model.teacher = teacher
    with (
        scope(STUDENT),
        pytest.raises(ConfigError, match=r'kinds of boxes differ.*rotated.*features alone'),
    ):
        build(model)
    model.distillers = recipes.pkd
    build_rotated(model)


def test_mmrotate_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_config, 'is_installed', lambda name: name != 'mmrotate')
    name = 'mmrotate::rotated_retinanet/rotated-retinanet-rbox-le90_r50_fpn_1x_dota.py'
    with pytest.raises(ConfigError, match=r"Install it \(pip install 'mmdet-ld-plugin\[rotated\]"):
        model_config.read_config(name)


def test_bins_lie_elsewhere() -> None:
    family = 'distribution_rotated_retinanet'
    found = message(recipes.rotated_ld_gwd, tiny(family, angle_range=(-2, 2)), family)
    assert 'first and last bins (bbox_head.delta_range, bbox_head.angle_range) differ' in found


def test_a_loss_of_horizontal_boxes() -> None:
    giou = dict(type='BoxDistiller', loss=dict(type='GIoULoss'))
    assert 'model.distillers.x.loss: found GIoULoss, which compares horiz' in message(dict(x=giou))
    cross = dict(type='CrossHeadDistiller', layer=1, box_loss=dict(type='GIoULoss'))
    assert 'model.distillers.x.box_loss: found GIoULoss' in message(dict(x=cross))
    wrong = dict(type='BoxDistiller', loss=dict(type='BoxLoss', rotated='ciou'))
    assert "model.distillers.x.loss.rotated: found 'ciou', expected one of" in message(
        dict(x=wrong)
    )


@pytest.mark.parametrize('loss', [dict(type='mmrotate.GDLoss', loss_type='gwd'), None], ids=str)
def test_losses_of_rotated_boxes(loss: dict | None) -> None:
    loss = loss or dict(type='BoxLoss', rotated='gwd')
    model = build_rotated(distilled(dict(x=dict(type='BoxDistiller', loss=loss))))
    assert losses(model, data())['loss_x'] > 0
