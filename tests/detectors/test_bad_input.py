"""Mistakes in a config are found when the model is built; messages say where and what to do."""

import re
import subprocess
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config
from mmengine.logging import MessageHub
from mmengine.registry import RUNNERS

from ld_plugin import ConfigError
from ld_plugin.data_check import training_classes
from ld_plugin.dense import get_reader, register_reader
from ld_plugin.dense.readers import GFLReader
from ld_plugin.dense.readers import base as readers
from ld_plugin.distillers import ClassificationDistiller, build_distillers
from ld_plugin.distillers.schedules import ConstantSchedule
from ld_plugin.errors import NonFiniteTeacherError
from ld_plugin.launch import build_runner
from ld_plugin.losses import DistributionKLLoss
from ld_plugin.recipes import imitation_everywhere, ld_full, ld_kd, ld_main, pkd
from tests import needs
from tests.families import tiny
from tests.models import GFL, batch, build, losses, tiny_distilled, tiny_gfl, tiny_runner

ROOT = Path(__file__).resolve().parents[2]

LD, KL = 'LocalizationDistiller', 'DistributionKLLoss'
AT = 'model.distillers.ld'


def message(make: Callable[[], Any]) -> str:
    """What building says."""
    with pytest.raises(ConfigError) as error:
        make()
    return str(error.value)


def said(distiller: Any) -> str:
    """What building a student with this distiller says."""
    return message(lambda: build(tiny_distilled(distillers=dict(ld=distiller))))


def with_teacher(model: Any, distillers: Any = ld_main, student: Any = None) -> str:
    teacher = dict(config=dict(model=model), checkpoint=None)
    return message(lambda: build(tiny_distilled(teacher, distillers, student)))


@pytest.mark.parametrize(
    ('cfg', 'start', 'hint'),
    [
        (dict(type='LocalisationDistiller'), f'{AT}.type: ', LD),
        (dict(type=LD, region=dict(type='MainRegon')), f'{AT}.region.type: ', 'MainRegion'),
        (dict(type=LD, loss=dict(type='DistributionKL')), f'{AT}.loss.type: ', KL),
        (
            dict(type=LD, schedule=dict(type='LinearDecay')),
            f'{AT}.schedule.type: ',
            'LinearDecaySchedule',
        ),
    ],
)
def test_unknown_name_and_the_closest_known_one(cfg: dict, start: str, hint: str) -> None:
    found = said(cfg)
    assert found.startswith(start)
    assert f'Did you mean {hint!r}?' in found
    assert 'Registered: ' in found
    assert 'custom_imports' in found


@pytest.mark.parametrize(
    'distiller, loss, base, registered',
    [
        (LD, 'RankKLLoss', 'DistillationLoss', [KL, 'FeatureMSELoss']),
        ('RankDistiller', KL, 'RankKLLoss', ['RankKLLoss']),
        ('DecoupledClassificationDistiller', 'BinaryKDLoss', 'DecoupledLoss', ['DecoupledLoss']),
    ],
)
def test_loss_of_something_else(
    distiller: str, loss: str, base: str, registered: list[str]
) -> None:
    found = with_teacher(tiny_gfl(), dict(ld=dict(type=distiller, loss=dict(type=loss))))
    start, names = found.rstrip('.').split(' Registered: ')
    assert start == (
        f'{AT}.loss: found {loss}, which does not compare what {distiller} reads, expected one '
        f'derived from {base}.'
    )
    assert set(registered) <= set(names.split(', '))
    assert loss not in names.split(', ')


class NoDefaults(ClassificationDistiller):
    """A user's own, which leaves every part to the config."""

    defaults: ClassVar = {}


def test_wrong_loss_of_a_distiller_without_a_default() -> None:
    region, loss = dict(type='MainRegion'), dict(type='RankKLLoss')
    found = said(dict(type=NoDefaults, region=region, loss=loss))
    assert found.startswith(f'{AT}.loss: found RankKLLoss, which does not compare what NoDefaults ')


def test_a_class_in_place_of_its_name_has_its_defaults() -> None:
    """As a config in pure Python gives it."""
    kinds = ClassificationDistiller, 'ClassificationDistiller'
    found, expected = (
        losses(build(tiny_distilled(distillers=dict(kd=dict(type=kind)))), batch())
        for kind in kinds
    )
    assert found['loss_kd'] == expected['loss_kd'] > 0


@pytest.mark.parametrize(
    ('cfg', 'expected'),
    [
        (dict(type=LD, temperature=3), f'{AT}: {LD} cannot be built: got an unexpected keyword'),
        (
            dict(type=LD, loss=dict(type=KL, tau=3)),
            f"{AT}.loss: {KL} cannot be built: got an unexpected keyword argument 'tau'. It "
            'accepts: temperature, loss_weight, class_reduction.',
        ),
        (
            dict(type=LD, schedule=dict(type='LinearWarmupSchedule')),
            f'{AT}.schedule: LinearWarmupSchedule cannot be built: missing a required argument: '
            "'iters'. It accepts: iters, start.",
        ),
        (dict(region=dict(type='MainRegion')), f"{AT}: expected a dict with a 'type', found "),
        (dict(type=LD, loss=dict(temperature=3)), f"{AT}.loss: expected a dict with a 'type', "),
        (dict(type=LD, region='MainRegion'), f"{AT}.region: expected a dict with a 'type', found "),
        (LD, f"{AT}: expected a dict with a 'type', found 'LocalizationDistiller'"),
        (dict(type=LD, loss=dict(type=3)), f'{AT}.loss.type: found 3, expected a name or a class'),
        (
            dict(type=LD, loss=dict(type=KL, temperature='10')),
            f"{AT}.loss.temperature: found '10', expected a finite number above 0",
        ),
    ],
)
def test_wrong_arguments(cfg: Any, expected: str) -> None:
    found = said(cfg)
    assert found.startswith(expected)
    assert ('inherited' in found) == ('unexpected keyword' in found)


