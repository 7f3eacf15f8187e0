"""The measurement of methods: every family's teacher and students are models that can be built."""

import dataclasses
import re
import sys
from pathlib import Path

import benchmark_methods as benchmark
import pytest
import torch
from mmdet.registry import MODELS
from mmengine import Config, ConfigDict

from ld_plugin import recipes

ROOT = Path(__file__).resolve().parents[1]


def run(family: str, method: str, checkpoint: Path | None = None) -> benchmark.Run:
    return benchmark.Run(family, 0, 'data', Path('runs'), checkpoint, 1, (), method)


@pytest.mark.parametrize('family', benchmark.FAMILIES)
def test_models_build(family: str, tmp_path: Path) -> None:
    cfg = run(family, 'teacher').read_config()
    assert cfg.train_cfg.max_epochs == benchmark.TEACHER_EPOCHS
    teacher = MODELS.build(cfg.model)
    torch.save(dict(state_dict=teacher.state_dict()), tmp_path / 'teacher.pth')
    stock = MODELS.build(run(family, 'alone').read_config().model)
    method = benchmark.FAMILIES[family].methods[0]
    cfg = run(family, method, tmp_path / 'teacher.pth').read_config()
    assert cfg.train_cfg.max_epochs == benchmark.STUDENT_EPOCHS
    student = MODELS.build(cfg.model)
    assert list(student.distillers) == list(getattr(recipes, method))
    own = [key for key in student.state_dict() if not key.startswith('distillers.')]
    assert own == list(stock.state_dict())
    assert sum(p.numel() for p in stock.parameters()) < sum(p.numel() for p in teacher.parameters())


@pytest.mark.parametrize(
    ('method', 'config'),
    [
        ('teacher', 'gfl_r18_fpn_18e_bccd.py'),
        ('alone', 'gfl_r18-half_fpn_6e_bccd.py'),
        (
            'ld_main+ld_full.ld_vlr+ld_full.kd:0.1+bckd:2+rm_pfi+defeat:2',
            'ld-kd1-bckd2-rm-pfi-defeat2_r18-half-gfl-r18_fpn_6e_bccd.py',
        ),
    ],
)
def test_configs_say_what_is_measured(method: str, config: str) -> None:
    cfg = Config.fromfile(ROOT / 'configs' / 'bccd' / config)
    teacher = Path('runs/epoch_18.pth') if '+' in method else None
    expected = run('GFL', method, teacher).read_config()
    assert cfg.train_cfg.max_epochs == expected.train_cfg.max_epochs
    for name in ('param_scheduler', 'optim_wrapper', 'train_dataloader'):
        assert cfg[name] == expected[name]
    assert cfg.model.get('distillers') == expected.model.get('distillers')
    sizes = [
        [tuple(p.shape) for p in MODELS.build(cut(model)).parameters()]
        for model in (cfg.model, expected.model)
    ]
    assert sizes[0] == sizes[1]


def cut(model: ConfigDict) -> ConfigDict:
    """The student as a stock detector."""
    stock = model.copy()
    if stock.pop('teacher', None):
        stock.type = 'GFL'
        del stock['distillers']
    return stock


def test_every_method_is_a_recipe() -> None:
    for family in benchmark.FAMILIES.values():
        assert all(isinstance(getattr(recipes, name), dict) for name in family.methods)


def test_recipes_together_and_other_weights() -> None:
    distillers = benchmark.distillers_of('ld_full+pkd:0.5')
    assert list(distillers) == [*recipes.ld_full, *recipes.pkd]
    assert distillers.pkd.schedule == dict(type='ConstantSchedule', value=0.5)
    assert distillers.ld == recipes.ld_full['ld']
    assert 'schedule' not in recipes.pkd['pkd']


def test_single_losses_of_recipes() -> None:
    distillers = benchmark.distillers_of('ld_main+ld_full.ld_vlr+ld_full.kd:0.1')
    assert list(distillers) == list(recipes.ld_full)
    assert distillers.ld_vlr == recipes.ld_full['ld_vlr']
    assert distillers.kd.schedule.value == 0.1


