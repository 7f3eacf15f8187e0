"""`tools/demo.py`: small as it can be, from start to end, and interrupted."""

import argparse
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import demo as demo_program
import demo_kinds
import matplotlib.image
import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.structures import InstanceData
from rich.console import Console

from ld_plugin.packages import how_to_install_mmrotate

ROOT = Path(__file__).parents[1]
DEMO = [sys.executable, str(ROOT / 'tools' / 'demo.py')]
OPTIONS = [
    *('--epochs', '1', '--teacher-epochs', '3', '--train-images', '8', '--test-images', '4'),
    *('--size', '96x96', '--device', 'cpu'),
]
# threads that wait for each other are slow where other programs run too
ENVIRONMENT = os.environ | {'OMP_NUM_THREADS': '1'}


def _run(*options: str, folder: Path) -> subprocess.CompletedProcess:
    command = [*DEMO, '--work-dir', str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)


def _results(folder: Path) -> dict[str, dict]:
    return json.loads((folder / 'results.json').read_text())['results']


@pytest.fixture(scope='module')
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A demo killed while its teacher trained, then run again: its folder and what it printed."""
    folder = tmp_path_factory.mktemp('demo') / 'work'
    process = subprocess.Popen(
        [*DEMO, '--work-dir', str(folder), *OPTIONS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    try:
        while not (folder / 'teacher' / 'last_checkpoint').is_file():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
    finally:
        process.kill()
        process.communicate()
    assert _results(folder) == {}
    run = _run(*OPTIONS, folder=folder)
    assert run.returncode == 0, run.stderr
    return folder, run.stdout


def test_continues_after_the_last_whole_epoch(demo: tuple[Path, str]) -> None:
    _, output = demo
    assert 'teacher: epoch 1 of 3' not in output
    assert 'teacher: epoch 3 of 3' in output
    assert 'images in' not in output, 'the digits were made again'


def test_ends_with_a_table(demo: tuple[Path, str]) -> None:
    folder, output = demo
    results = _results(folder)
    assert list(results) == ['teacher', 'alone', 'distilled', 'distilled, stock config']
    for name in ('teacher', 'alone', 'distilled'):
        (row,) = [line for line in output.splitlines() if line.startswith(f'│ {name}')]
        assert f'{results[name]["parameters"] / 1e6:.1f} M' in row
        assert all(0 <= results[name][key] <= 1 for key in ('AP', 'AP50', 'AP75'))
    assert results['alone']['parameters'] == results['distilled']['parameters']
    assert results['teacher']['parameters'] > 2 * results['alone']['parameters']
    assert results['distilled'].items() >= results['distilled, stock config'].items()


@pytest.mark.parametrize('name', ['detections.png', 'regions.png', 'distributions.png'])
def test_draws_pictures(demo: tuple[Path, str], name: str) -> None:
    folder, output = demo
    picture = matplotlib.image.imread(folder / name)
    assert name in output
    assert min(picture.shape[:2]) > 200
    assert picture[..., :3].std() > 0.05, 'an empty picture'


def test_a_second_run_does_nothing_again(demo: tuple[Path, str]) -> None:
    folder, output = demo
    before = {path: path.stat().st_mtime_ns for path in folder.rglob('*')}
    again = _run(*OPTIONS, folder=folder)
    assert again.returncode == 0, again.stderr
    assert again.stdout == output[output.index('4 test images') :]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob('*')} == before


@pytest.mark.parametrize(
    ('options', 'difference'),
    [
        (['--epochs', '2'], 'epochs: 1 there, 2 now'),
        (['--teacher-epochs', '2'], 'teacher-epochs: 3 there, 2 now'),
        (['--train-images', '9'], 'train-images: 8 there, 9 now'),
        (['--test-images', '5'], 'test-images: 4 there, 5 now'),
        (['--size', '96x128'], 'size: [96, 96] there, [96, 128] now'),
        (['--seed', '1'], 'seed: 0 there, 1 now'),
    ],
)
def test_refuses_results_of_other_options(
    demo: tuple[Path, str], options: list[str], difference: str
) -> None:
    folder, _ = demo
    run = _run(*OPTIONS, *options, folder=folder)
    assert run.returncode == 2
    assert f'({difference})' in run.stderr
    assert '--work-dir' in run.stderr


def test_refuses_a_folder_of_something_else_for_the_data(tmp_path: Path) -> None:
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'notes.txt').write_text('mine')
    run = _run(*OPTIONS, '--data', str(tmp_path / 'data'), folder=tmp_path / 'work')
    assert run.returncode == 2
    assert '--data' in run.stderr
    assert (tmp_path / 'data' / 'notes.txt').read_text() == 'mine'


def test_says_that_the_data_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    run = _run(*OPTIONS, '--data', str(tmp_path / 'file' / 'data'), folder=tmp_path / 'work')
    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    assert line.startswith(f'demo: --data: {tmp_path / "file" / "data"} cannot be made')


@pytest.mark.parametrize(
    ('option', 'value', 'message'),
    [
        ('--size', '40x96', 'both sides must be from 96 to 4096 px.'),
        ('--seed', '-1', 'argument --seed: found -1, expected 0 to 4294967295'),
        ('--seed', str(2**32), 'argument --seed: found 4294967296, expected 0 to 4294967295'),
    ],
)
def test_refuses_what_cannot_be_made(option: str, value: str, message: str, tmp_path: Path) -> None:
    run = _run(*OPTIONS, option, value, folder=tmp_path)
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].endswith(message)
    assert not list(tmp_path.iterdir())


def test_stops_if_the_stock_config_scores_otherwise(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    path = folder / 'results.json'
    content = path.read_text()
    changed = json.loads(content)
    del changed['results']['distilled, stock config']
    changed['results']['distilled']['AP'] = 0.987
    path.write_text(json.dumps(changed))
    run = _run(*OPTIONS, folder=folder)
    path.write_text(content)
    assert run.returncode != 0
    assert '0.987' in run.stderr and 'in the stock config' in run.stderr


@pytest.fixture(scope='module')
def rotated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A demo of rotated boxes: its folder and what it printed."""
    pytest.importorskip('mmrotate')
    folder = tmp_path_factory.mktemp('rotated') / 'work'
    run = _run('--rotated', *OPTIONS, '--teacher-epochs', '1', folder=folder)
    assert run.returncode == 0, run.stderr
    return folder, run.stdout


