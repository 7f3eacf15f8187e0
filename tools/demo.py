"""Distil a small student from a larger teacher and see what it brings.

    bash tools/demo.sh
    bash tools/demo.sh --rotated

makes a data set of handwritten digits, trains a teacher, a student alone, and the same student
distilled from the teacher, tests all three, and draws what they do; with --rotated, the digits are
turned and so are their boxes. The configs are those in configs/demo. Work that is done is not
repeated: an interrupted demo continues where it was when the same command is given again.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from command_line import image_size, positive, random_seed
from demo_kinds import HORIZONTAL, ROTATED, Kind, Stage
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

PICTURES = ('detections.png', 'regions.png', 'distributions.png')
STOCK = 'distilled, stock config'
COLUMNS = ('AP', 'AP50', 'AP75')  # beside the models
TEST_COST = 0.4  # of a batch, in training iterations of the student alone


class DemoError(Exception):
    """Something that the user can change; the message says what."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('--rotated', action='store_true',
        help="rotated boxes: MMRotate's RetinaNet with distributions, not GFL")  # fmt: skip
    add('--work-dir', type=Path, metavar='DIR',
        help=f'for checkpoints, logs, results and pictures ({_default("work_dir")})')  # fmt: skip
    add('--data', type=Path, metavar='DIR', help='for the digits (default: WORK_DIR/digits)')
    add('--epochs', type=positive, metavar='N',
        help=f'of both students ({_default("epochs")})')  # fmt: skip
    add('--teacher-epochs', type=positive, metavar='N',
        help=f'of the teacher ({_default("teacher_epochs")})')  # fmt: skip
    add('--train-images', type=positive, metavar='N',
        help=f'to train on ({_default("train_images")})')  # fmt: skip
    add('--test-images', type=positive, metavar='N',
        help=f'to test on ({_default("test_images")})')  # fmt: skip
    add('--size', type=image_size, metavar='WxH',
        help=f'of the images in pixels ({_default("size")})')  # fmt: skip
    add('--seed', type=random_seed, default=0, metavar='N',
        help='of data, weights and order (default: %(default)s)')  # fmt: skip
    add('--device', choices=['auto', 'cpu', 'cuda'], default='auto',
        help='what to compute on; auto takes a GPU if there is one (default: auto)')  # fmt: skip
    args = parser.parse_args()
    args.kind = ROTATED if args.rotated else HORIZONTAL
    for name, value in args.kind.defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.work_dir = args.work_dir.absolute()
    args.data = (args.data or args.work_dir / 'digits').absolute()
    return args


def _default(option: str) -> str:
    """For the help."""
    values = [kind.defaults[option] for kind in (HORIZONTAL, ROTATED)]
    horizontal, rotated = ('x'.join(map(str, v)) if isinstance(v, tuple) else v for v in values)
    return f'default: {horizontal}' + (f', rotated {rotated}' if rotated != horizontal else '')