@pytest.mark.parametrize('error', [AssertionError, TypeError, ValueError])
def test_values_that_a_class_of_ones_own_refuses(error: type[Exception]) -> None:
    class OwnLoss(DistributionKLLoss):
        def __init__(self, window: int) -> None:
            raise error('an odd window')

    found = said(dict(type=LD, loss=dict(type=OwnLoss, window=2)))
    assert found.startswith(f'{AT}.loss: OwnLoss cannot be built from {{')
    assert found.endswith('}: an odd window.')


def test_programs_that_do_not_know_the_plugin_catch_its_errors() -> None:
    assert issubclass(ConfigError, ValueError)
    assert issubclass(NonFiniteTeacherError, RuntimeError)


def test_arguments_of_an_inherited_part_of_another_type() -> None:
    """A config, or a command line, that overrides a type alone has not named these arguments."""
    config = Config(
        dict(kd=dict(type='ClassificationDistiller', loss=dict(type=KL, temperature=2)))
    )
    config.merge_from_dict({'kd.loss.type': 'BinaryKDLoss'})
    assert said(config.kd) == (
        f'{AT}.loss: BinaryKDLoss cannot be built: got an unexpected keyword argument '
        "'temperature'. It accepts: beta, loss_weight. If it is left of an inherited part of "
        "another type, set _delete_=True beside the new 'type'."
    )
    config.merge_from_dict({'kd.loss.type': 'BinaryKDLoss', 'kd.loss._delete_': True})
    build(tiny_distilled(distillers=dict(kd=config.kd)))


def test_delete_beside_what_replaces_nothing_inherited() -> None:
    """Which other messages advise where something is; mmengine leaves it in the config here."""
    config = Config(dict(distillers=dict()))
    loss = dict(type='BinaryKDLoss', _delete_=True)
    config.merge_from_dict(
        dict(distillers=dict(kd=dict(type='ClassificationDistiller', loss=loss)))
    )
    assert said(config.distillers.kd) == (
        f'{AT}.loss: BinaryKDLoss cannot be built: got an unexpected keyword argument '
        "'_delete_'. It accepts: beta, loss_weight. Nothing is inherited in its place: leave "
        '_delete_ out.'
    )


@pytest.mark.parametrize(
    ('part', 'cfg', 'expected'),
    [
        (
            'loss',
            dict(type=KL, temperature=0),
            'temperature: found 0, expected a finite number above 0',
        ),
        (
            'loss',
            dict(type=KL, temperature=-2),
            'temperature: found -2, expected a finite number above 0',
        ),
        (
            'loss',
            dict(type=KL, loss_weight=-1),
            'loss_weight: found -1, expected a finite number of at least 0',
        ),
        (
            'loss',
            dict(type=KL, temperature=float('inf')),
            'temperature: found inf, expected a finite number above 0',
        ),
        (
            'loss',
            dict(type='FeatureMSELoss', loss_weight=-0.5),
            'loss_weight: found -0.5, expected a finite number of at least 0',
        ),
        (
            'loss',
            dict(type=KL, loss_weight=True),
            'loss_weight: found True, expected a finite number of at least 0',
        ),
        (
            'region',
            dict(type='ValuableLocalizationRegion', alpha=0),
            'alpha: found 0, expected a number between 0 and 1',
        ),
        (
            'region',
            dict(type='ValuableLocalizationRegion', alpha=1),
            'alpha: found 1, expected a number between 0 and 1',
        ),
        (
            'region',
            dict(type='ValuableLocalizationRegion', topk=1),
            'topk: found 1, expected an integer of at least 2',
        ),
        (
            'region',
            dict(type='ValuableLocalizationRegion', topk=9.5),
            'topk: found 9.5, expected an integer of at least 2',
        ),
        (
            'region',
            dict(type='OverlapRegion', topk=9.5),
            'topk: found 9.5, expected an integer of at least 2',
        ),
        (
            'region',
            dict(type='ValuableLocalizationRegion', overlap='giou'),
            "overlap: found 'giou', expected one of ('iof', 'diou')",
        ),
        (
            'region',
            dict(type='FineGrainedRegion', share=1.5),
            'share: found 1.5, expected a number between 0 and 1',
        ),
        (
            'region',
            dict(type='FineGrainedRegion', share='0.5'),
            "share: found '0.5', expected a number between 0 and 1",
        ),
        (
            'region',
            dict(type='GIRegion', topk=0),
            'topk: found 0, expected an integer of at least 1',
        ),
        (
            'region',
            dict(type='GIRegion', topk=2.5),
            'topk: found 2.5, expected an integer of at least 1',
        ),
        (
            'region',
            dict(type='GIRegion', iou_threshold=0),
            'iou_threshold: found 0, expected a number between 0 and 1',
        ),
        (
            'region',
            dict(type='GIRegion', scope='level'),
            "scope: found 'level', expected one of ('image', 'batch')",
        ),
        (
            'region',
            dict(type='GIRegion', topk=True),
            'topk: found True, expected an integer of at least 1',
        ),
        (
            'region',
            dict(type='EverywhereRegion', exclude_positives='no'),
            "exclude_positives: found 'no', expected True or False",
        ),
        (
            'region',
            dict(type='ValuableLocalizationRegion', exclude_positives='no'),
            "exclude_positives: found 'no', expected True or False",
        ),
        (
            'region',
            dict(type='OverlapRegion', rotated=1),
            'rotated: found 1, expected True or False',
        ),
        (
            'region',
            dict(type='FineGrainedRegion', rotated='no'),
            "rotated: found 'no', expected True or False",
        ),
        (
            'schedule',
            dict(type='ConstantSchedule', value=-1),
            'value: found -1, expected a finite number of at least 0',
        ),
        (
            'schedule',
            dict(type='ConstantSchedule', value=float('nan')),
            'value: found nan, expected a finite number of at least 0',
        ),
        (
            'schedule',
            dict(type='LinearDecaySchedule', end=-0.1),
            'end: found -0.1, expected a finite number of at least 0',
        ),
        (
            'schedule',
            dict(type='LinearDecaySchedule', start=-1),
            'start: found -1, expected a finite number of at least 0',
        ),
        (
            'schedule',
            dict(type='LinearWarmupSchedule', iters=0),
            'iters: found 0, expected an integer of at least 1',
        ),
        (
            'schedule',
            dict(type='LinearWarmupSchedule', iters=float('nan')),
            'iters: found nan, expected an integer of at least 1',
        ),
        (
            'schedule',
            dict(type='LinearWarmupSchedule', iters=9, start=-1),
            'start: found -1, expected a finite number of at least 0',
        ),
    ],
)
def test_values_out_of_range(part: str, cfg: dict, expected: str) -> None:
    assert said({'type': LD, part: cfg}).startswith(f'{AT}.{part}.{expected}')


