"""Measure distillation of rotated boxes on turned digits, and print the tables of the README.

    python tools/benchmark_rotated.py --jobs 2

Makes the digits if they are not there yet, trains the teacher of the rotated demo
(``bash tools/demo.sh --rotated``) and then its student with every seed: alone, and with each
method. KD and LD are the two halves of ``rotated_ld_kld``. Images and schedules are those of the
demo, with more images to test on.

Complete runs are not repeated, and interrupted ones continue.
"""

import argparse
import dataclasses
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import benchmark_bccd as bccd
from demo_kinds import ROTATED, Stage
from make_digits import DigitsError, make_digits
from mmengine import Config, ConfigDict

from ld_plugin.recipes import bckd, rotated_ld_kld

METHODS = {
    'KD': dict(rotated_ld_kld, ld=None),
    'LD': dict(rotated_ld_kld, kd=None),
    'LD + KD': rotated_ld_kld,
    'BCKD': bckd,
}
COUNTS = dict(train=ROTATED.defaults['train_images'], test=400)
COLUMNS = {'AP': range(50, 100, 5), 'AP50': [50], 'AP75': [75]}
THRESHOLDS = {f'AP{t}': [t] for t in (50, 60, 70, 75, 80, 85)}  # beyond, AP is nearly zero
BASE = 'alone'


@dataclasses.dataclass(frozen=True)
class Run(bccd.Job):
    """One training; ``config`` is the name of a stage of the rotated demo.

    Attributes:
        method: Of METHODS, for the distilled student.
    """

    method: str | None = None

    def read_config(self) -> Config:
        cfg = Config.fromfile(stage_of(self.config).config_file)
        if self.method is not None:
            cfg.model.teacher.checkpoint = str(self.teacher_checkpoint)
            cfg.model.teacher.precision = 'bf16' if self.bf16 else 'fp32'
            cfg.model.distillers = ConfigDict(METHODS[self.method])
        return cfg

    def test(self, runner: Any) -> dict[str, float]:
        with ROTATED.evaluating():
            return super().test(runner)


def stage_of(name: str) -> Stage:
    (stage,) = (stage for stage in ROTATED.stages if stage.name == name)
    return stage


def main() -> int:
    args = parse_args()
    os.environ['DIGITS_ROOT'] = str(args.data)  # the configs read it
    rows = rows_of(args)
    bccd.run_all([run for row in rows.values() for run in row], args.jobs)
    print(bccd.table(rows, COLUMNS))
    if len(args.seeds) > 1:
        students = {name: row for name, row in rows.items() if name != 'teacher'}
        print(f'\n{bccd.gains(students, BASE, COLUMNS)}')
        print(f'\n{ratios(students)}')
    return 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--methods', nargs='+', default=list(METHODS), choices=list(METHODS))
    parser.add_argument('--data', type=Path, help='for the digits (default: WORK_DIR/digits)')
    bccd.add_common_arguments(parser, work_dir='work_dirs/rotated')
    args = parser.parse_args()
    if ROTATED.missing:
        parser.error(ROTATED.missing)
    args.data = (args.data or args.work_dir / 'digits').resolve()
    size = ROTATED.defaults['size']
    try:
        make_digits(args.data, COUNTS, size, progress=True, **ROTATED.digits_of(size))
    except (DigitsError, OSError) as error:
        parser.error(f'--data: {error}')
    return args


def rows_of(args: argparse.Namespace) -> dict[str, list[Run]]:
    """The rows of the table, each the same training with every seed."""

    def row(stage: Stage, seeds: Sequence[int], method: str | None = None) -> list[Run]:
        folder = (method or stage.name).replace(' ', '').lower()
        return [
            Run.from_args(
                args,
                stage.name,
                args.work_dir / f'{folder}_seed{seed}',
                seed,
                teacher_checkpoint=None if method is None else checkpoint,
                method=method,
            )
            for seed in seeds
        ]

    (teacher,) = teachers = row(ROTATED.teacher, seeds=[0])
    checkpoint = teacher.work_dir / f'epoch_{ROTATED.defaults["teacher_epochs"]}.pth'
    rows = {'teacher': teachers, BASE: row(ROTATED.alone, args.seeds)}
    return rows | {name: row(ROTATED.distilled, args.seeds, name) for name in args.methods}


def ratios(students: Mapping[str, list[bccd.Job]]) -> str:
    """A Markdown table: how many times the AP of the student alone, by IoU threshold."""
    means = {
        name: [statistics.mean(values) for values in bccd.scores(jobs, THRESHOLDS)]
        for name, jobs in students.items()
    }
    lines = [f'| | {" | ".join(THRESHOLDS)} |', '|' + '---|' * (len(THRESHOLDS) + 1)]
    lines.append(f'| {BASE} | {" | ".join(f"{mean:.3f}" for mean in means[BASE])} |')
    for name in (name for name in means if name != BASE):
        cells = [
            f'{mean / base:.2f} x' if base else ''
            for mean, base in zip(means[name], means[BASE], strict=True)
        ]
        lines.append(f'| {name} | {" | ".join(cells)} |')
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.exit(main())
