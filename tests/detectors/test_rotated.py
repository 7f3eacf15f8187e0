"""Students over MMRotate's configs: stock in everything but what the distillers add."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine import Config, ConfigDict
from mmengine.hub import get_config
from mmengine.structures import InstanceData
from torch import nn

from ld_plugin import ConfigError, recipes
from ld_plugin.dense.outputs import level_rows
from ld_plugin.detectors import model_config
from ld_plugin.packages import how_to_install_mmrotate
from tests.dense.heads import rotated
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


@pytest.mark.parametrize(
    ('family', 'kind'),
    [
        ('rotated_retinanet', 'SingleStage'),
        ('oriented_rcnn', 'TwoStage'),
        ('s2anet', 'RefineSingleStage'),
    ],
)
def test_detectors_are_found_without_their_package(family: str, kind: str) -> None:
    model = distilled(recipes.fitnet, teacher=tiny(family), student=family)
    model.type = f'Distilled{kind}Detector'
    assert type(build_rotated(model)).__name__ == model.type


LINES = """
_base_ = 'mmrotate::{name}'
from ld_plugin.recipes import {recipe}

custom_imports = dict(imports=['ld_plugin'], allow_failed_imports=False)
model = dict(
    type='mmdet.Distilled{kind}Detector',
    teacher=dict(config='mmrotate::{name}', checkpoint=None),
    distillers={recipe},
)
"""


@pytest.mark.parametrize(
    ('name', 'kind', 'recipe'),
    [
        ('rotated_atss/rotated-atss-le90_r50_fpn_1x_dota.py', 'SingleStage', 'bckd'),
        ('roi_trans/roi-trans-oc_r50_fpn_1x_dota.py', 'TwoStage', 'defeat_two_stage'),
        ('r3det/r3det-oc_r50_fpn_1x_dota.py', 'RefineSingleStage', 'pkd'),
    ],
)
def test_a_few_lines_over_a_stock_config(name: str, kind: str, recipe: str, tmp_path: Path) -> None:
    (tmp_path / 'mine.py').write_text(LINES.format(name=name, kind=kind, recipe=recipe))
    config, stock = Config.fromfile(tmp_path / 'mine.py'), get_config(f'mmrotate::{name}')
    added = dict(teacher=config.model.teacher, distillers=config.model.distillers)
    config.model.pop('_scope_')  # mmengine's, where a base belongs to another package
    assert config.model == dict(stock.model, type=f'mmdet.Distilled{kind}Detector', **added)
    with scope(STUDENT):
        student, plain = build(config.model), build(stock.model)
    ours = {key for key in student.state_dict() if not key.startswith('distillers.')}
    assert ours == set(plain.state_dict())


@pytest.mark.parametrize('student', ['rotated_retinanet', 'rotated_atss'])
def test_ignored_objects_teach_no_classes(student: str) -> None:
    model = distilled(recipes.bckd, student=student, teacher=tiny(student))
    model.train_cfg.assigner.ignore_iof_thr = 0.5
    model, batch = build_rotated(model), data()
    for sample in batch['data_samples']:
        sample.ignored_instances = InstanceData(
            bboxes=rotated(torch.tensor([[60.0, 50, 90, 70, 0.3]])), labels=torch.tensor([0])
        )
    inputs = model.data_preprocessor(batch, training=True)
    context = model.observe(inputs['inputs'], inputs['data_samples'])[1]
    assigned = context.assignment
    ignored = assigned.valid & (assigned.label_weights == 0)
    assert ignored.any(1).all()
    maps = context.student.class_maps
    found = torch.autograd.grad(model.distillers['bckd_cls'](context), maps)
    anchors = context.student.spec.num_base_priors[0]
    gradient = torch.cat([level_rows(level, anchors) for level in found], dim=1)
    assert not gradient[ignored].any()
    assert gradient[assigned.valid & ~ignored].all()


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


def test_angle_versions_of_distributions_differ() -> None:
    family = 'distribution_rotated_fcos'
    other = tiny(family)
    other.bbox_head.bbox_coder.angle_version = 'oc'
    found = message(recipes.rotated_ld_gwd, other, family)
    assert found.startswith('model.distillers.ld: angle versions (bbox_head.bbox_coder.angle_v')


def test_qualities_of_horizontal_boxes_are_refused() -> None:
    model = distilled(dict(rating=dict(type='QualityDistiller')), student='rotated_fcos')
    model.teacher = dict(config=dict(model=tiny('fcos')), checkpoint=None)
    with (
        scope(STUDENT),
        pytest.raises(ConfigError, match=r'^model\.distillers\.rating: kinds of b'),
    ):
        build(model)


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
    with pytest.raises(ConfigError, match=re.escape(f'Install it ({how_to_install_mmrotate()})')):
        model_config.read_config(name)
    with pytest.raises(
        ConfigError, match=r"config\.default_scope: found 'mmrotate', .*\[rotated\]"
    ):
        model_config.read_config(dict(model=tiny(STUDENT), default_scope='mmrotate'))


def test_a_rotated_teacher_has_only_features_for_a_horizontal_student() -> None:
    model = tiny_distilled(distilled().teacher, recipes.bckd, tiny('retinanet'))
    with pytest.raises(ConfigError, match=r'student horizontal, teacher rotated.*features alone'):
        build(model)
    model.distillers = recipes.pkd
    build(model)


WITHOUT_MMROTATE = """
import sys
sys.modules['mmrotate'] = None  # as if it were not installed
from mmdet.registry import MODELS
from ld_plugin import ConfigError
from ld_plugin.detectors.model_config import read_file
for head in ('DistributionRotatedRetinaHead', 'DistributionRotatedFCOSHead'):
    try:
        MODELS.build(dict(type=head, num_classes=3))
    except ConfigError as error:
        print(error)
