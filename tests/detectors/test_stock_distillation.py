"""MMDetection's own localization distillation: the loss is the same, and its students teach."""

from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine import Config, ConfigDict
from torch import nn

from ld_plugin import ConfigError
from ld_plugin.recipes import ld_main, pkd
from tests.families import tiny
from tests.models import batch, build, losses, tiny_distilled, tiny_gfl

SHAPES, OBJECTS = ((128, 160), (96, 128), (128, 128), (64, 96)), (5, 3, 2, 4)


def ld_head() -> dict:
    stock_loss = dict(type='KnowledgeDistillationKLDivLoss', loss_weight=0.25, T=10)
    return dict(type='LDHead', loss_ld=stock_loss)


def stock_student(teacher: dict) -> ConfigDict:
    """The ``model`` of MMDetection's detector."""
    model = tiny_gfl(**ld_head())
    model.type = 'KnowledgeDistillationSingleStageDetector'
    model.update(teacher_config=teacher['config'], teacher_ckpt=teacher['checkpoint'])
    return model


def build_stock(model: ConfigDict) -> nn.Module:
    torch.manual_seed(1)
    built = MODELS.build(model)
    built.train()  # which returns nothing
    return built


@pytest.fixture
def teacher(tmp_path: Path) -> dict[str, str]:
    """Config and checkpoint of a trained GFL."""
    found = dict(config=str(tmp_path / 'teacher.py'), checkpoint=str(tmp_path / 'teacher.pth'))
    Config(dict(model=tiny_gfl())).dump(found['config'])
    torch.save(dict(state_dict=build(tiny_gfl(), seed=3).state_dict()), found['checkpoint'])
    return found


@pytest.mark.parametrize('images', [1, 2, 3, 4])
def test_the_loss_is_the_same_at_three_images_and_grows_with_them_there(
    images: int, teacher: dict[str, str]
) -> None:
    theirs = build_stock(stock_student(teacher))
    data = batch(SHAPES[:images], OBJECTS[:images])
    expected = losses(theirs, data)
    for reference_images, factor in ((None, 3 / images), (images, 1)):
        distillers = dict(ld=dict(ld_main['ld'], reference_images=reference_images))
        ours = build(tiny_distilled(teacher, distillers))
        ours.load_state_dict(theirs.state_dict(), strict=True)
        found = losses(ours, data)
        expect = dict(expected, loss_ld=factor * sum(expected['loss_ld']))
        for name, value in expect.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_its_students_teach(teacher: dict[str, str], tmp_path: Path) -> None:
    """Without the teacher that they had, which may be gone."""
    theirs = build_stock(stock_student(teacher))
    torch.save(dict(state_dict=theirs.state_dict()), tmp_path / 'student.pth')
    model = stock_student(teacher)
    model.teacher_ckpt = str(tmp_path / 'gone.pth')
    config = dict(config=dict(model=model), checkpoint=str(tmp_path / 'student.pth'))
    ours = build(tiny_distilled(config, ld_main | pkd))
    assert type(ours.teacher._model.bbox_head).__name__ == 'LDHead'
    apart = losses(ours, batch())
    ours.load_state_dict(theirs.state_dict())
    ours.eval()  # batch norm by its statistics, as the teacher's
    close = losses(ours, batch())
    for name in ('loss_ld', 'loss_pkd'):
        assert close[name].abs() < 1e-3 * apart[name]


def refusal(model: ConfigDict) -> str:
    with pytest.raises(ConfigError) as error:
        build(model)
    return str(error.value)


def test_its_detector_is_said_otherwise(teacher: dict[str, str]) -> None:
    model = tiny_distilled(teacher, ld_main, stock_student(teacher))
    found = refusal(model)
    assert found.startswith('model: found teacher_ckpt, teacher_config; expected the parts of a ')
    assert found.endswith('teacher=dict(config=teacher_config, checkpoint=teacher_ckpt).')


@pytest.mark.parametrize(
    ('family', 'head', 'taken', 'base'),
    [
        ('gfl', ld_head(), 'out_teacher', 'GFLHead'),
        ('paa', dict(type='LADHead'), 'label_assignment_results', 'PAAHead'),
    ],
)
@pytest.mark.parametrize('distillers', [ld_main, pkd])
def test_its_heads_are_refused(
    family: str, head: dict, taken: str, base: str, distillers: dict
) -> None:
    found = refusal(tiny_distilled(distillers=distillers, student=tiny(family, **head)))
    assert found.startswith(
        f'model.bbox_head.type: found {head["type"]}, whose loss takes x, {taken}, batch_data_samp'
    )
    assert found.endswith(f'Expected a head of a plain single-stage detector: {base}.')
