"""The measurement on BCCD: what it refuses, what it repeats, what its table says."""

import dataclasses
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import benchmark_bccd as benchmark
import cv2
import numpy as np
import pytest
import torch
from mmengine import Config

from tests.models import tiny_gfl

ROOT = Path(__file__).resolve().parents[1]


VOC = """<annotation><size><width>64</width><height>48</height></size>
<object><name>RBC</name><difficult>0</difficult>
<bndbox><xmin>8</xmin><ymin>6</ymin><xmax>40</xmax><ymax>38</ymax></bndbox></object></annotation>"""


@dataclasses.dataclass(frozen=True)
class TinyJob(benchmark.Job):
    """One epoch of a smaller model."""

    def read_config(self) -> Config:
        cfg = super().read_config()
        cfg.model = tiny_gfl()
        cfg.train_cfg.max_epochs = 1
        return cfg


def write_images(root: Path, names: str = 'abcd') -> None:
    """Images in BCCD's layout, each with one cell."""
    for folder in ('Annotations', 'ImageSets/Main', 'JPEGImages'):
        (root / folder).mkdir(parents=True)
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    for name in names:
        cv2.imwrite(str(root / 'JPEGImages' / f'{name}.jpg'), image)
        (root / 'Annotations' / f'{name}.xml').write_text(VOC)
    for split in ('train', 'test'):
        (root / 'ImageSets' / 'Main' / f'{split}.txt').write_text('\n'.join(names))


def job(work_dir: Path, metrics: dict | None = None) -> benchmark.Job:
    work_dir.mkdir()
    made = benchmark.Job('gfl_r18_fpn_12e_bccd', 0, 'data', work_dir, None, 1)
    if metrics is not None:
        made.metrics_file.write_text(json.dumps(metrics))
    return made


def metrics(value: float) -> dict:
    thresholds = benchmark.COLUMNS['AP']
    return {f'AP{threshold}': value - threshold / 1000 for threshold in thresholds}


def test_table_gives_mean_and_spread_over_seeds(tmp_path: Path) -> None:
    jobs = [job(tmp_path / str(seed), metrics(0.8 + seed / 10)) for seed in range(3)]
    rows = benchmark.table({'teacher': jobs[:1], 'alone': jobs}).splitlines()
    # thresholds 50..95 average 72.5, and 50, 60, 70, 75, 80 average 67
    assert rows[2] == '| teacher | 1 | 0.728 | 0.750 | 0.725 | 0.733 |'
    assert rows[3] == (
        '| alone | 3 | 0.828 ± 0.100 | 0.850 ± 0.100 | 0.825 ± 0.100 | 0.833 ± 0.100 |'
    )


def test_gains_are_differences_seed_by_seed(tmp_path: Path) -> None:
    def jobs(name: str, *values: float) -> list[benchmark.Job]:
        return [job(tmp_path / f'{name}{value}', metrics(value)) for value in values]

    students = {benchmark.BASE: jobs('main', 0.5, 0.7), 'full': jobs('full', 0.55, 0.77)}
    rows = benchmark.gains(students).splitlines()
    assert rows[0].startswith('| over main LD | AP |')
    assert rows[2:] == ['| full' + ' | +0.060 ± 0.014' * 4 + ' |']


def test_complete_runs_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, 'run', None)  # nothing may be submitted
    benchmark.run_all([job(tmp_path / 'done', metrics(0.5))], at_once=1)


def test_runs_with_other_options_are_not_taken_over(tmp_path: Path) -> None:
    made = job(tmp_path / 'x', metrics(0.5))
    made.write_options()
    benchmark.run_all([made], at_once=1)
    for change in (dict(bf16=('backbone',)), dict(data='elsewhere')):
        other = dataclasses.replace(made, **change)
        with pytest.raises(SystemExit, match=r'x holds a run with other options: .*--work-dir'):
            benchmark.run_all([other], at_once=1)