@pytest.mark.parametrize(
    'name',
    [
        LD,
        'ClassificationDistiller',
        'QualityDistiller',
        'PredictionGuidedFeatureDistiller',
        'DecoupledFeatureDistiller',
        'CrossHeadDistiller',
    ],
)
def test_loss_of_whole_maps_where_positions_count_by_themselves(name: str) -> None:
    found = said(dict(type=name, loss=dict(type='PearsonFeatureLoss')))
    assert found.startswith(f'{AT}.loss: found PearsonFeatureLoss, which compares whole maps, but ')


def test_no_schedule_is_a_constant_one() -> None:
    recipe = dict(ld=dict(ld_main['ld'], schedule=None))
    model = build(tiny_distilled(distillers=recipe))
    assert isinstance(model.distillers['ld'].schedule, ConstantSchedule)


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        (dict(divisor=0), 'divisor: found 0, expected a finite number above 0'),
        (dict(divisor=float('nan')), 'divisor: found nan, expected a finite number above 0'),
        (dict(reference_images=-3), 'reference_images: found -3, expected a finite number above 0'),
        (
            dict(divisor=8, normalizer='level_positions'),
            "divisor: found 8 beside normalizer='level_positions', which divides by the region's",
        ),
        (
            dict(reference_images=2, normalizer='level_positions'),
            "reference_images: found 2 beside normalizer='level_positions', which divides by ",
        ),
    ],
)
def test_distillers_own_values_out_of_range(arguments: dict, expected: str) -> None:
    assert said(dict(type=LD, **arguments)).startswith(f'{AT}.{expected}')


@pytest.mark.parametrize('distillers', [{}, [ld_main['ld']], dict(ld=None)])
def test_no_distillers(distillers: Any) -> None:
    model = tiny_distilled()
    model.distillers = distillers
    found = message(lambda: build(model))
    assert found.startswith(
        f'model.distillers: found {distillers}, expected a dict with at least one'
    )
    assert found.endswith('ld_plugin.recipes.ld_full.')


def test_recipe_that_became_its_name() -> None:
    model = tiny_distilled()
    model.distillers = 'ld_plugin.recipes.ld_full'
    assert 'imports recipes inside of `with read_base():`' in message(lambda: build(model))


@pytest.mark.parametrize(
    ('removed', 'start'),
    [
        ('distillers', 'model.distillers: found None, expected a dict'),
        ('teacher', 'model.teacher: found None, expected a dict'),
        ('bbox_head', 'model: found no bbox_head; expected the parts of a plain single-stage'),
        ('backbone', 'model: found no backbone; expected the parts of a plain single-stage'),
    ],
)
def test_missing_part_of_the_model(removed: str, start: str) -> None:
    model = tiny_distilled()
    model.pop(removed)
    assert message(lambda: build(model)).startswith(start)


@pytest.mark.parametrize('stages', ['Single', 'Two'])
def test_semi_supervised_detector(stages: str) -> None:
    model = dict(type=f'Distilled{stages}StageDetector', detector=tiny_gfl(), semi_train_cfg={})
    found = message(lambda: build(model))
    assert re.match(r'model: found .*detector, semi_train_cfg; expected the parts of a ', found)


def test_option_of_another_detector() -> None:
    model = tiny_distilled()
    model.use_syncbn = True
    found = message(lambda: build(model))
    assert found.startswith('model: found use_syncbn; expected the parts of a plain single-stage')
    assert "In place of use_syncbn set sync_bn='torch' in the config itself" in found


@pytest.mark.parametrize('name', ['cls', 'bbox', 'dfl'])
def test_key_that_would_replace_a_stock_loss(name: str) -> None:
    found = message(lambda: build(tiny_distilled(distillers={name: ld_main['ld']})))
    assert found.startswith(f'model.distillers.{name}: the student has a loss named ')
    assert found.endswith('Choose another key.')


@pytest.mark.parametrize(('family', 'name'), [('paa', 'iou'), ('vfnet', 'bbox_rf')])
def test_key_that_would_replace_a_stock_loss_which_no_attribute_names(
    family: str, name: str
) -> None:
    distiller = dict(type='FeatureDistiller')
    teacher = dict(config=dict(model=tiny(family)), checkpoint=None)
    model = build(tiny_distilled(teacher, {name: distiller}, tiny(family)))
    found = message(lambda: losses(model, batch()))
    assert found.startswith(f"model.distillers.{name}: the student has a loss named '")
    assert found.endswith('Choose another key.')


@pytest.mark.parametrize(('name', 'better'), [('loss_mine', 'mine'), ('loss_', 'ld')])
def test_key_with_the_prefix_that_the_log_adds(name: str, better: str) -> None:
    found = message(lambda: build(tiny_distilled(distillers={name: ld_main['ld']})))
    assert found == (
        f'model.distillers.{name}: its loss would be logged as loss_{name}, expected a name '
        f'without loss_, such as {better!r}.'
    )
    build(tiny_distilled(distillers=dict(lossless=ld_main['ld'])))


