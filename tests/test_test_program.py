"""`tools/test.py` on a distilled config: the student alone is built, augmented or not."""

import pickle
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor

from ld_plugin.launch import build_runner
from ld_plugin.runner import DistillationRunner, EvaluationRunner

ROOT = Path(__file__).resolve().parents[1]
STOCK, DISTILLED = (
    ROOT / 'configs/demo' / name
    for name in ('gfl_r18-half_fpn_6e_digits.py', 'ld_r18-half-gfl-r18_fpn_6e_digits.py')
)
FLIPPED = """
tta_model = dict(
    type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.6), max_per_img=100)
)
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale_factor=1.0),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)],
            [
                dict(
                    type='PackDetInputs',
                    meta_keys=(
                        'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip',
                        'flip_direction',
                    ),
                )
            ],
        ],
    ),
]
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures, and a checkpoint of the student as a distilled training leaves one."""
    folder = tmp_path_factory.mktemp('test')
    sizes = ['--train', '1', '--val', '1', '--test', '2', '--size', '96x96']
    tool = [sys.executable, str(ROOT / 'tools/make_digits.py'), str(folder / 'digits'), *sizes]
    subprocess.run(tool, check=True, capture_output=True)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        student = MODELS.build(Config.fromfile(STOCK).model)
    adapter = {'distillers.im.adapter.weight': torch.zeros(1)}
    torch.save(dict(state_dict=student.state_dict() | adapter), folder / 'student.pth')
    return folder


@pytest.fixture
def predictions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """What the program, run in this process, finds by a config: boxes and scores (K, 5)."""

    def run(config: Path, *options: str) -> Tensor:
        out = folder / 'predictions.pkl'
        arguments = [str(config), str(folder / 'student.pth'), '--out', str(out), *options]
        # a student that has learnt nothing is sure of nothing
        arguments += ['--work-dir', str(folder / 'work')]
        arguments += ['--cfg-options', 'model.test_cfg.score_thr=0']
        monkeypatch.setattr(sys, 'argv', ['test.py', *arguments])
        monkeypatch.setenv('DIGITS_ROOT', str(folder / 'digits'))
        monkeypatch.setenv('LOCAL_RANK', '0')  # which the program sets otherwise
        runpy.run_path(str(ROOT / 'tools/test.py'), run_name='__main__')
        found = [image['pred_instances'] for image in pickle.loads(out.read_bytes())]
        assert len(found) == 2
        return torch.cat([torch.cat([x['bboxes'], x['scores'][:, None]], 1) for x in found])

    return run


def test_a_distilled_config_is_tested_without_its_teacher(predictions: Callable) -> None:
    teacher = Config.fromfile(DISTILLED).model.teacher
    assert not Path(teacher.checkpoint).exists()
    found = predictions(DISTILLED)
    assert len(found) > 0
    torch.testing.assert_close(found, predictions(STOCK))


def test_pictures_of_predictions(predictions: Callable, folder: Path) -> None:
    predictions(DISTILLED, '--show-dir', 'pictures')
    assert len([*(folder / 'work').glob('*/pictures/*.jpg')]) == 2


@pytest.mark.parametrize(
    'kind', ['DistillationRunner', DistillationRunner, 'ld_plugin.runner.DistillationRunner']
)
def test_the_runner_of_a_training_gives_way(
    kind: str | type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also that of the config which a training in pure Python wrote."""
    monkeypatch.setattr(EvaluationRunner, 'from_cfg', lambda cfg: 'evaluation')
    monkeypatch.setattr(DistillationRunner, 'from_cfg', lambda cfg: 'training')
    cfg = Config(dict(runner_type=kind))
    assert build_runner(cfg, EvaluationRunner) == 'evaluation'
    assert build_runner(cfg) == 'training'


def test_augmentation(predictions: Callable, tmp_path: Path) -> None:
    config = tmp_path / 'tta.py'
    config.write_text(f"_base_ = '{DISTILLED}'\n{FLIPPED}")
    plain, augmented = predictions(config), predictions(config, '--tta')
    assert len(augmented) > 0
    assert augmented.shape != plain.shape or not torch.allclose(augmented, plain)


def test_augmentation_that_the_config_does_not_tell(predictions: Callable, tmp_path: Path) -> None:
    half = tmp_path / 'half.py'
    half.write_text(f"_base_ = '{DISTILLED}'\ntta_model = dict(type='DetTTAModel')\n")
    for config, key in ((DISTILLED, 'tta_model'), (half, 'tta_pipeline')):
        message = f'{config}: {key}: not in the config, but --tta needs it'
        with pytest.raises(SystemExit, match=f'^{re.escape(message)}'):
            predictions(config, '--tta')


def test_the_record_of_the_training_stays(
    predictions: Callable, folder: Path, tmp_path: Path
) -> None:
    """Which is what a resumed training reads, in whose config `resume` is set."""
    (folder / 'work').mkdir(exist_ok=True)
    record, own = folder / 'work/config.py', folder / 'work/test_config.py'
    record.write_text('# of the training')
    config = tmp_path / 'resumed.py'
    config.write_text(f"_base_ = '{DISTILLED}'\nresume = True\n")
    assert len(predictions(config)) > 0
    assert record.read_text() == '# of the training'
    assert 'distillers' not in Config.fromfile(own).model
