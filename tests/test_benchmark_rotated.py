"""The measurement on rotated digits: data of its own, models that can be built, its methods."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from mmengine import Config
from mmengine.registry import MODELS

from tests.families import scope

pytest.importorskip('mmrotate')
import benchmark_rotated as benchmark
from demo_kinds import ROTATED

ROOT = Path(__file__).resolve().parents[1]


LOSSES = {'KD': ['kd'], 'LD': ['ld'], 'LD + KD': ['ld', 'kd'], 'BCKD': ['bckd_cls', 'bckd_box']}


def run(stage: str, work_dir: Path, method: str | None = None, **kwargs) -> benchmark.Run:
    checkpoint = kwargs.get('checkpoint')
    return benchmark.Run(stage, 0, 'data', work_dir, checkpoint, 1, (), method)


@pytest.fixture(scope='module')
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the teacher, untrained."""
    path = tmp_path_factory.mktemp('teacher') / 'teacher.pth'
    with scope('rotated_retinanet'):
        model = MODELS.build(run('teacher', path.parent).read_config().model)
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


@pytest.mark.parametrize('method', benchmark.METHODS)
def test_models_build(method: str, teacher: Path, tmp_path: Path) -> None:
    with scope('rotated_retinanet'):
        stock = MODELS.build(run('alone', tmp_path).read_config().model)
        cfg = run('distilled', tmp_path, method, checkpoint=teacher).read_config()
        student = MODELS.build(cfg.model)
    assert list(student.distillers) == LOSSES[method]
    own = [key for key in student.state_dict() if not key.startswith('distillers.')]
    assert own == list(stock.state_dict())


def test_every_training_is_as_long_as_the_demos() -> None:
    """Else checkpoints are not where they are looked for."""
    for stage in ROTATED.stages:
        of = 'teacher_epochs' if stage is ROTATED.teacher else 'epochs'
        cfg = Config.fromfile(stage.config_file)
        assert cfg.train_cfg.max_epochs == cfg.param_scheduler[-1].end == ROTATED.defaults[of]


def test_makes_the_demos_digits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(benchmark, 'COUNTS', dict(train=2, test=1))
    monkeypatch.setattr(sys, 'argv', ['benchmark_rotated.py', '--work-dir', str(tmp_path)])
    args = benchmark.parse_args()
    assert args.data == tmp_path / 'digits'
    made = json.loads((args.data / 'digits.json').read_text())['options']
    width, height = ROTATED.defaults['size']
    assert (made['width'], made['height']) == (width, height)
    assert made['counts'] == dict(train=2, val=0, test=1)
    assert made.items() >= ROTATED.digits_of((width, height)).items()


def test_a_row_per_method_and_a_run_per_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, 'make_digits', lambda *args, **kwargs: None)
    monkeypatch.setattr(sys, 'argv', ['benchmark_rotated.py', '--seeds', '0', '7'])
    rows = benchmark.rows_of(benchmark.parse_args())
    assert list(rows) == ['teacher', 'alone', 'KD', 'LD', 'LD + KD', 'BCKD']
    assert [job.seed for job in rows.pop('teacher')] == [0]
    assert all([job.seed for job in row] == [0, 7] for row in rows.values())
    assert all((job.teacher_checkpoint is None) == (job.method is None) for job in rows['alone'])
    assert rows['LD'][1].work_dir != rows['LD'][0].work_dir != rows['LD + KD'][0].work_dir
    (checkpoint,) = {job.teacher_checkpoint for name in LOSSES for job in rows[name]}
    epochs = ROTATED.defaults['teacher_epochs']
    assert checkpoint == Path(f'work_dirs/rotated/teacher_seed0/epoch_{epochs}.pth')


def test_ratios_are_of_the_means_of_all_seeds(tmp_path: Path) -> None:
    aps = {
        'alone': [(0.2, 0.0), (0.2, 0.0), (0.5, 0.0)],
        'LD': [(0.3, 0.1), (0.9, 0.1), (0.6, 0.1)],
    }
    rows = {name: [run('alone', tmp_path / f'{name}{i}') for i in range(3)] for name in aps}
    for name, jobs in rows.items():
        for job, (low, high) in zip(jobs, aps[name], strict=True):
            job.work_dir.mkdir()
            metrics = {f'AP{t}': low if t < 85 else high for t in range(50, 100, 5)}
            job.metrics_file.write_text(json.dumps(metrics))
    lines = benchmark.ratios(rows).splitlines()
    assert lines[2] == '| alone | 0.300 | 0.300 | 0.300 | 0.300 | 0.300 | 0.000 |'
    assert lines[3:] == ['| LD | 2.00 x | 2.00 x | 2.00 x | 2.00 x | 2.00 x |  |']


def test_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def run_all(jobs: list[benchmark.Run], at_once: int) -> None:
        for job in jobs:
            job.work_dir.mkdir(parents=True)
            metrics = {f'AP{t}': job.seed / 10 + t / 1000 for t in range(50, 100, 5)}
            job.metrics_file.write_text(json.dumps(metrics))

    monkeypatch.setattr(benchmark, 'make_digits', lambda *args, **kwargs: None)
    monkeypatch.setattr(benchmark.bccd, 'run_all', run_all)
    monkeypatch.setenv('DIGITS_ROOT', 'of the program')
    options = ['--seeds', '1', '3', '--methods', 'LD', '--work-dir', str(tmp_path)]
    monkeypatch.setattr(sys, 'argv', ['benchmark_rotated.py', *options])
    assert benchmark.main() == 0
    assert os.environ['DIGITS_ROOT'] == str(tmp_path / 'digits')
    first, gains, ratios = capsys.readouterr().out.split('\n\n')
    assert first.splitlines()[0] == '| model | seeds | AP | AP50 | AP75 |'
    assert first.splitlines()[-1] == '| LD | 2 | 0.273 ± 0.141 | 0.250 ± 0.141 | 0.275 ± 0.141 |'
    assert gains.splitlines()[0] == '| over alone | AP | AP50 | AP75 |'
    assert ratios.splitlines()[-1].startswith('| LD | 1.00 x |')


@pytest.mark.parametrize(('bf16', 'precision'), [((), 'fp32'), (('neck',), 'bf16')])
def test_precision_of_the_teacher(bf16: tuple[str, ...], precision: str) -> None:
    made = benchmark.Run('distilled', 0, 'data', Path(), Path('teacher.pth'), 1, bf16, 'LD')
    assert made.read_config().model.teacher.precision == precision
