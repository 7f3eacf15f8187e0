"""Measure localization distillation on BCCD: train, evaluate, and print the tables of the README.

    python tools/benchmark_bccd.py data/bccd

Trains the teacher of ``configs/bccd`` if it is not there yet, then every variant with every seed. A
run that is complete is not repeated and an interrupted one continues, so the same command can be
given again at any time. BCCD (https://github.com/Shenggan/BCCD_Dataset) has PASCAL VOC's layout:
the folder holds Annotations, ImageSets/Main and JPEGImages.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from command_line import Distinct, folder, positive, random_seed
from mmengine import Config

METRICS = 'metrics.json'
OPTIONS = 'options.json'
SEEDS = (0, 1, 2)
CONFIGS = Path(__file__).resolve().parents[1] / 'configs' / 'bccd'
TEACHER = 'gfl_r34_fpn_36e_bccd'
VARIANTS = {
    'alone': 'gfl_r18_fpn_12e_bccd',
    'main LD': 'ld-main_r18-gfl-r34_fpn_12e_bccd',
    'main LD + VLR LD': 'ld-vlr_r18-gfl-r34_fpn_12e_bccd',
    'main LD + main KD': 'ld-kd_r18-gfl-r34_fpn_12e_bccd',
    'main LD + main KD + VLR LD': 'ld_r18-gfl-r34_fpn_12e_bccd',
    'main LD + 0.1 x main KD + VLR LD': 'ld-kd1_r18-gfl-r34_fpn_12e_bccd',
}
BASE = 'main LD'  # what the others are compared with, seed by seed
#: what can run in bfloat16, and the attributes of detectors that hold it
PARTS = {'backbone': ('backbone',), 'neck': ('neck',), 'head': ('bbox_head', 'rpn_head')}
#: titles, and the IoU thresholds that are averaged
Columns = Mapping[str, Sequence[int]]
# glibc gives large blocks back to the system and asks for them again in every step, which is 5 to
# 10 % of a step on a processor; a training that keeps them computes the same
KEEP_MEMORY = {'MALLOC_MMAP_THRESHOLD_': str(2**30), 'MALLOC_TRIM_THRESHOLD_': str(2**33)}
# AP of COCO, and the mean over fewer thresholds
COLUMNS: Columns = {
    'AP': [50, 55, 60, 65, 70, 75, 80, 85, 90, 95],
    'AP50': [50],
    'AP75': [75],
    'AP(50,60,70,75,80)': [50, 60, 70, 75, 80],
}


@dataclasses.dataclass(frozen=True)
class Job:
    """One training, with its evaluation.

    Attributes:
        config: Name of a config in ``configs/bccd``.
        seed: Of weights, order and flips.
        data: BCCD's folder.
        work_dir: Where checkpoints, logs, ``options.json`` and ``metrics.json`` go.
        teacher_checkpoint: None for the teacher itself and the student alone.
        threads: Of this training.
        bf16: Which of the PARTS run in bfloat16.
    """

    config: str
    seed: int
    data: str
    work_dir: Path
    teacher_checkpoint: Path | None
    threads: int
    bf16: tuple[str, ...] = ()

    @classmethod
    def from_args(
        cls, args: argparse.Namespace, config: str, work_dir: Path, seed: int, **others: Any
    ) -> 'Job':
        """One on the data, and with the threads and the precision, that the command line says.

        Args:
            args: The command line.
            config, work_dir, seed: As above.
            others: Further attributes; without a teacher's checkpoint there is no teacher.
        """
        threads = max(1, (os.cpu_count() or 1) // args.jobs)
        others = dict(teacher_checkpoint=None) | others
        common = dict(data=str(args.data), threads=threads, bf16=tuple(args.bf16))
        return cls(config=config, work_dir=work_dir, seed=seed, **common, **others)

    @property
    def metrics_file(self) -> Path:
        return self.work_dir / METRICS

    @property
    def options(self) -> dict[str, Any]:
        """What decides the results, and is not in the name of the folder."""
        return dict(data=self.data, bf16=sorted(self.bf16))

    def write_options(self) -> None:
        self.work_dir.mkdir(parents=True, exist_ok=True)
        (self.work_dir / OPTIONS).write_text(json.dumps(self.options))

    def check_options(self) -> None:
        """Stop the program if its folder holds a run with other options."""
        file = self.work_dir / OPTIONS
        if file.is_file() and (made := json.loads(file.read_text())) != self.options:
            raise SystemExit(
                f'{self.work_dir} holds a run with other options: {made}, now {self.options}. '
                'Choose another --work-dir, or delete it.'
            )

    @property
    def can_start(self) -> bool:
        """Whether its teacher, if it has one, is complete."""
        teacher = self.teacher_checkpoint
        return teacher is None or (teacher.parent / METRICS).is_file()

    def read_config(self) -> Config:
        """What is trained."""
        cfg = Config.fromfile(CONFIGS / f'{self.config}.py')
        if self.teacher_checkpoint is not None:
            cfg.model.teacher.checkpoint = str(self.teacher_checkpoint)
            cfg.model.teacher.precision = 'bf16' if self.bf16 else 'fp32'
        return cfg

    def test(self, runner: Any) -> dict[str, float]:
        """The metrics of the model that a runner has trained."""
        return runner.test()


def main() -> int:
    args = parse_args()
    os.environ['BCCD_ROOT'] = str(args.data)  # the configs read it
    teacher = Job.from_args(args, TEACHER, args.work_dir / TEACHER, seed=0)
    checkpoint = args.work_dir / TEACHER / 'epoch_36.pth'
    students = {
        name: [
            Job.from_args(
                args, VARIANTS[name], args.work_dir / f'{VARIANTS[name]}_seed{seed}', seed
            )
            for seed in args.seeds
        ]
        for name in args.variants
    }
    distilled = [
        dataclasses.replace(job, teacher_checkpoint=checkpoint)
        for jobs_of_one_seed in zip(*(students[n] for n in students if n != 'alone'), strict=True)
        for job in jobs_of_one_seed
    ]
    run_all([teacher, *students.get('alone', []), *distilled], args.jobs)
    print(table({'teacher': [teacher]} | students))
    if len(args.seeds) > 1 and BASE in students:
        print(f'\n{gains(students)}')
    return 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--variants', nargs='+', default=list(VARIANTS), choices=list(VARIANTS))
    return parse_common_args(parser, work_dir='work_dirs/bccd')


def parse_common_args(
    parser: argparse.ArgumentParser, work_dir: str, seeds: Sequence[int] | None = SEEDS
) -> argparse.Namespace:
    """Parse, with the options of every measurement on BCCD."""
    parser.add_argument('data', type=Path, help="BCCD's folder")
    add_common_arguments(parser, work_dir, seeds)
    args = parser.parse_args()
    args.data = args.data.resolve()
    if not (args.data / 'ImageSets' / 'Main' / 'train.txt').is_file():
        parser.error(
            f'{args.data}: not a folder in PASCAL VOC layout, ImageSets/Main/train.txt is missing'
        )
    return args


def add_common_arguments(
    parser: argparse.ArgumentParser, work_dir: str, seeds: Sequence[int] | None = SEEDS
) -> None:
    """Add the options of every measurement with several seeds."""
    parser.add_argument('--work-dir', type=folder, default=Path(work_dir))
    parser.add_argument('--seeds', type=random_seed, nargs='+', action=Distinct, default=seeds)
    parser.add_argument('--jobs', type=positive, default=1, help='trainings at the same time')
    parser.add_argument(
        '--bf16',
        nargs='+',
        default=(),
        choices=list(PARTS),
        metavar='PART',
        help=f'run these of {", ".join(PARTS)} in bfloat16, and the whole teacher while it '
        'teaches: faster on processors that have it (default: none)',
    )


def run_all(jobs: Sequence[Job], at_once: int) -> None:
    """Run what is not complete yet, in processes of their own.

    Args:
        jobs: With every student's teacher. What needs none comes first, and a student when its
            teacher is complete.
        at_once: Processes.

    Raises:
        SystemExit: A folder holds a run with other options.
        ValueError: A student's teacher is neither complete nor among the jobs.
    """
    for job in jobs:
        job.check_options()
    waiting = [job for job in jobs if not job.metrics_file.is_file()]
    waiting.sort(key=lambda job: job.teacher_checkpoint is not None)
    running: set[Future[str]] = set()
    for name, value in KEEP_MEMORY.items():
        os.environ.setdefault(name, value)  # the processes read it when they start
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(at_once, mp_context=context) as pool:
        while waiting or running:
            free = at_once - len(running)
            for job in [job for job in waiting if job.can_start][:free]:
                waiting.remove(job)
                running.add(pool.submit(run, job))
            if not running:
                raise ValueError(f'{waiting[0].work_dir}: nothing trains its teacher')
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                print(f'done: {future.result()}', file=sys.stderr, flush=True)


def run(job: Job) -> str:
    """Train and evaluate, and write ``metrics.json``; returns the work dir."""
    import torch

    import ld_plugin  # noqa: F401  registers the detectors
    from ld_plugin.launch import build_runner

    torch.set_num_threads(job.threads)
    job.write_options()
    cfg = job.read_config()
    cfg.work_dir = str(job.work_dir)
    cfg.resume = True  # from the last checkpoint, if there is one
    cfg.randomness = dict(seed=job.seed)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None  # evaluated once, below
    runner = build_runner(cfg)
    for name, module in runner.model.named_children():
        if any(name in PARTS[part] for part in job.bf16):
            use_bf16(module)
    runner.train()
    metrics = {key.split('/')[-1]: float(value) for key, value in job.test(runner).items()}
    for loop in (runner.train_loop, runner.test_loop):
        loop.dataloader = None  # ends its workers; garbage collection would wait 5 s for each
    temporary = job.metrics_file.with_suffix('.tmp')
    temporary.write_text(json.dumps(metrics, indent=1))
    temporary.replace(job.metrics_file)
    return str(job.work_dir)


def use_bf16(module: Any) -> None:
    """Autocast a module of the detector; decoding boxes and losses need more than its digits."""
    import torch

    device = next(module.parameters()).device.type
    module.forward = torch.autocast(device, torch.bfloat16)(module.forward)
    module.register_forward_hook(lambda module, args, outputs: in_float32(outputs))


def in_float32(outputs: Any) -> Any:
    """A tensor, or what tuples and lists have of them."""
    if isinstance(outputs, list | tuple):
        return type(outputs)(in_float32(output) for output in outputs)
    return outputs.float()


def table(rows: dict[str, list[Job]], columns: Columns = COLUMNS) -> str:
    """A Markdown table: mean over the seeds, and their standard deviation."""
    lines = [f'| model | seeds | {" | ".join(columns)} |', '|' + '---|' * (len(columns) + 2)]
    for name, jobs in rows.items():
        cells = [cell(values) for values in scores(jobs, columns)]
        lines.append(f'| {name} | {len(jobs)} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def gains(students: dict[str, list[Job]], base: str = BASE, columns: Columns = COLUMNS) -> str:
    """A Markdown table: what each variant is above another one, seed by seed.

    Distilled students of a seed begin with the same weights and see the same batches, so their
    difference varies less than they do.
    """
    lines = [f'| over {base} | {" | ".join(columns)} |', '|' + '---|' * (len(columns) + 1)]
    for name in (name for name in students if name != base):
        pairs = zip(scores(students[base], columns), scores(students[name], columns), strict=True)
        cells = [
            cell([after - before for before, after in zip(*pair, strict=True)], sign='+')
            for pair in pairs
        ]
        lines.append(f'| {name} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def scores(jobs: list[Job], columns: Columns) -> list[list[float]]:
    """For each of the columns, the value of every seed."""
    runs = [json.loads(job.metrics_file.read_text()) for job in jobs]
    return [
        [statistics.mean(metrics[f'AP{t}'] for t in thresholds) for metrics in runs]
        for thresholds in columns.values()
    ]


def cell(values: list[float], sign: str = '') -> str:
    mean = f'{statistics.mean(values):{sign}.3f}'
    return f'{mean} ± {statistics.stdev(values):.3f}' if len(values) > 1 else mean


if __name__ == '__main__':
    sys.exit(main())