def test_option_of_a_distiller_whose_name_is_misspelt() -> None:
    option = dict(loss=dict(loss_weight=1))
    found = message(lambda: build(tiny_distilled(distillers=ld_full | dict(ld_vrl=option))))
    assert found == (
        "model.distillers.ld_vrl: expected a dict with a 'type', found "
        f"{option}. Did you mean 'ld_vlr'? There are: ld, ld_vlr, kd."
    )
    found = message(lambda: build(tiny_distilled(distillers=dict(ld_vrl=option))))
    assert found.endswith(f'found {option}. There are: none.')


@pytest.mark.parametrize('name', ['a.b', 'items', 'training', '2nd'])
def test_key_that_cannot_name_a_module(name: str) -> None:
    found = message(lambda: build(tiny_distilled(distillers={name: ld_main['ld']})))
    assert found.startswith(f'model.distillers.{name}: {name!r} cannot name a distiller; choose')


@pytest.mark.parametrize(
    ('teacher', 'expected'),
    [
        ('teacher.py', "model.teacher: found 'teacher.py', expected a dict with ('config', 'check"),
        (dict(config=GFL), 'model.teacher.checkpoint: missing. Give config and checkpoint; '),
        (dict(checkpoint=None), 'model.teacher.config: missing. Give config and checkpoint; '),
        (
            dict(config=GFL, checkpoint=None, ckpt=1),
            "model.teacher.ckpt: unknown key, expected one of ('config', 'checkpoint', ",
        ),
        (
            dict(config=dict(model=tiny_gfl()), checkpoint=None, precision='int8'),
            "model.teacher.precision: found 'int8', expected one of ['fp32', 'bf16', 'fp16']",
        ),
        (
            dict(config=dict(model=tiny_gfl()), checkpoint=None, precision=['fp32']),
            "model.teacher.precision: found ['fp32'], expected one of ",
        ),
        (
            dict(config=dict(model=tiny_gfl()), checkpoint=None, image_scale='2'),
            "model.teacher.image_scale: found '2', expected a finite number above 0.",
        ),
        (
            dict(config=dict(model=tiny_gfl()), checkpoint=None, class_map=['circle']),
            "model.teacher.class_map: found ['circle'], expected a dict from classes of ",
        ),
        (
            dict(config=dict(model=tiny_gfl()), checkpoint=None, classes=('circle', 'square')),
            "model.teacher.classes: found 2 names, ('circle', 'square'), expected 3, one for each ",
        ),
        (
            dict(config=dict(model=tiny_gfl()), checkpoint=None, classes='abc'),
            "model.teacher.classes: found 'abc', expected a list of names.",
        ),
        (
            dict(config=dict(model=tiny_gfl()), checkpoint=None, classes=[]),
            'model.teacher.classes: found [], expected a list of names.',
        ),
        (
            dict(config=dict(model=tiny_gfl()), checkpoint=None, classes=3),
            'model.teacher.classes: found 3, expected a list of names.',
        ),
        (
            dict(config=None, checkpoint=None),
            'model.teacher.config: found a NoneType, expected a stock name such as ',
        ),
        (
            dict(config=Config(dict(model=tiny_gfl())), checkpoint=None),
            "model.teacher.config: found a Config, expected a stock name such as 'mmdet::gfl/",
        ),
        (
            dict(config=dict(model=tiny_gfl()), checkpoint=False),
            'model.teacher.checkpoint: found False, expected a path, a URL, ',
        ),
        (
            dict(config='nothing.py', checkpoint=None),
            "model.teacher.config: found 'nothing.py', but there is no such file (looked in ",
        ),
        (
            dict(config='mmdet::gfl/nothing.py', checkpoint=None),
            "model.teacher.config: found 'mmdet::gfl/nothing.py', which mmengine does not find ",
        ),
        (
            dict(config='ld_plugin::nothing.py', checkpoint=None),
            "model.teacher.config: found 'ld_plugin::nothing.py', but ",
        ),
        (
            dict(config='::nothing.py', checkpoint=None),
            "model.teacher.config: found '::nothing.py', but no package '' is installed. ",
        ),
        (
            dict(config=tiny_gfl(), checkpoint=None),
            'model.teacher.config: found the keys type, data_preprocessor, backbone, neck, '
            "bbox_head, train_cfg, test_cfg without a 'model', expected a whole detector config. ",
        ),
        (
            dict(config=dict(model='GFL'), checkpoint=None),
            "model.teacher.config: found the keys model without a 'model', expected a whole ",
        ),
        (
            dict(config=dict(model=tiny_gfl()), checkpoint='auto'),
            "model.teacher.checkpoint: found 'auto', which needs a stock name such as 'mmdet::gfl/",
        ),
        (
            dict(config=dict(model=tiny_gfl()), checkpoint='nothing.pth'),
            "model.teacher.checkpoint: there is no file 'nothing.pth' (looked in ",
        ),
    ],
)
def test_teacher_that_cannot_be_built(teacher: Any, expected: str) -> None:
    assert message(lambda: build(tiny_distilled(teacher))).startswith(expected)


@pytest.mark.parametrize(
    ('part', 'found'),
    [
        (dict(backbone=dict(type='ResNett')), 'KeyError: .*ResNett is not in the mmdet::model'),
        (
            dict(bbox_head=dict(num_class=3)),
            "TypeError: .* unexpected keyword argument 'num_class'",
        ),
    ],
)
def test_teacher_model_that_cannot_be_built_is_told_from_the_students(
    part: dict, found: str
) -> None:
    config = Config(dict(model=tiny_gfl()))
    config.merge_from_dict(dict(model=part))
    teacher = dict(config=dict(config), checkpoint=None)
    assert re.match(
        rf'model\.teacher\.config: its model cannot be built \({found}',
        message(lambda: build(tiny_distilled(teacher))),
    )


@needs.mmrotate
def test_rotated_teacher_without_its_scope() -> None:
    head = dict(type='RotatedRetinaHead', num_classes=3, in_channels=32)
    teacher = dict(config=dict(model=tiny_gfl() | dict(bbox_head=head)), checkpoint=None)
    assert "needs default_scope='mmrotate'" in message(lambda: build(tiny_distilled(teacher)))