@pytest.mark.parametrize('at_once', [1, 2])
def test_students_wait_for_their_own_teacher_alone(
    at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers = [job(tmp_path / f'teacher{i}') for i in range(2)]
    students = [
        dataclasses.replace(
            job(tmp_path / f'student{i}'), teacher_checkpoint=teacher.work_dir / 'epoch_36.pth'
        )
        for i, teacher in enumerate(teachers)
    ]
    first_student_ran = threading.Event()
    order = []

    def run(made: benchmark.Job) -> str:
        assert made.can_start
        if made is teachers[1] and at_once == 2:  # on the other thread, the first student can run
            assert first_student_ran.wait(timeout=60)
        order.append(made.work_dir.name)
        made.metrics_file.write_text('{}')
        if made == students[0]:
            first_student_ran.set()
        return made.work_dir.name

    monkeypatch.setattr(benchmark, 'run', run)
    monkeypatch.setattr(
        benchmark, 'ProcessPoolExecutor', lambda n, mp_context: ThreadPoolExecutor(n)
    )
    benchmark.run_all([students[1], teachers[0], students[0], teachers[1]], at_once)
    if at_once == 1:
        assert order == ['teacher0', 'teacher1', 'student1', 'student0']
    else:
        assert order == ['teacher0', 'student0', 'teacher1', 'student1']


def test_a_student_without_a_teacher_is_refused(tmp_path: Path) -> None:
    student = dataclasses.replace(
        job(tmp_path / 'student'), teacher_checkpoint=tmp_path / 'teacher' / 'epoch_36.pth'
    )
    with pytest.raises(ValueError, match='student: nothing trains its teacher'):
        benchmark.run_all([student], at_once=1)


def test_a_run_trains_evaluates_and_ends_its_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / 'data')
    monkeypatch.setenv('BCCD_ROOT', str(tmp_path / 'data'))
    monkeypatch.setattr(torch, 'set_num_threads', lambda threads: None)  # the other tests' number
    made = TinyJob(
        'gfl_r18_fpn_12e_bccd', 7, 'data', tmp_path / 'run', None, 1, tuple(benchmark.PARTS)
    )
    assert benchmark.run(made) == str(made.work_dir)
    found = json.loads(made.metrics_file.read_text())
    assert set(metrics(1)) | {'mAP'} == set(found)
    assert all(0 <= value <= 1 for value in found.values())
    assert (made.work_dir / 'epoch_1.pth').is_file()
    assert json.loads((made.work_dir / 'options.json').read_text()) == made.options
    # MIM would find a copy under the config's own name a second time
    assert {path.name for path in made.work_dir.rglob('*.py')} == {'config.py'}
    ran = Config.fromfile(made.work_dir / 'config.py')
    assert (ran.randomness.seed, ran.resume, ran.val_dataloader) == (7, True, None)
    # VOC's metric has a pool of its own
    loading = [p for p in multiprocessing.active_children() if 'Pool' not in p.name]
    assert not loading


def test_a_part_in_bfloat16_hands_out_float32() -> None:
    torch.manual_seed(0)
    part, image = torch.nn.Conv2d(3, 4, 1), torch.randn(1, 3, 2, 2)
    exact = part(image)
    benchmark.use_bf16(part)
    rounded = part(image)
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, rounded.bfloat16().float())
    assert 0 < (rounded - exact).abs().max() < 0.05
    ((level,), (other,)) = benchmark.in_float32(([image.bfloat16()], (image.bfloat16(),)))
    assert level.dtype == other.dtype == torch.float32


LOSSES = {
    'alone': {},
    'main LD': dict(ld=0.25),
    'main LD + VLR LD': dict(ld=0.25, ld_vlr=0.25),
    'main LD + main KD': dict(ld=0.25, kd=10),
    'main LD + main KD + VLR LD': dict(ld=0.25, ld_vlr=0.25, kd=10),
    'main LD + 0.1 x main KD + VLR LD': dict(ld=0.25, ld_vlr=0.25, kd=1),
}