def main() -> int:
    args = parse_args()
    console = Console(highlight=False)
    if args.device == 'cpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = ''  # read when torch starts
    try:
        if args.kind.missing:
            raise DemoError(args.kind.missing)
        make_folder(args.work_dir)
        results = Results(args.work_dir / 'results.json', options_of(args), args.kind)
        if not (results.complete and all((args.work_dir / name).is_file() for name in PICTURES)):
            make_data(args, console)
            with output_into(args.work_dir / 'demo.log', console):
                train_and_test(args, results, console)
        show(args, results, console)
    except DemoError as error:
        print(f'demo: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('demo: interrupted; the same command continues from here', file=sys.stderr)
        return 130
    return 0


def make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoError(f'--work-dir: {path} cannot be made ({error})') from error


# --- what is kept between runs -------------------------------------------------------------------


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """The options that decide the results."""
    names = ('rotated', 'epochs', 'teacher_epochs', 'train_images', 'test_images', 'size', 'seed')
    return json.loads(json.dumps({name: getattr(args, name) for name in names}))


class Results:
    """What was measured so far, kept in a file.

    Args:
        path: Of the file, which need not exist.
        options: The options that decide the results.
        kind: The demo.

    Raises:
        DemoError: The file's results were made with other options.
    """

    def __init__(self, path: Path, options: Mapping[str, Any], kind: Kind) -> None:
        self._path = path
        self._names = [*(stage.name for stage in kind.stages), STOCK]
        self._content = {'options': dict(options), 'results': {}}
        if path.is_file():
            self._content = _read_results(path)
            self._check_options(options)

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self._content['results'][name]

    def __contains__(self, name: str) -> bool:
        return name in self._content['results']

    @property
    def complete(self) -> bool:
        return all(name in self for name in self._names)

    def add(self, name: str, result: Mapping[str, Any]) -> None:
        self._content['results'][name] = dict(result)
        self.write()

    def write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix('.partial')
        partial.write_text(json.dumps(self._content, indent=2) + '\n')
        partial.replace(self._path)

    def _check_options(self, options: Mapping[str, Any]) -> None:
        made = self._content['options']
        other = [
            f'{key.replace("_", "-")}: {made.get(key)} there, {value} now'
            for key, value in options.items()
            if made.get(key) != value
        ]
        if other:
            raise DemoError(
                f'{self._path.parent} holds a demo with other options ({", ".join(other)}). Choose '
                'another --work-dir, or remove that folder.'
            )


def _read_results(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        return {'options': dict(content['options']), 'results': dict(content['results'])}
    except (ValueError, KeyError, TypeError):
        raise DemoError(f'{path} is not a result of this program. Remove it.') from None


def make_data(args: argparse.Namespace, console: Console) -> None:
    from make_digits import DigitsError, FolderError, make_digits

    start = time.monotonic()
    counts = dict(train=args.train_images, val=args.test_images // 4, test=args.test_images)
    try:
        make_digits(
            args.data,
            counts,
            args.size,
            args.seed,
            **args.kind.digits_of(args.size),
            progress=console.is_terminal and not args.data.exists(),
        )
    except FolderError as error:
        raise DemoError(f'{error} (--data names another folder).') from error
    except DigitsError as error:
        raise DemoError(f'{error}.') from error
    except OSError as error:
        raise DemoError(f'--data: {args.data} cannot be made ({error}).') from error
    if time.monotonic() - start > 1:
        console.print(f'digits: {sum(counts.values())} images in {args.data}', soft_wrap=True)


# --- training and testing ------------------------------------------------------------------------


@contextlib.contextmanager
def output_into(path: Path, console: Console):
    """Send everything that the frameworks print to a file; ``console`` writes where it wrote."""
    path.parent.mkdir(parents=True, exist_ok=True)
    console.file = console.file  # the stream itself, not whatever sys.stdout is later
    with (
        path.open('a', buffering=1) as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        yield


def train_and_test(args: argparse.Namespace, results: Results, console: Console) -> None:
    """Do what is not done yet."""
    console.print('loading the frameworks')
    os.environ['DIGITS_ROOT'] = str(args.data)  # the configs read it
    from ld_plugin.errors import ConfigError

    check_device(args.device)
    results.write()  # so that another run with other options does not take over the checkpoints
    work = [
        (stage, stage_config(stage, args))
        for stage in args.kind.stages
        if stage.name not in results
    ]
    try:
        with Bar(console, sum(total_cost(args, stage, cfg) for stage, cfg in work)) as bar:
            for stage, cfg in work:
                results.add(stage.name, run_stage(args.kind, stage, cfg, bar))
                bar.say(f'{stage.name}: {in_words(results[stage.name])}')
            if STOCK not in results:
                results.add(STOCK, test_in_stock_config(args, results))
    except ConfigError as error:
        raise DemoError(str(error)) from error
    console.print('drawing pictures')
    draw(args, results)


def check_device(device: str) -> None:
    import torch

    if device == 'cuda' and not torch.cuda.is_available():
        raise DemoError('--device cuda: torch sees no GPU here.')


def stage_config(stage: Stage, args: argparse.Namespace):
    """The stage's config with this run's paths and lengths, an ``mmengine.Config``."""
    from mmengine import Config

    cfg = Config.fromfile(stage.config_file)
    epochs = epochs_of(stage, args)
    cfg.work_dir = str(args.work_dir / stage.name)
    # runners of one process must differ in name, as they find their loggers by it
    cfg.experiment_name = f'demo_{stage.name}'
    cfg.resume = True  # from the latest checkpoint, if there is one
    cfg.randomness = dict(seed=args.seed)
    cfg.train_cfg.max_epochs = epochs
    cfg.param_scheduler[-1].end = epochs
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None  # tested once, at the end
    if stage is args.kind.distilled:
        cfg.model.teacher.checkpoint = str(checkpoint_of(args.kind.teacher, args))
    return cfg


def epochs_of(stage: Stage, args: argparse.Namespace) -> int:
    return args.teacher_epochs if stage is args.kind.teacher else args.epochs


def checkpoint_of(stage: Stage, args: argparse.Namespace) -> Path:
    return args.work_dir / stage.name / f'epoch_{epochs_of(stage, args)}.pth'


def run_stage(kind: Kind, stage: Stage, cfg: Any, bar: 'Bar') -> dict[str, Any]:
    """Train and test; returns the row of the table."""
    from ld_plugin.launch import build_runner

    bar.title(f'{stage.name}: starting')
    runner = build_runner(cfg)
    progress = make_hook(stage, bar)
    runner.register_hook(progress)
    runner.train()
    return dict(
        test(kind, runner),
        parameters=sum(p.numel() for p in runner.model.parameters()),
        seconds=round(runner.message_hub.get_info('training_seconds')),
    )


def test_in_stock_config(args: argparse.Namespace, results: Results) -> dict[str, Any]:
    """Test the distilled weights in the config of the student alone, where no plugin is involved.

    Raises:
        RuntimeError: The weights are not the stock detector's, or score differently there.
    """
    from ld_plugin.detectors.checkpoint import load_checkpoint_file
    from ld_plugin.launch import build_runner

    cfg = stage_config(args.kind.alone, args)
    cfg.resume = False
    cfg.experiment_name = 'demo_stock'
    cfg.work_dir = str(args.work_dir / 'stock')
    runner = build_runner(cfg)
    checkpoint = load_checkpoint_file(checkpoint_of(args.kind.distilled, args))
    runner.model.load_state_dict(checkpoint['state_dict'], strict=True)
    found = test(args.kind, runner)
    expected = {key: results[args.kind.distilled.name][key] for key in found}
    if found != expected:
        raise RuntimeError(f'distilled: {expected}, but in the stock config: {found}')
    return found


def test(kind: Kind, runner: Any) -> dict[str, float]:
    """The scores that the kind of demo names, from 0 to 1."""
    with kind.evaluating():
        metrics = runner.test()
    return {name: max(float(metrics.get(key, 0)), 0) for name, key in kind.metrics.items()}


def in_words(result: Mapping[str, Any]) -> str:
    return f'AP {100 * result["AP"]:.1f} after {clock(result["seconds"])}'


# --- progress -------------------------------------------------------------------------------------


def total_cost(args: argparse.Namespace, stage: Stage, cfg: Any) -> float:
    """Of training and testing, in training iterations of the student alone."""
    iterations = -(-args.train_images // cfg.train_dataloader.batch_size)
    test_iterations = -(-args.test_images // cfg.test_dataloader.batch_size)
    return stage.cost * cfg.train_cfg.max_epochs * iterations + TEST_COST * test_iterations


class Bar:
    """One bar over all trainings, with the time left; lines instead where there is no terminal.

    The time left follows from the speed since the start of this process, so that what an earlier
    one has done does not flatter it.
    """

    def __init__(self, console: Console, total: float) -> None:
        self._console = console
        self._total = total
        self._done = self._skipped = 0.0
        self._start = time.monotonic()
        self._progress = Progress(
            TextColumn('{task.description:<28}'),
            BarColumn(),
            TextColumn('{task.percentage:>3.0f} %  {task.fields[left]}'),
            console=console,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._progress.add_task('', total=total, left='')

    def __enter__(self) -> 'Bar':
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        if self._console.is_terminal:
            self._progress.stop()

    def title(self, text: str) -> None:
        self._progress.update(self._task, description=text)

    def advance(self, cost: float) -> None:
        self._done += cost
        self._show()

    def skip(self, cost: float) -> None:
        """Count what an earlier process has done."""
        self._skipped += cost
        self._show()

    def say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def say_unless_visible(self, text: str) -> None:
        if not self._console.is_terminal:
            self.say(f'{text}, {self._left()}')

    def _show(self) -> None:
        self._progress.update(self._task, completed=self._done + self._skipped, left=self._left())

    def _left(self) -> str:
        if not self._done:
            return ''
        speed = self._done / (time.monotonic() - self._start)
        return f'{clock((self._total - self._done - self._skipped) / speed)} left'


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    return f'{minutes}:{seconds:02} min'


def make_hook(stage: Stage, bar: Bar):
    """A hook that moves the bar and counts the seconds of training over interruptions."""
    from mmengine.hooks import Hook

    class ProgressHook(Hook):
        def before_train(self, runner) -> None:
            self._before = runner.message_hub.runtime_info.get('training_seconds', 0)
            self._start = time.monotonic()
            bar.skip(stage.cost * runner.iter)

        def before_train_epoch(self, runner) -> None:
            bar.title(f'{stage.name}: epoch {runner.epoch + 1} of {runner.max_epochs}')

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
            bar.advance(stage.cost)

        def after_train_epoch(self, runner) -> None:
            # stored in the checkpoint, which is written after this
            seconds = self._before + time.monotonic() - self._start
            runner.message_hub.update_info('training_seconds', seconds)
            bar.say_unless_visible(f'{stage.name}: epoch {runner.epoch + 1} of {runner.max_epochs}')

        def before_test(self, runner) -> None:
            bar.title(f'{stage.name}: testing')

        def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
            bar.advance(TEST_COST)

    return ProgressHook()


# --- what comes out -------------------------------------------------------------------------------


def draw(args: argparse.Namespace, results: Results) -> None:
    """Draw the pictures from the checkpoints."""
    from demo_pictures import draw_pictures
    from mmengine.registry import init_default_scope

    kind, cfg = args.kind, stage_config(args.kind.alone, args)
    init_default_scope(cfg.default_scope)
    models = {stage.name: load_model(stage, args) for stage in kind.stages}
    titles = {s.name: f'{s.name}, AP {100 * results[s.name]["AP"]:.1f}' for s in kind.stages}
    paths = dict(zip(PICTURES, (args.work_dir / name for name in PICTURES), strict=True))
    draw_pictures(paths, models, titles, cfg)


def load_model(stage: Stage, args: argparse.Namespace):
    from mmengine.registry import MODELS

    from ld_plugin.detectors.checkpoint import load_checkpoint_file

    model = MODELS.build(stage_config(stage, args).model)
    model.load_state_dict(load_checkpoint_file(checkpoint_of(stage, args))['state_dict'])
    return model.eval()


def show(args: argparse.Namespace, results: Results, console: Console) -> None:
    """Print the tables, and where everything is."""
    kind = args.kind
    console.print(models_table(args, results))
    if set(kind.metrics) > set(COLUMNS):
        console.print(thresholds_table(kind, results))
    gain = 100 * (results[kind.distilled.name]['AP'] - results[kind.alone.name]['AP'])
    lines = [
        f'Distillation: {gain:+.1f} AP for the same student, schedule and seed.',
        f'The distilled checkpoint in the stock config: AP {100 * results[STOCK]["AP"]:.1f}, the '
        f'same; {kind.needs}.',
        f'In {args.work_dir}: {", ".join(PICTURES)}, results.json',
    ]
    console.print('\n'.join(lines), soft_wrap=True)


def models_table(args: argparse.Namespace, results: Results) -> Table:
    """A row per model."""
    table = Table(title=f'{args.test_images} test images', title_justify='left')
    table.add_column('model')
    for column in ('', 'epochs', *COLUMNS, 'params', 'training'):
        table.add_column(column, justify='right')
    for stage in args.kind.stages:
        result = results[stage.name]
        table.add_row(
            stage.name,
            stage.model,
            str(epochs_of(stage, args)),
            *(f'{100 * result[key]:.1f}' for key in COLUMNS),
            f'{result["parameters"] / 1e6:.1f} M',
            clock(result['seconds']),
        )
    return table


def thresholds_table(kind: Kind, results: Results) -> Table:
    """A row per model: AP at every IoU threshold, of which AP is the mean."""
    names = sorted(name for name in kind.metrics if name != 'AP')
    # narrow, for a terminal of 80 columns
    table = Table(title='at every IoU', title_justify='left', pad_edge=False, collapse_padding=True)
    table.add_column('')
    for column in names:
        table.add_column(column, justify='right')
    for stage in kind.stages:
        found = results[stage.name]
        table.add_row(stage.name, *(f'{100 * found[name]:.1f}' for name in names))
    return table


if __name__ == '__main__':
    sys.exit(main())