for path in sys.argv[1:]:
    try:
        read_file(path)
    except ConfigError as error:
        print(error)
"""


def test_without_mmrotate_configs_say_what_to_install(tmp_path: Path) -> None:
    path = tmp_path / 'mine.py'
    path.write_text("_base_ = 'mmrotate::rotated_atss/rotated-atss-le90_r50_fpn_1x_dota.py'")
    dumped = tmp_path / 'dumped.py'
    dumped.write_text("default_scope = 'mmrotate'")
    command = [sys.executable, '-W', 'ignore', '-c', WITHOUT_MMROTATE, str(path), str(dumped)]
    root = Path(__file__).parents[2]
    said = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    install = f'Install it ({how_to_install_mmrotate()}).'
    *heads, base, whole = [line for line in said.splitlines() if line.endswith(install)]
    assert [line.split(', ')[0] for line in heads] == [
        'model.bbox_head.type: found DistributionRotatedRetinaHead',
        'model.bbox_head.type: found DistributionRotatedFCOSHead',
    ]
    assert base.startswith(f'_base_ of {path}: found a config of mmrotate, which is not installed')
    assert whole.startswith(f"default_scope of {dumped}: found 'mmrotate', which is not installed")


def test_other_missing_packages_are_named_as_ever(tmp_path: Path) -> None:
    (tmp_path / 'mine.py').write_text("_base_ = 'mmyolo::yolov8/yolov8_s.py'")
    with pytest.raises(ConfigError, match='needs what cannot be imported: mmyolo is not installed'):
        model_config.read_file(tmp_path / 'mine.py')


@pytest.mark.parametrize('family', ['distribution_rotated_retinanet', 'distribution_rotated_fcos'])
def test_bins_lie_elsewhere(family: str) -> None:
    found = message(recipes.rotated_ld_gwd, tiny(family, angle_range=(-2, 2)), family)
    assert 'first and last bins (bbox_head.delta_range, bbox_head.angle_range) differ' in found


@pytest.mark.parametrize(
    ('part', 'changes'),
    [
        ('bbox_coder', dict(edge_swap=False)),
        ('bbox_coder', dict(proj_xy=False)),
        ('bbox_coder', dict(norm_factor=2)),
        ('bbox_coder', dict(target_means=(0.0, 0.0, 0.0, 0.0, 0.1))),
        ('bbox_coder', dict(target_stds=(0.1, 0.1, 0.2, 0.2, 0.1))),
        ('anchor_generator', dict(angle_version=None)),
    ],
    ids=str,
)
def test_offsets_are_encoded_otherwise(part: str, changes: dict) -> None:
    """Two stock configs of one angle version may differ in the coder, and the bins with it."""
    family = 'distribution_rotated_retinanet'
    teacher = tiny(family)
    teacher.bbox_head[part].update(changes)
    found = message(recipes.rotated_ld_gwd, teacher, family)
    assert found.startswith('model.distillers.ld: codings of the offsets (bbox_head.bbox_coder, ')
    build_rotated(distilled(recipes.bckd, teacher, family))


@pytest.mark.parametrize(
    ('family', 'head'),
    [('rotated_atss', 'DistributionATSSHead'), ('rotated_retinanet', 'DistributionRetinaHead')],
)
def test_a_head_with_distributions_of_horizontal_boxes(family: str, head: str) -> None:
    student = tiny(family, type=f'mmdet.{head}')
    model = tiny_distilled(distilled().teacher, recipes.ld_full, student)
    with scope(STUDENT), pytest.raises(ConfigError) as caught:
        build(model)
    assert str(caught.value).startswith(
        'model.bbox_head.bbox_coder: found DeltaXYWHTRBBoxCoder, a coder of rotated boxes, but '
        f'{head} predicts horizontal ones. '
    )


def test_losses_that_do_not_compare_rotated_boxes() -> None:
    for name in ('GIoULoss', 'SIoULoss'):
        iou = dict(type='BoxDistiller', loss=dict(type=name))
        expected = f'model.distillers.x.loss: found {name}, which compares horiz'
        assert expected in message(dict(x=iou))
    cross = dict(type='CrossHeadDistiller', layer=1, box_loss=dict(type='GIoULoss'))
    assert 'model.distillers.x.box_loss: found GIoULoss' in message(dict(x=cross))
    for name in ('KFLoss', 'mmdet.GHMR'):
        offsets = dict(type='BoxDistiller', loss=dict(type=name))
        expected = f'found {name.removeprefix("mmdet.")}, which compares encoded'
        assert f'model.distillers.x.loss: {expected}' in message(dict(x=offsets))
    wrong = dict(type='BoxDistiller', loss=dict(type='BoxLoss', rotated='ciou'))
    assert "model.distillers.x.loss.rotated: found 'ciou', expected one of" in message(
        dict(x=wrong)
    )


@pytest.mark.parametrize('name', ['GDLoss', 'mmrotate.GDLoss'])
def test_losses_of_mmrotate_have_either_name(name: str) -> None:
    """MMRotate's configs write theirs without the package."""
    loss = dict(type=name, loss_type='gwd')
    for distiller in (
        dict(type='BoxDistiller', loss=loss),
        dict(type='CrossHeadDistiller', layer=1, box_loss=loss),
    ):
        model = build_rotated(distilled(dict(x=distiller)))
        assert losses(model, data())['loss_x'] > 0


@pytest.mark.parametrize('loss', [dict(type='mmrotate.GDLoss', loss_type='gwd'), None], ids=str)
def test_losses_of_rotated_boxes(loss: dict | None) -> None:
    loss = loss or dict(type='BoxLoss', rotated='gwd')
    model = build_rotated(distilled(dict(x=dict(type='BoxDistiller', loss=loss))))
    assert losses(model, data())['loss_x'] > 0