@pytest.mark.parametrize(
    ('method', 'message'),
    [
        ('nothing', "found 'nothing', expected the name of a recipe"),
        ('_main_ld:2', "found '_main_ld', expected the name of a recipe"),
        ('ld_full.pfi', "found 'ld_full.pfi', expected one of the losses ['ld', 'ld_vlr', 'kd']"),
        ('ld_full.', "found 'ld_full.', expected one of the losses"),
        ('pkd:much', "could not convert string to float: 'much'"),
        ('ld_main+ld_full', "more than one recipe has ['ld']"),
        ('ld_full.kd+ld_full', "more than one recipe has ['kd']"),
    ],
)
def test_wrong_method(method: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        benchmark.distillers_of(method)


def test_method_that_does_not_fit_is_refused_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    lists = tmp_path / 'ImageSets' / 'Main'
    lists.mkdir(parents=True)
    (lists / 'train.txt').touch()
    options = ['--methods', 'crosskd', '--families', 'GFL', 'Faster R-CNN']
    monkeypatch.setattr(sys, 'argv', ['benchmark_methods.py', str(tmp_path), *options])
    with pytest.raises(SystemExit):
        benchmark.main()
    message = capsys.readouterr().err
    assert '--methods: Faster R-CNN, crosskd: model.distillers.crosskd: the student' in message


def rows(monkeypatch: pytest.MonkeyPatch, data: Path, *options: str) -> dict[str, list]:
    """All rows that a command line asks for."""
    lists = data / 'ImageSets' / 'Main'
    lists.mkdir(parents=True)
    (lists / 'train.txt').touch()
    monkeypatch.setattr(sys, 'argv', ['benchmark_methods.py', str(data), *options])
    args = benchmark.parse_args()
    return {k: v for family in args.families for k, v in benchmark.rows_of(args, family).items()}


def test_a_row_per_method_and_a_run_per_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = rows(monkeypatch, tmp_path)
    first = dict.fromkeys(benchmark.FAMILIES, 'ld_point')
    first |= {
        'GFL': 'ld_full',
        'RetinaNet': 'ld_retina',
        'Faster R-CNN': 'defeat_two_stage',
    }
    for family, ld in first.items():
        teacher, alone, *distilled = [v for k, v in made.items() if k.startswith(f'{family}, ')]
        assert distilled[0][0].method == ld
        seeds = [0, 1, 2] if family == 'GFL' else [0]
        assert all([run.seed for run in row] == seeds for row in (alone, *distilled))
        assert [run.seed for run in teacher] == [0]
        assert all(run.teacher_checkpoint is None for run in (*teacher, *alone))
        expected = teacher[0].work_dir / f'epoch_{benchmark.TEACHER_EPOCHS}.pth'
        assert {run.teacher_checkpoint for row in distilled for run in row} == {expected}
    everything = [run for row in made.values() for run in row]
    assert len({run.work_dir for run in everything}) == len(everything)


def test_seeds_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = rows(monkeypatch, tmp_path, '--seeds', '3', '4', '--families', 'GFL', 'ATSS')
    assert {tuple(run.seed for run in row) for row in made.values()} == {(0,), (3, 4)}


@pytest.mark.parametrize(('family', 'precision'), [('GFL', 'bf16'), ('Faster R-CNN', 'fp32')])
def test_precision_of_the_teacher(family: str, precision: str) -> None:
    made = run(family, 'pkd', Path('teacher.pth'))
    assert made.read_config().model.teacher.precision == 'fp32'
    made = dataclasses.replace(made, bf16=('backbone',))
    assert made.read_config().model.teacher.precision == precision


def test_cross_heads_begin_before_the_last_convolution() -> None:
    """As published, where there are four."""
    distillers = run('GFL', 'crosskd', Path('teacher.pth')).read_config().model.distillers
    assert distillers.crosskd.layer == benchmark.STACKED_CONVS - 1 == 1
