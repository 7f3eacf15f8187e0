"""The measurement on BCCD: what it refuses, what it repeats, what its table says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

import benchmark_bccd as benchmark  # noqa: E402


def job(work_dir: Path, metrics: dict | None = None) -> benchmark.Job:
    work_dir.mkdir()
    made = benchmark.Job('gfl_r18_fpn_12e_bccd', 0, 'data', work_dir, None, 1, False)
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


def test_every_variant_is_a_config() -> None:
    for name in (benchmark.TEACHER, *benchmark.VARIANTS.values()):
        assert (benchmark.CONFIGS / f'{name}.py').is_file()


def test_missing_data_is_said(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tools' / 'benchmark_bccd.py'), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert f'{tmp_path}: not a folder in PASCAL VOC layout' in done.stderr