def test_every_variant_has_the_losses_that_its_name_says() -> None:
    found = {}
    for name, config in benchmark.VARIANTS.items():
        model = Config.fromfile(benchmark.CONFIGS / f'{config}.py').model
        kept = {k: v for k, v in model.get('distillers', {}).items() if v is not None}
        found[name] = {key: distiller.loss.loss_weight for key, distiller in kept.items()}
    assert found == LOSSES


@pytest.mark.parametrize(('bf16', 'precision'), [((), 'fp32'), (('neck',), 'bf16')])
def test_the_teacher_of_a_run(bf16: tuple[str, ...], precision: str) -> None:
    config, path = benchmark.VARIANTS['main LD'], Path('runs/epoch_36.pth')
    teacher = benchmark.Job(config, 0, 'data', Path(), path, 1, bf16).read_config().model.teacher
    assert (teacher.checkpoint, teacher.precision) == ('runs/epoch_36.pth', precision)


def test_every_variant_is_trained_with_every_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / 'data')
    made: list[benchmark.Job] = []
    monkeypatch.setattr(benchmark, 'run_all', lambda jobs, at_once: made.extend(jobs))
    monkeypatch.setattr(benchmark, 'table', lambda rows: '')
    monkeypatch.setattr(benchmark, 'gains', lambda rows: '')
    monkeypatch.setenv('BCCD_ROOT', 'of the program')
    work_dir = tmp_path / 'runs'
    options = [str(tmp_path / 'data'), '--work-dir', str(work_dir)]
    monkeypatch.setattr(sys, 'argv', ['benchmark_bccd.py', *options])
    assert benchmark.main() == 0
    assert os.environ['BCCD_ROOT'] == str(tmp_path / 'data')
    teacher, *students = made
    assert (teacher.config, teacher.seed) == (benchmark.TEACHER, 0)
    epochs = Config.fromfile(benchmark.CONFIGS / f'{benchmark.TEACHER}.py').train_cfg.max_epochs
    for job in students:
        of = None if job.config == benchmark.VARIANTS['alone'] else teacher.work_dir
        assert job.teacher_checkpoint == (of and of / f'epoch_{epochs}.pth')
    expected = itertools.product(benchmark.VARIANTS.values(), (0, 1, 2))
    assert sorted((job.config, job.seed) for job in students) == sorted(expected)
    assert len({job.work_dir for job in made}) == len(made)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ('--seeds 0 -1', 'argument --seeds: found -1, expected 0 to 4294967295'),
        ('--jobs 0', 'argument --jobs: found 0, expected at least 1'),
        ('--seeds 0 1 0', '--seeds: found 0 2 times, expected each value once'),
        ('--work-dir {file}', 'argument --work-dir: found {file}, which is no folder'),
        ('--work-dir {file}/below', 'argument --work-dir: found {file}, which is no folder'),
    ],
)
def test_options_that_cannot_be(
    options: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    arguments = options.format(file=__file__).split()
    monkeypatch.setattr(sys, 'argv', ['benchmark_bccd.py', 'data', *arguments])
    with pytest.raises(SystemExit):
        benchmark.parse_args()
    assert message.format(file=__file__) in capsys.readouterr().err


def test_missing_data_is_said(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tools' / 'benchmark_bccd.py'), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert f'{tmp_path}: not a folder in PASCAL VOC layout' in done.stderr


def test_seeds_far_from_each_other(tmp_path: Path) -> None:
    jobs = [job(tmp_path / str(value), metrics(value)) for value in (0.5, 0.6, 0.9)]
    (row,) = benchmark.table({'alone': jobs}, {'AP50': [50]}).splitlines()[2:]
    assert row == '| alone | 3 | 0.617 ± 0.208 |'
