"""`tools/demo.py`: small as it can be, from start to end, and interrupted."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.image
import pytest
import torch
from mmengine.structures import InstanceData

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


def test_refuses_results_of_other_options(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    run = _run(*OPTIONS, '--epochs', '2', folder=folder)
    assert run.returncode == 2
    assert 'epochs: 1 there, 2 now' in run.stderr
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
    assert 'no mmrotate' in line and "pip install '.[rotated]'" in line
    assert not list(tmp_path.iterdir())


def test_help_names_the_options() -> None:
    run = subprocess.run([*DEMO, '--help'], capture_output=True, text=True, check=True)
    for option in ('--work-dir', '--data', '--epochs', '--teacher-epochs', '--seed', '--device'):
        assert option in run.stdout
    assert '--rotated' in run.stdout


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