def test_teacher_that_imports_what_is_not_installed(tmp_path: Path) -> None:
    config = tmp_path / 'teacher.py'
    config.write_text("custom_imports = dict(imports=['not_installed'])\nmodel = dict()\n")
    teacher = dict(config=str(config), checkpoint=None)
    found = message(lambda: build(tiny_distilled(teacher)))
    assert found.startswith(f"model.teacher.config: '{config}' needs what cannot be imported: ")
    assert 'not_installed' in found


@pytest.mark.parametrize('checkpoint', [None, 'auto'])
def test_missing_package_is_said_and_not_installed(
    checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def install(*args: Any, **kwargs: Any) -> None:
        raise AssertionError('something was started')

    monkeypatch.setattr(subprocess, 'Popen', install)
    teacher = dict(config='not_installed::gfl/gfl.py', checkpoint=checkpoint)
    assert message(lambda: build(tiny_distilled(teacher))).startswith(
        "model.teacher.config: found 'not_installed::gfl/gfl.py', but no package 'not_installed' "
        'is installed. Install it'
    )


def test_modules_that_a_teachers_dict_imports_are_missing() -> None:
    config = dict(model=tiny_gfl(), custom_imports=dict(imports=['nowhere_at_all']))
    found = message(lambda: build(tiny_distilled(dict(config=config, checkpoint=None))))
    assert found.startswith("model.teacher.config: 'custom_imports' needs what cannot be imported")
    assert 'nowhere_at_all' in found


@pytest.mark.parametrize(
    ('name', 'content', 'reason'),
    [
        ('base.py', "_base_ = 'nothing.py'\n", 'nothing.py'),
        ('open.py', 'model = dict(\n', 'never closed'),
        ('name.py', 'model = dict(type=GFL)\n', "name 'GFL' is not defined"),
        ('open.json', '{', 'Expecting property name'),
        ('twice.py', "_base_ = ['one.py', 'one.py']\n", 'Duplicate key'),
        ('config.txt', 'text', 'py/yml/yaml/json'),
        ('open.yml', 'model: [', 'parsing a flow node'),
        ('scalar.py', "_base_ = 'one.py'\nmodel = dict(a=dict(b=1))\n", 'cannot inherit from base'),
        ('attribute.py', "_base_ = 'one.py'\nmodel = dict(a=_base_.nope)\n", "attribute 'nope'"),
        ('latin.py', b'# \xe9\n', "can't decode byte 0xe9"),
    ],
)
def test_teacher_config_that_cannot_be_read(
    tmp_path: Path, name: str, content: str | bytes, reason: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / 'one.py').write_text('model = dict(a=1)\n')
    found = message(lambda: build(tiny_distilled(dict(config=str(path), checkpoint=None))))
    assert found.startswith(f"model.teacher.config: '{path}', or its _base_, cannot be read as")
    assert reason in found
    assert found.endswith('Correct it, or give another.')


def test_an_import_above_the_base_of_a_teacher(tmp_path: Path) -> None:
    path = tmp_path / 'teacher.py'
    path.write_text("from ld_plugin.recipes import ld_full\n_base_ = 'one.py'\n")
    (tmp_path / 'one.py').write_text('model = dict()\n')
    found = message(lambda: build(tiny_distilled(dict(config=str(path), checkpoint=None))))
    assert found.startswith(f"model.teacher.config: '{path}', or its _base_, cannot be read as")
    assert found.endswith('_base_ must stand before all imports.')


@pytest.mark.parametrize('config', ['mmdet::gfl/nothing.py', 'ld_plugin::ld/nothing.py'])
def test_missing_packaged_config_says_what_to_do(config: str) -> None:
    found = message(lambda: build(tiny_distilled(dict(config=config, checkpoint=None))))
    assert 'Correct the name' in found


def test_missing_checkpoint_of_a_stock_config_is_published() -> None:
    found = message(lambda: build(tiny_distilled(dict(config=GFL, checkpoint='nothing.pth'))))
    assert found.endswith("Correct the path, or set it to 'auto' for the one that mmdet publishes.")


def test_missing_checkpoint_comes_with_the_command_that_trains_it(tmp_path: Path) -> None:
    get_config(GFL).dump(tmp_path / 'teacher.py')
    config = str(tmp_path / 'teacher.py')
    teacher = dict(config=config, checkpoint='work_dirs/teacher/epoch_12.pth')
    found = message(lambda: build(tiny_distilled(teacher)))
    assert found.endswith(f'Train it: mim train mmdet-ld-plugin {config}')


@pytest.fixture(scope='module')
def two_stage() -> Any:
    model = get_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py').model
    model.backbone.update(depth=18, init_cfg=None)
    model.neck.in_channels = [64, 128, 256, 512]
    return model


def test_two_stage_student(two_stage: Any) -> None:
    found = message(lambda: build(tiny_distilled(student=two_stage)))
    assert found.startswith(
        'model: found no bbox_head, roi_head, rpn_head; expected the parts of a plain single'
    )
    assert 'mmdet::gfl/gfl_r50_fpn_1x_coco.py' in found


def test_two_stage_teacher(two_stage: Any) -> None:
    found = with_teacher(two_stage)
    assert found.startswith(
        "model.distillers.ld: the teacher's head RPNHead of a detector of two stages has no "
    )
    assert 'It offers features;' in found


@pytest.fixture
def reader_without_distributions(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As long as the test runs, GFL counts as a head that predicts boxes directly."""
    monkeypatch.setattr(readers, '_READERS', dict(readers._READERS))

    @register_reader('GFLHead')
    class DirectReader(GFLReader):
        has_distributions = False

        @property
        def spec(self) -> Any:
            return replace(super().spec, num_bins=None)

    @register_reader('HeadWithDistributions')
    class Other(GFLReader):
        pass

    return


@pytest.mark.usefixtures('reader_without_distributions')
def test_localization_distillation_of_a_head_without_distributions() -> None:
    found = said(dict(type=LD))
    assert found.startswith(
        f"{AT}: the student's head GFLHead predicts boxes without distributions"
    )
    listed = found.split('Heads that have them: ')[1]
    assert 'HeadWithDistributions' in listed
    assert 'GFLHead' not in listed


@pytest.mark.usefixtures('reader_without_distributions')
def test_class_scores_of_a_head_without_distributions_can_be_distilled() -> None:
    model = build(tiny_distilled(distillers=dict(kd=ld_kd['kd'])))
    assert losses(model, batch())['loss_kd'] > 0


def test_other_number_of_classes() -> None:
    assert with_teacher(tiny_gfl(num_classes=5)).startswith(
        f'{AT}: number of classes (bbox_head.num_classes) differ: student 3, teacher 5, expected '
        "the same. The names of the teacher's classes are not known: "
        "give them in model.teacher.classes, or choose a teacher that was trained on the student's;"
    )


def test_features_can_be_distilled_from_other_classes() -> None:
    teacher = dict(config=dict(model=tiny_gfl(num_classes=5)), checkpoint=None)
    model = build(tiny_distilled(teacher, imitation_everywhere))
    assert losses(model, batch())['loss_im'] > 0


def test_region_that_reads_class_scores_needs_equal_classes() -> None:
    gi = dict(im=dict(type='FeatureDistiller', region=dict(type='GIRegion')))
    found = with_teacher(tiny_gfl(num_classes=5), gi)
    assert found.startswith('model.distillers.im: number of classes (bbox_head.num_classes) differ')


def test_other_strides() -> None:
    model = tiny_gfl()
    model.bbox_head.anchor_generator.strides = [4, 8, 16, 32, 64]
    model.neck.start_level = 0
    model.neck.num_outs = 5
    found = with_teacher(model, ld_main)
    assert found.startswith(f'{AT}: strides of the levels differ: student ((8, 8),')
    assert 'teacher ((4, 4), ' in found


@pytest.mark.parametrize('distillers', [ld_main, imitation_everywhere])
def test_no_common_stride(distillers: dict) -> None:
    student = get_reader(build(tiny_gfl()).bbox_head).spec
    teacher = replace(student, strides=((6, 6), (12, 12), (24, 24), (48, 48), (96, 96)))
    name = next(iter(distillers))
    found = message(lambda: build_distillers(distillers, student, teacher))
    assert found.startswith(
        f'model.distillers.{name}: strides of the levels differ: student ((8, 8),'
    )


def test_other_number_of_levels() -> None:
    model = tiny_gfl()
    model.bbox_head.anchor_generator.strides = [8, 16, 32, 64]
    model.neck.num_outs = 4
    assert with_teacher(model).startswith(f'{AT}: strides of the levels differ: ')


def test_other_priors_per_cell() -> None:
    student = get_reader(build(tiny_gfl()).bbox_head).spec
    teacher = replace(student, num_base_priors=(9,) * 5)
    found = message(lambda: build_distillers(ld_main, student, teacher))
    assert found.startswith(
        f'{AT}: priors per cell (num_base_priors) differ: student (1, 1, 1, 1, 1), teacher (9, 9, '
    )
    assert 'anchor_generator' in found


def test_softmax_over_one_class() -> None:
    one = dict(student=tiny_gfl(num_classes=1), teacher=dict(config=dict(model=tiny_gfl(1))))
    one['teacher']['checkpoint'] = None
    found = message(lambda: build(tiny_distilled(**one)))
    assert found.startswith(
        'model.distillers.kd.loss: found DistributionKLLoss over the one class of GFLHead, expected'
    )
    model = build(tiny_distilled(**one, distillers=dict(ld_full, kd=None)))
    assert list(model.distillers) == ['ld', 'ld_vlr']


def test_softmax_over_the_one_quality_of_a_prior() -> None:
    teacher = dict(config=dict(model=tiny('atss')), checkpoint=None)

    def student(**loss: Any) -> ConfigDict:
        quality = dict(q=dict(type='QualityDistiller', loss=loss))
        return tiny_distilled(teacher, quality, tiny('atss'))

    assert message(lambda: build(student(type='DistributionKLLoss'))) == (
        'model.distillers.q.loss: found DistributionKLLoss over the one quality of a prior, '
        "whose softmax is 1 whatever it is. Expected dict(type='BinaryKDLoss', beta=0)."
    )
    build(student(type='BinaryKDLoss', beta=0))


def test_softmax_over_the_features_where_there_is_one_class() -> None:
    one = dict(student=tiny_gfl(num_classes=1), teacher=dict(config=dict(model=tiny_gfl(1))))
    one['teacher']['checkpoint'] = None
    loss = dict(type='DistributionKLLoss', loss_weight=1e3)
    pfi = dict(pfi=dict(type='PredictionGuidedFeatureDistiller', loss=loss))
    assert losses(build(tiny_distilled(**one, distillers=pfi)), batch())['loss_pfi'] > 0


@pytest.mark.parametrize('name', ['ClassificationDistiller', 'DecoupledClassificationDistiller'])
def test_advice_for_one_class_is_accepted(name: str) -> None:
    one = dict(student=tiny_gfl(num_classes=1), teacher=dict(config=dict(model=tiny_gfl(1))))
    one['teacher']['checkpoint'] = None
    found = message(lambda: build(tiny_distilled(**one, distillers=dict(kd=dict(type=name)))))
    advice = found.partition('Set loss=')[2].partition(', or leave')[0]
    loss = eval(advice, dict(dict=dict))
    build(tiny_distilled(**one, distillers=dict(kd=dict(type=name, loss=loss))))


def test_softmax_over_the_one_class_that_both_models_know() -> None:
    teacher = dict(config=dict(model=tiny_gfl()), checkpoint=None, class_map={0: 2})
    model = build(tiny_distilled(teacher, ld_kd))
    assert message(lambda: model.match_classes(None)).startswith(
        'model.distillers.kd.loss: found DistributionKLLoss over the one class that both models '
        "know, expected a loss of the class's own score."
    )
    build(tiny_distilled(teacher, ld_main)).match_classes(None)


@pytest.mark.parametrize(
    ('distiller', 'key', 'found'),
    [
        (
            dict(
                type='DecoupledClassificationDistiller',
                loss=dict(type='DecoupledLoss', background=dict(type='RankKLLoss')),
            ),
            'loss.background',
            'RankKLLoss',
        ),
        (
            dict(type='CrossHeadDistiller', layer=1, box_loss=dict(type='DecoupledLoss')),
            'box_loss',
            'DecoupledLoss',
        ),
    ],
)
def test_loss_of_something_else_inside(distiller: dict, key: str, found: str) -> None:
    start = f'{AT}.{key}: found {found}, expected a distillation loss derived from DistillationLoss'
    told = said(distiller)
    assert told.startswith(f'{start}: BinaryKDLoss, ')
    listed = told.removeprefix(start + ': ').rstrip('.').split(', ')
    assert not {'RankKLLoss', 'DecoupledLoss'} & set(listed)


def test_other_number_of_bins() -> None:
    assert with_teacher(tiny_gfl(reg_max=8)) == (
        f'{AT}: bins per box side (bbox_head.reg_max + 1) differ: student 17, teacher 9, expected '
        "the same. Set model.bbox_head.reg_max to the teacher's."
    )


def test_class_scores_can_be_distilled_between_other_numbers_of_bins() -> None:
    teacher = dict(config=dict(model=tiny_gfl(reg_max=8)), checkpoint=None)
    model = build(tiny_distilled(teacher, dict(kd=ld_kd['kd'])))
    assert losses(model, batch())['loss_kd'] > 0


@pytest.mark.parametrize('names', [('sun', 'moon'), ('sun', 'moon', 'earth', 'mars')])
def test_other_number_of_names_in_the_checkpoint(names: tuple, tmp_path: Path) -> None:
    """A head that was left with the number of classes of another data set."""
    file = tmp_path / 'teacher.pth'
    state = dict(state_dict=build(tiny_gfl()).state_dict(), meta=dict(dataset_meta={}))
    state['meta']['dataset_meta']['classes'] = names
    torch.save(state, file)
    teacher = dict(config=dict(model=tiny_gfl()), checkpoint=str(file))
    assert message(lambda: build(tiny_distilled(teacher, ld_main))) == (
        f'model.teacher.checkpoint: {file}: found {len(names)} names, {names}, expected 3, one for '
        "each class of the teacher's head. Correct num_classes in model.teacher.config, or name "
        'all in model.teacher.classes.'
    )
    named = dict(teacher, classes=('circle', 'square', 'star'))
    assert build(tiny_distilled(named, ld_main)).teacher.classes == ('circle', 'square', 'star')
    # features have no names, whatever a head was trained on
    assert losses(build(tiny_distilled(teacher, pkd)), batch())['loss_pkd'] > 0


def teacher_named(*classes: str) -> dict:
    return dict(config=dict(model=tiny_gfl()), checkpoint=None, classes=classes)


def test_other_class_names_stop_the_training_at_its_first_step(tmp_path: Path) -> None:
    classes = ('moon', 'sun', 'earth')
    model = build(tiny_distilled(teacher_named(*classes), ld_main))
    runner = tiny_runner(model, tmp_path)
    found = message(runner.train)
    assert found.startswith(
        'model.teacher.checkpoint: the teacher was trained on other classes than '
    )
    assert f'teacher {classes}, student {("circle", "square", "star")}' in found
    assert 'model.teacher.class_map' in found
    assert runner.iter == 0


def test_unknown_names_of_another_number_of_classes() -> None:
    config = dict(model=tiny_gfl(num_classes=2))
    teacher = dict(config=config, checkpoint=None, classes=('circle', 'star'))
    model = build(tiny_distilled(teacher, ld_kd))
    assert message(lambda: model.match_classes(None)).startswith(
        'model.teacher.checkpoint: the teacher was trained on other classes than '
    )


def test_names_told_beforehand_hold_where_the_data_set_has_none() -> None:
    names = 'circle', 'square', 'star'

    def kd_loss(told: tuple | None, of_data_set: tuple | None) -> float:
        hub = MessageHub.get_current_instance()
        hub.update_info('dataset_meta', dict(classes=of_data_set))
        model = build(tiny_distilled(teacher_named('star', 'circle', 'square'), ld_kd))
        if told:
            model.match_classes(told)
        return losses(model, batch())['loss_kd'].item()

    assert kd_loss(names, None) == kd_loss(None, names)
    assert kd_loss(names, None) != kd_loss(None, None)


def test_what_the_teacher_does_not_know_is_said_once() -> None:
    names = 'circle', 'square', 'moon'
    model = build(tiny_distilled(teacher_named('star', 'circle', 'square'), ld_kd))
    with pytest.warns(UserWarning, match=r"not distilled: \['moon'\]"):
        model.match_classes(names)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        model.match_classes(list(names))


def test_text_in_place_of_class_names() -> None:
    """As of a data set whose one name stands without a comma: its letters are no classes."""
    MessageHub.get_current_instance().update_info('dataset_meta', dict(classes='sun'))
    model = build(tiny_distilled(teacher_named('star', 'circle', 'square')))
    assert message(lambda: losses(model, batch())) == (
        "train_dataloader.dataset.metainfo.classes: found the text 'sun', expected a tuple of "
        "names, in which one alone takes a comma: ('sun',)."
    )


@pytest.mark.parametrize('make', [build_runner, RUNNERS.build])
def test_other_class_names_are_refused_when_the_program_builds_the_model(
    make: Callable, tmp_path: Path
) -> None:
    """By `tools/train.py`, and by any program that runs the plugin's runner; no data are read."""
    cfg = Config.fromfile(ROOT / 'configs' / 'bccd' / 'gfl_r18_fpn_12e_bccd.py')
    cfg.work_dir = str(tmp_path)
    classes = ('moon', 'sun', 'earth')
    cfg.model = tiny_distilled(teacher_named(*classes), ld_main)
    cfg.pop('runner_type', None)
    if make is not build_runner:  # but what such programs call
        cfg.runner_type = 'DistillationRunner'
    found = message(lambda: make(cfg))
    assert f'teacher {classes}, student {("RBC", "WBC", "Platelets")}' in found

    cfg.model.teacher.classes = ('Platelets', 'WBC', 'moon')
    with pytest.warns(UserWarning, match=r"so they are not distilled: \['RBC'\]"):
        make(cfg)


def test_data_set_without_a_type() -> None:
    cfg = dict(train_dataloader=dict(dataset=dict(type='RepeatDataset', dataset=dict(ann_file=''))))
    assert message(lambda: training_classes(cfg)).startswith(
        'train_dataloader.dataset.dataset.type: missing, expected the class of a data set'
    )


@needs.mmrotate
@pytest.mark.parametrize(('classwise', 'number'), [(False, 1), (True, 31), (None, 1)])
def test_hrsc_names_one_class_unless_it_is_asked_for_all(
    classwise: bool | None, number: int
) -> None:
    cfg = Config.fromfile(
        ROOT / 'configs/rotated_ld/rotated-ld_r18-dist-rotated-retinanet-r34_fpn_kld-stable_rr-1x_'
        'hrsc.py'
    )
    cfg.train_dataloader.dataset.classwise = classwise
    assert len(training_classes(cfg)) == number


def test_data_sets_that_differ_are_read_by_the_first_ones_classes(tmp_path: Path) -> None:
    names = ('circle', 'square', 'star')
    parts = [dict(classes=names, palette=None), dict(classes=names, palette=[1])]
    MessageHub.get_current_instance().update_info('dataset_meta', parts)
    state = build(tiny_gfl(), seed=7).state_dict()
    torch.save(dict(state_dict=state, meta=dict(dataset_meta=parts)), tmp_path / 'a.pth')
    teacher = dict(config=dict(model=tiny_gfl()), checkpoint=str(tmp_path / 'a.pth'))
    model = build(tiny_distilled(teacher))
    assert model.teacher.classes == names
    assert losses(model, batch())['loss_kd'].isfinite()


def test_head_with_other_classes_than_the_data_set_stops_the_training(tmp_path: Path) -> None:
    student = tiny_gfl(num_classes=5)
    teacher = teacher_named('circle', 'square', 'star')
    runner = tiny_runner(build(tiny_distilled(teacher, ld_full, student)), tmp_path)
    assert message(runner.train) == (
        'model.bbox_head.num_classes: found 5, expected 3, as train_dataloader.dataset has the '
        "classes ('circle', 'square', 'star'). Correct it, or metainfo.classes of the data set."
    )
    assert runner.iter == 0


@pytest.mark.parametrize(
    ('classes', 'distillers'),
    [(('circle', 'square', 'star'), ld_full), (('moon', 'sun', 'earth'), imitation_everywhere)],
)
def test_equal_class_names_and_features_of_other_classes_train(
    classes: tuple, distillers: dict
) -> None:
    dataset_meta = dict(classes=('circle', 'square', 'star'))
    MessageHub.get_current_instance().update_info('dataset_meta', dataset_meta)
    model = build(tiny_distilled(teacher_named(*classes), distillers))
    assert f'loss_{next(iter(distillers))}' in losses(model, batch())


def test_batch_without_ground_truth() -> None:
    everything = dict(
        ld_full,
        im_gt=dict(type='FeatureDistiller', region=dict(type='InsideGTRegion')),
        im_fine=dict(type='FeatureDistiller', region=dict(type='FineGrainedRegion')),
    )
    teacher = dict(config=dict(model=tiny_gfl(channels=64)), checkpoint=None)
    model = build(tiny_distilled(teacher, everything))

    found = losses(model, batch(objects=(0, 0)))
    for name in everything:
        assert found[f'loss_{name}'].item() == 0
    sum(found[f'loss_{name}'] for name in everything).backward()

    for name, parameter in model.named_parameters():
        # the adapters too: an undefined gradient would stop a distributed training
        if parameter.grad is not None:
            assert (parameter.grad == 0).all(), name
    assert all(p.grad is not None for p in model.distillers.parameters())
    assert model.bbox_head.gfl_reg.weight.grad is not None
    assert model.bbox_head.gfl_cls.weight.grad is not None


@pytest.mark.parametrize('region', ['EverywhereRegion', 'BackgroundRegion', 'GIRegion'])
def test_regions_beside_objects_work_without_any(region: str) -> None:
    distillers = dict(im=dict(type='FeatureDistiller', region=dict(type=region)))
    found = losses(build(tiny_distilled(distillers=distillers)), batch(objects=(0, 0)))
    assert found['loss_im'] > 0


def test_image_without_ground_truth_beside_one_with() -> None:
    found = losses(build(tiny_distilled()), batch(objects=(0, 2)))
    for name in ld_full:
        assert torch.isfinite(found[f'loss_{name}'])
        assert found[f'loss_{name}'] > 0


def test_boxes_without_area_break_nothing() -> None:
    data = batch(objects=(2, 1))
    boxes = data['data_samples'][0].gt_instances.bboxes
    boxes[0, 2:] = boxes[0, :2]
    model = build(tiny_distilled())
    loss, _ = model.parse_losses(losses(model, data))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_no_prior_inside_the_image_is_the_stock_error() -> None:
    student = tiny_gfl()
    student.train_cfg.allowed_border = 0  # no anchor of 64 pixels lies within an image of 32
    model = build(tiny_distilled(student=student))
    with pytest.raises(ValueError, match='There is no valid anchor inside the image boundary'):
        losses(model, batch([(32, 32)] * 2, [1, 1]))
