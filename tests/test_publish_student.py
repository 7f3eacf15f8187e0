"""The published checkpoint is one of the stock detector."""

import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import publish_student
import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.registry import init_default_scope
from torch import nn

from ld_plugin.recipes import imitation_inside_gt, ld_kd
from tests.models import TinyDataset, batch, build, tiny_distilled, tiny_gfl, tiny_runner

TOOL = Path(__file__).parents[1] / 'tools' / 'publish_student.py'


@dataclass
class Done:
    """What the program left behind."""

    message: str  # why it stopped, or nothing
    stdout: str


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Done]:
    """Run the program here: starting Python and importing everything again takes seconds."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, arguments)])
        message = ''
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
        except SystemExit as stop:
            message = str(stop.code)
        return Done(message, capsys.readouterr().out)

    return run


def predictions(model: nn.Module) -> list:
    model.bbox_head.test_cfg.score_thr = 0  # so little training makes no score above the usual one
    data = model.data_preprocessor(batch(), training=False)
    with torch.no_grad():
        return [s.pred_instances for s in model.eval()(**data, mode='predict')]


@pytest.fixture(scope='module')
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A training checkpoint with adapters and averaged weights, and the averaged model."""
    init_default_scope('mmdet')  # this fixture runs before those of a single test
    folder = tmp_path_factory.mktemp('training')
    teacher = dict(config=dict(model=tiny_gfl(channels=64)), checkpoint=None)
    model = build(tiny_distilled(teacher, ld_kd | imitation_inside_gt))
    ema = EMAHook(momentum=0.5)
    tiny_runner(model, folder, epochs=1, custom_hooks=[ema]).train()
    return folder / 'epoch_1.pth', ema.ema_model.module


def test_published_student_is_the_stock_detector(
    trained: tuple[Path, nn.Module], tmp_path: Path, publish: Callable
) -> None:
    source, average = trained
    before = source.read_bytes()
    target = tmp_path / 'new' / 'student.pth'
    done = publish(source, target)

    assert done.message == ''
    assert (
        'dropped 2 weights of distillers, and ema_state_dict, message_hub, optimizer' in done.stdout
    )
    assert f'{target}: {target.stat().st_size / 1e6:.1f} MB' in done.stdout
    assert target.stat().st_size < 0.5 * source.stat().st_size
    assert source.read_bytes() == before
    assert [f.name for f in target.parent.iterdir()] == ['student.pth']

    with warnings.catch_warnings():
        warnings.simplefilter('error')
        published = torch.load(target, weights_only=True)
    assert set(published) == {'meta', 'state_dict'}
    assert set(published['meta']) == {'dataset_meta', 'epoch', 'iter', 'mmengine_version'}
    assert published['meta']['dataset_meta'] == TinyDataset.METAINFO

    stock = build(tiny_gfl(), seed=4)
    stock.load_state_dict(published['state_dict'], strict=True)
    for found, expected in zip(predictions(stock), predictions(average), strict=True):
        assert len(expected) > 0
        assert torch.equal(found.bboxes, expected.bboxes)
        assert torch.equal(found.scores, expected.scores)


def test_training_checkpoint_with_adapters_does_not_fit_before(
    trained: tuple[Path, nn.Module],
) -> None:
    state = torch.load(trained[0], weights_only=False)['state_dict']
    with pytest.raises(RuntimeError, match=r'distillers\.im\.adapter'):
        build(tiny_gfl()).load_state_dict(state, strict=True)


def test_parallel_prefix_goes_too(tmp_path: Path, publish: Callable) -> None:
    state = build(tiny_gfl()).state_dict()
    source, target = tmp_path / 'in.pth', tmp_path / 'out.pth'
    torch.save(dict(state_dict={f'module.{k}': v for k, v in state.items()}), source)
    assert publish(source, target).message == ''
    build(tiny_gfl(), seed=4).load_state_dict(torch.load(target)['state_dict'], strict=True)