def test_rotated_boxes_are_scored_at_every_threshold(rotated: tuple[Path, str]) -> None:
    folder, output = rotated
    results = _results(folder)
    assert list(results) == ['teacher', 'alone', 'distilled', 'distilled, stock config']
    names = [f'AP{threshold}' for threshold in range(50, 100, 5)]
    lines = output.splitlines()
    assert any(all(name in line for name in names) for line in lines)
    for name in ('teacher', 'alone', 'distilled'):
        assert len([line for line in lines if line.startswith(f'│ {name}')]) == 1
        assert len([line for line in lines if line.startswith(f'│{name}')]) == 1
        scores = [results[name][key] for key in names]
        assert results[name]['AP'] == pytest.approx(sum(scores) / 10, abs=1e-3)
    assert results['distilled'].items() >= results['distilled, stock config'].items()


@pytest.mark.parametrize('name', ['detections.png', 'regions.png', 'distributions.png'])
def test_draws_pictures_of_rotated_boxes(rotated: tuple[Path, str], name: str) -> None:
    picture = matplotlib.image.imread(rotated[0] / name)
    assert min(picture.shape[:2]) > 200
    assert picture[..., :3].std() > 0.05, 'an empty picture'


def test_says_what_rotated_boxes_need(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    import demo

    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    monkeypatch.setattr(sys, 'argv', ['demo.py', '--rotated', '--work-dir', str(tmp_path)])
    assert demo.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'no mmrotate' in line and how_to_install_mmrotate('.') in line
    assert not list(tmp_path.iterdir())


def _arguments(monkeypatch: pytest.MonkeyPatch, *options: str) -> argparse.Namespace:
    monkeypatch.setattr(sys, 'argv', ['demo.py', *options])
    return demo_program.parse_args()


def test_a_graphics_card_that_is_not_there() -> None:
    with pytest.raises(demo_program.DemoError, match='--device cuda: torch sees no GPU'):
        demo_program.check_device('cuda')


@pytest.mark.parametrize('kind', [demo_kinds.HORIZONTAL, demo_kinds.ROTATED])
def test_scores_under_their_names(kind: demo_kinds.Kind) -> None:
    scores = {'coco/bbox_mAP': 0.2, 'coco/bbox_mAP_50': 0.3, 'coco/bbox_mAP_75': -1}
    if kind is demo_kinds.ROTATED:
        pytest.importorskip('mmrotate')
        scores = {'dota/mAP': 0.2, **{f'dota/AP{t}': t / 100 for t in range(50, 100, 5)}}
    found = demo_program.test(kind, SimpleNamespace(test=lambda: scores))
    assert found['AP'] == 0.2
    if kind is demo_kinds.HORIZONTAL:
        assert (found['AP50'], found['AP75']) == (0.3, 0)  # nothing is found of no object
    else:
        assert all(found[f'AP{t}'] == t / 100 for t in range(50, 100, 5))


def test_heights_of_digits_are_shares_of_the_shorter_side() -> None:
    assert demo_kinds.HORIZONTAL.digits_of((300, 100))['min_height'] == 22
    assert demo_kinds.HORIZONTAL.digits_of((300, 100))['max_angle'] == 20


def test_configs_of_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = ('--seed', '7', '--epochs', '2', '--teacher-epochs', '3')
    args = _arguments(monkeypatch, '--work-dir', str(tmp_path), *options)
    for stage in args.kind.stages:
        cfg = demo_program.stage_config(stage, args)
        epochs = 3 if stage is args.kind.teacher else 2
        assert cfg.train_cfg.max_epochs == cfg.param_scheduler[-1].end == epochs
        assert (cfg.randomness.seed, cfg.resume) == (7, True)
        assert cfg.work_dir == str(tmp_path / stage.name)
    assert cfg.model.teacher.checkpoint == str(tmp_path / 'teacher' / 'epoch_3.pth')


def test_table_of_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    args = _arguments(monkeypatch, '--work-dir', str(tmp_path), '--teacher-epochs', '9')
    results = demo_program.Results(tmp_path / 'results.json', {}, args.kind)
    for number, name in enumerate(('teacher', 'alone', 'distilled', demo_program.STOCK)):
        scores = dict(AP=0.5 - number / 8, AP50=0.6, AP75=0.4)
        results.add(name, scores | dict(parameters=2_500_000, seconds=65))
    console = Console(file=io.StringIO(), width=120)
    demo_program.show(args, results, console)
    lines = console.file.getvalue().splitlines()
    (header,) = [line for line in lines if 'AP75' in line]
    columns = ['model', '', 'epochs', 'AP', 'AP50', 'AP75', 'params', 'training']
    assert [cell.strip() for cell in header.strip('┃').split('┃')] == columns
    (row,) = [line for line in lines if line.startswith('│ teacher')]
    cells = [cell.strip() for cell in row.strip('│').split('│')]
    assert cells[2:] == ['9', '50.0', '60.0', '40.0', '2.5 M', '1:05 min']
    assert 'Distillation: -12.5 AP for the same student, schedule and seed.' in lines
    assert any('in the stock config: AP 12.5, the same' in line for line in lines)


def test_table_of_thresholds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    args = _arguments(monkeypatch, '--rotated', '--work-dir', str(tmp_path))
    results = demo_program.Results(tmp_path / 'results.json', {}, args.kind)
    for number, name in enumerate(('teacher', 'alone', 'distilled')):
        results.add(name, dict.fromkeys(args.kind.metrics, 0.1 * number))
    console = Console(file=io.StringIO(), width=120)
    console.print(demo_program.thresholds_table(args.kind, results))
    rows = [line.strip('│').split('│') for line in console.file.getvalue().splitlines()]
    found = {row[0].strip(): {cell.strip() for cell in row[1:]} for row in rows}
    assert (found['teacher'], found['alone'], found['distilled']) == ({'0.0'}, {'10.0'}, {'20.0'})


def test_time_left_goes_by_what_this_process_did(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter((0, 10, 10))
    monkeypatch.setattr(demo_program, 'time', SimpleNamespace(monotonic=lambda: next(seconds)))
    console = Console(file=io.StringIO(), width=120)
    bar = demo_program.Bar(console, total=100)
    bar.skip(50)
    bar.advance(10)
    bar.say_unless_visible('half')  # in 10 s 10 of the 50 that an earlier one left
    assert console.file.getvalue() == 'half, 0:40 min left\n'


def test_training_time_goes_on_after_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = MessageHub('demo')
    hub.update_info('training_seconds', 100)
    runner = SimpleNamespace(message_hub=hub, iter=5, epoch=1, max_epochs=2)
    bar = Mock()
    hook = demo_program.make_hook(demo_kinds.HORIZONTAL.distilled, bar)
    hook.before_train(runner)
    bar.skip.assert_called_once_with(1.5 * 5)
    hook.after_train_epoch(runner)
    assert 100 <= hub.get_info('training_seconds') < 110


def test_help_names_the_options() -> None:
    run = subprocess.run([*DEMO, '--help'], capture_output=True, text=True, check=True)
    for option in ('--work-dir', '--data', '--epochs', '--teacher-epochs', '--seed', '--device'):
        assert option in run.stdout
    assert '--rotated' in run.stdout


def test_pictures_are_red_green_blue() -> None:
    from demo_pictures import picture_of

    item = dict(inputs=torch.tensor([1, 2, 3], dtype=torch.uint8).view(3, 1, 1))  # as OpenCV reads
    assert picture_of(item).tolist() == [[[3, 2, 1]]]


def test_distances_of_the_ground_truth_in_strides() -> None:
    from demo_pictures import _distances

    prior, box = torch.tensor([0.0, 0, 64, 64]), torch.tensor([24.0, 16, 48, 72])
    assert _distances(None, prior, 8, box).tolist() == [1, 2, 2, 5]


def test_the_ground_truth_of_a_position_is_the_nearest() -> None:
    from demo_pictures import _nearest

    truth = torch.tensor([[80.0, 80, 90, 90], [10, 10, 30, 30], [200, 0, 210, 10]])
    assert _nearest(torch.tensor([0.0, 0, 64, 64]), truth) == 1


def test_a_rotated_detection_is_compared_as_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    from demo_pictures import match

    box = torch.tensor([[50.0, 50, 40, 20, 0.3]])
    quarter = torch.tensor([[0, 0, 0, 0, torch.pi / 2]])
    label = torch.tensor([1])
    assert match(InstanceData(bboxes=box, labels=label), box, label) == ([pytest.approx(1)], [])
    across = InstanceData(bboxes=box + quarter, labels=label)
    assert match(across, box, label) == ([0.0], [0])  # a third in common


def test_a_detection_counts_for_one_object_of_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    from demo_pictures import match

    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]])
    labels = torch.tensor([1, 2, 3])
    found = InstanceData(
        # exact; the same again; half of the second; the third as another digit
        bboxes=torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 26], [40, 40, 50, 50]]),
        labels=torch.tensor([1, 1, 2, 1]),
    )
    quality, missed = match(found, boxes, labels)
    assert quality == pytest.approx([1.0, 0.0, 0.6, 0.0])
    assert missed == [2]