@pytest.mark.parametrize('through_link', [False, True])
def test_input_is_never_overwritten(tmp_path: Path, publish: Callable, through_link: bool) -> None:
    source = target = tmp_path / 'epoch_1.pth'
    torch.save(dict(state_dict=dict(weight=torch.ones(1))), source)
    before = source.read_bytes()
    if through_link:
        target = tmp_path / 'link.pth'
        target.symlink_to(source)
    done = publish(source, target)
    assert done.message.startswith(f'OUT: {target} is the input itself')
    assert source.read_bytes() == before


def test_outputs_that_cannot_be_written(tmp_path: Path, publish: Callable) -> None:
    source, pipe = tmp_path / 'epoch_1.pth', tmp_path / 'pipe'
    torch.save(dict(state_dict=dict(weight=torch.ones(1))), source)
    done = publish(source, source / 'out.pth')
    assert done.message.startswith(f'OUT: {source}/out.pth cannot be written (')
    os.mkfifo(pipe)
    done = publish(source, pipe)
    assert done.message.startswith(f'OUT: {pipe} is no file, and would be replaced by one')
    assert pipe.is_fifo()


def test_a_full_disk_leaves_nothing(
    tmp_path: Path, publish: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(checkpoint: object, path: Path) -> None:
        path.write_bytes(b'half of it')
        raise RuntimeError('no space left')

    source, target = tmp_path / 'epoch_1.pth', tmp_path / 'out.pth'
    torch.save(dict(state_dict=dict(weight=torch.ones(1))), source)
    monkeypatch.setattr(torch, 'save', save)
    done = publish(source, target)
    assert done.message == f'OUT: {target} cannot be written (no space left)'
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize('exists', [True, False])
def test_folder_as_output(tmp_path: Path, publish: Callable, exists: bool) -> None:
    source, folder = tmp_path / 'epoch_1.pth', tmp_path / 'students'
    torch.save(dict(state_dict=dict(weight=torch.ones(1))), source)
    if exists:
        folder.mkdir()
    done = publish(source, f'{folder}/')
    assert done.message == f'OUT: {folder}/ is a folder; name a file in it'
    assert not folder.is_file()


@pytest.mark.parametrize(
    ('content', 'expected'),
    [
        (None, "IN: there is no file '"),
        (b'not a checkpoint', "IN: '"),
        (dict(weights=1), 'is no training checkpoint: expected '),
        (dict(state_dict={1: 'b'}), 'is no training checkpoint: expected '),
        (dict(state_dict=dict(a='b')), 'is no training checkpoint: expected '),
        ([1, 2], 'holds a list, expected a dict'),
        ({str(i): torch.ones(1) for i in range(9)}, 'found the keys 0, 1, 2, 3, 4, .... Give'),
        (dict(state_dict={}), 'in.pth has no weights of a detector; found nothing'),
        (
            dict(state_dict={'distillers.im.adapter.bias': torch.ones(1)}),
            'in.pth has no weights of a detector; found distillers.im.adapter.bias',
        ),
    ],
)
def test_what_is_no_checkpoint_is_refused(
    tmp_path: Path, publish: Callable, content: object, expected: str
) -> None:
    source, target = tmp_path / 'in.pth', tmp_path / 'out.pth'
    if isinstance(content, bytes):
        source.write_bytes(content)
    elif content is not None:
        torch.save(content, source)
    done = publish(source, target)
    assert done.message.startswith('IN: ')
    assert expected in done.message
    assert not target.exists()


def test_help() -> None:
    done = subprocess.run([sys.executable, str(TOOL), '--help'], capture_output=True, text=True)
    assert done.returncode == 0
    assert 'IN' in done.stdout
    assert 'OUT' in done.stdout


def test_names_and_colours_of_mmdetection_2_stay() -> None:
    kept = dict(CLASSES=('a', 'b'), PALETTE=[(1, 2, 3)])
    checkpoint = dict(meta=kept | dict(env='x', hook_msgs={}), state_dict=dict(w=torch.ones(1)))
    assert publish_student.published(checkpoint)['meta'] == kept


def test_sizes_are_in_millions_of_bytes(tmp_path: Path) -> None:
    path = tmp_path / 'large.pth'
    path.touch()
    os.truncate(path, 150_000_000)
    assert publish_student.size(path) == '150.0 MB'
