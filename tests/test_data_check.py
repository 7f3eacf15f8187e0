"""Data that is not there is said before training, by config key."""

import os
import runpy
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest
import train
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ld_plugin import ConfigError
from ld_plugin.data_check import (
    TESTING,
    TRAINING,
    check_data_folders,
    check_submission_folders,
    training_classes,
)
from ld_plugin.launch import add_common_arguments, build_runner, load_config
from ld_plugin.runner import DistillationRunner, EvaluationRunner
from tests import needs


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """A data set with one annotation file and one folder of images."""
    (tmp_path / 'images').mkdir()
    (tmp_path / 'annotations.json').write_text('{}')
    return tmp_path


def dataset(root: Path | str, **changes: object) -> dict:
    plain = {
        'type': 'CocoDataset',
        'data_root': str(root),
        'ann_file': 'annotations.json',
        'data_prefix': {'img': 'images/'},
    }
    return plain | changes


def config(train_dataset: object, **sections: object) -> Config:
    return Config(dict(train_dataloader=dict(dataset=train_dataset), **sections))


def test_data_that_is_there_passes(data_root: Path) -> None:
    check_data_folders(
        config(
            dataset(data_root),
            val_dataloader=dict(dataset=dataset(data_root)),
            val_evaluator=dict(type='CocoMetric', ann_file=str(data_root / 'annotations.json')),
        )
    )
    # DOTA's annotations are a folder of files
    check_data_folders(config(dataset(data_root, type='DOTADataset', ann_file='images/')))


def test_message_names_key_finding_place_and_remedy() -> None:
    with pytest.raises(FileNotFoundError) as error:
        check_data_folders(config(dataset('data/nowhere/')))
    key = 'train_dataloader.dataset.data_root'
    assert f"{key}: folder 'data/nowhere/' not found" in str(error.value)
    assert f'expected at {Path.cwd() / "data/nowhere"})' in str(error.value)
    assert f'--cfg-options {key}=PATH' in str(error.value)
    assert 'ann_file' not in str(error.value), 'what is below a missing root needs no line'


def test_message_names_the_place_below_a_root_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path('train').mkdir()
    for part in (dict(ann_file='train'), dict(data_prefix=dict(img='train'))):
        with pytest.raises(FileNotFoundError) as error:
            check_data_folders(config(dict(data_root='train', **part)))
        assert f'expected at {tmp_path / "train/train"})' in str(error.value)


@pytest.mark.parametrize(
    ('wrap', 'key'),
    [
        (lambda inner: dict(type='RepeatDataset', times=3, dataset=inner), 'dataset.data_root'),
        (
            lambda inner: dict(type='ConcatDataset', datasets=[inner, inner]),
            'datasets.1.data_root',
        ),
        (
            lambda inner: dict(
                type='MultiImageMixDataset',
                dataset=dict(type='ConcatDataset', datasets=[dict(dataset=inner)]),
            ),
            'dataset.datasets.0.dataset.data_root',
        ),
    ],
)
def test_wrapped_data_sets_are_looked_into(wrap, key: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf'train_dataloader\.dataset\.{key}: '):
        check_data_folders(config(wrap(dataset('data/nowhere/'))))


def test_key_of_the_message_can_be_set_from_the_command_line(data_root: Path) -> None:
    cfg = config(dict(type='ConcatDataset', datasets=[dataset('data/nowhere/')]))
    cfg.merge_from_dict({'train_dataloader.dataset.datasets.0.data_root': str(data_root)})
    check_data_folders(cfg)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(ann_file='gone.json'), r"dataset\.ann_file: file 'gone\.json' not found"),
        (
            dict(data_prefix={'img': 'gone/'}),
            r"dataset\.data_prefix\.img: folder 'gone/' not found",
        ),
        # there is a file of that name
        (
            dict(data_prefix={'img': 'annotations.json'}),
            r"dataset\.data_prefix\.img: folder 'annotations\.json' not found",
        ),
        (dict(data_root=__file__), r"dataset\.data_root: folder '.*\.py' not found"),
    ],
)
def test_missing_parts_of_a_data_set(data_root: Path, change: dict, message: str) -> None:
    with pytest.raises(FileNotFoundError, match=message):
        check_data_folders(config(dataset(data_root, **change)))


def test_everything_missing_is_said_at_once(data_root: Path) -> None:
    cfg = config(
        dataset(data_root, ann_file='gone.json'),
        val_dataloader=dict(dataset=dataset('data/nowhere/')),
        val_evaluator=[dict(type='CocoMetric', ann_file='data/gone.json')],
        test_dataloader=[dict(dataset=dataset('data/nowhere/'))],
        test_evaluator=dict(metrics=dict(type='CocoMetric', ann_file='data/gone.json')),
    )
    with pytest.raises(FileNotFoundError) as error:
        check_data_folders(cfg, TRAINING + TESTING)
    for key in (
        'train_dataloader.dataset.ann_file',
        'val_dataloader.dataset.data_root',
        'val_evaluator.0.ann_file',
        'test_dataloader.0.dataset.data_root',
        'test_evaluator.metrics.ann_file',
    ):
        assert f'\n{key}: ' in str(error.value)


def test_sections_that_a_run_does_not_use_are_left_alone(data_root: Path) -> None:
    cfg = config(dataset(data_root), test_dataloader=dict(dataset=dataset('data/nowhere/')))
    check_data_folders(cfg)
    with pytest.raises(FileNotFoundError, match=r'test_dataloader\.dataset\.data_root'):
        check_data_folders(cfg, TESTING)
    cfg = config(dataset(data_root), test_evaluator=dict(type='CocoMetric', ann_file='gone.json'))
    check_data_folders(cfg)
    with pytest.raises(FileNotFoundError, match=r'test_evaluator\.ann_file'):
        check_data_folders(cfg, TESTING)


@pytest.mark.parametrize(
    'remote',
    [
        dict(data_root='s3://bucket/coco/'),
        dict(data_root='bucket/coco/', backend_args=dict(backend='petrel')),
        dict(data_root='', ann_file='s3://bucket/annotations.json'),
    ],
)
def test_storage_servers_are_not_looked_up(remote: dict) -> None:
    evaluator = dict(type='CocoMetric', ann_file='bucket/annotations.json') | remote
    check_data_folders(config(dataset('unused', **remote), val_evaluator=evaluator))


def test_absent_and_empty_sections_pass() -> None:
    check_data_folders(Config(dict(val_dataloader=None, val_evaluator=None)))
    check_data_folders(config(dict(type='DOTADataset', data_root='', ann_file='', data_prefix={})))
    nothing = dict.fromkeys(('data_root', 'ann_file', 'data_prefix', 'metainfo', 'backend_args'))
    check_data_folders(config(nothing, val_evaluator=nothing))


def test_a_submission_is_not_written_over(tmp_path: Path) -> None:
    metric = dict(type='DOTAMetric', merge_patches=True, outfile_prefix=str(tmp_path / 'Task1'))
    check_submission_folders(Config(dict(test_evaluator=metric)))
    (tmp_path / 'Task1').mkdir()
    check_submission_folders(Config(dict(test_evaluator=metric | dict(merge_patches=False))))
    check_submission_folders(Config(dict(test_evaluator=None)))
    # the first writes files of that prefix beside the folder, the second nothing
    plain, nothing = metric | dict(type='CocoMetric'), metric | dict(outfile_prefix=None)
    plain.pop('merge_patches')
    check_submission_folders(Config(dict(test_evaluator=[plain, nothing])))
    with pytest.raises(FileExistsError) as error:
        check_submission_folders(Config(dict(test_evaluator=[dict(type='CocoMetric'), metric])))
    for inside in (dict(metrics=metric), dict(type='Evaluator', metrics=[metric])):
        with pytest.raises(
            FileExistsError, match=r'^test_evaluator\.metrics(\.0)?\.outfile_prefix'
        ):
            check_submission_folders(Config(dict(test_evaluator=inside)))
    key = 'test_evaluator.1.outfile_prefix'
    assert str(error.value).startswith(f"{key}: '{tmp_path}/Task1' is there already")
    assert f'--cfg-options {key}=PATH' in str(error.value)


def last_words(monkeypatch: pytest.MonkeyPatch, program: str, *arguments: str) -> str:
    """With which a program ends at once."""
    tool = Path(__file__).resolve().parents[1] / 'tools' / program
    monkeypatch.setattr(sys, 'argv', [program, *arguments])
    monkeypatch.setenv('LOCAL_RANK', '0')  # which the program sets otherwise
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(tool), run_name='__main__')
    return str(stopped.value.code)


@pytest.mark.parametrize(
    ('program', 'section'),
    [('train.py', 'train_dataloader'), ('test.py', 'test_dataloader')],
)
def test_programs_stop_with_the_message(
    program: str, section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / 'mine.py'
    path.write_text(f'{section} = dict(dataset={dataset("data/nowhere/")})\n')
    checkpoint = ['student.pth'] if program == 'test.py' else []
    first, second = last_words(monkeypatch, program, str(path), *checkpoint).splitlines()
    assert first == f'{path}: the data of this config is not there:'
    assert second.startswith(f"{section}.dataset.data_root: folder 'data/nowhere/' not found")


def test_the_program_does_not_write_over_a_submission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / 'mine.py'
    metric = dict(type='DOTAMetric', merge_patches=True, outfile_prefix=str(tmp_path))
    path.write_text(f'test_evaluator = {metric}\n')
    words = last_words(monkeypatch, 'test.py', str(path), 'student.pth')
    assert words.startswith(f'{path}: test_evaluator.outfile_prefix: ')


def test_a_learning_rate_that_cannot_be_scaled_stops_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / 'mine.py'
    for line in ('', 'auto_scale_lr = None\n'):
        path.write_text(f'train_dataloader = dict()\n{line}')
        words = last_words(monkeypatch, 'train.py', str(path), '--auto-scale-lr')
    assert words.startswith(f'{path}: auto_scale_lr.base_batch_size: not in the config, but')


@pytest.mark.parametrize('program', ['train.py', 'test.py'])
def test_a_config_that_cannot_be_read_stops_the_program(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / 'mine.py'
    path.write_text("_base_ = 'base.py'\n")
    (tmp_path / 'base.py').write_text('model = dict(\n')
    checkpoint = ['student.pth'] if program == 'test.py' else []
    words = last_words(monkeypatch, program, str(path), *checkpoint)
    assert words.startswith(f"'{path}', or its _base_, cannot be read as a config: ")


def test_predictions_are_not_to_be_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / 'out.pkl'
    folder.mkdir()
    last_words(monkeypatch, 'test.py', 'mine.py', 'student.pth', '--out', str(folder))
    assert f'--out: {folder} is a folder; name a file in it' in capsys.readouterr().err


def test_predictions_are_a_pickle(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    last_words(monkeypatch, 'test.py', 'mine.py', 'student.pth', '--out', 'out.json')
    assert '--out: predictions are written as a pickle; out.json' in capsys.readouterr().err
    words = last_words(monkeypatch, 'test.py', 'mine.py', 'student.pth', '--out', 'out.pickle')
    assert "'mine.py'" in words  # which is not there


def test_spaces_of_a_folder_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'mine.py'
    path.write_text('train_dataloader = dict(dataset=dict(data_root="nowhere"))\n')
    option = 'train_dataloader.dataset.data_root=my data/a b'
    words = last_words(monkeypatch, 'train.py', str(path), '--cfg-options', option)
    assert "data_root: folder 'my data/a b' not found" in words
    parser = ArgumentParser()
    add_common_arguments(parser)
    args = ['--cfg-options', 'a=1', 'b="[1, x]"', "c='x y'", 'd=2, 3', 'e= x y ']
    found = parser.parse_args(args).cfg_options
    assert found == dict(a=1, b=[1, 'x'], c='x y', d=[2, 3], e='x y')
    with pytest.raises(SystemExit):  # as of a shell's variable that is not set
        parser.parse_args(['--cfg-options'])


def test_automatic_resuming_needs_a_checkpoint(tmp_path: Path) -> None:
    def options(resume: str) -> tuple[bool, str | None]:
        cfg = Config(dict(work_dir=str(tmp_path), load_from='stock.pth'))
        args = Namespace(amp=False, auto_scale_lr=False, resume=resume)
        train.apply_training_options(cfg, args)
        return cfg.resume, cfg.load_from

    assert options('epoch_3.pth') == (True, 'epoch_3.pth')
    assert options('auto') == (False, 'stock.pth')
    (tmp_path / 'last_checkpoint').write_text('epoch_2.pth')
    assert options('auto') == (True, None)


def test_options_of_a_training() -> None:
    scale = dict(enable=False, base_batch_size=16)
    cfg = Config(dict(optim_wrapper=dict(type='OptimWrapper'), auto_scale_lr=scale))
    args = Namespace(amp=True, auto_scale_lr=True, resume=None)
    train.apply_training_options(cfg, args)
    assert cfg.optim_wrapper == dict(type='AmpOptimWrapper', loss_scale='dynamic')
    assert cfg.auto_scale_lr == dict(enable=True, base_batch_size=16)
    assert 'resume' not in cfg
    cfg.optim_wrapper.loss_scale = 512.0
    train.apply_training_options(cfg, args)
    assert cfg.optim_wrapper.loss_scale == 512


@pytest.mark.parametrize(
    ('options', 'resume'),
    [([], None), (['--resume'], 'auto'), (['--resume', 'epoch_3.pth'], 'epoch_3.pth')],
)
def test_resuming_from_the_latest_needs_no_name(
    options: list[str], resume: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, 'argv', ['train.py', 'mine.py', *options])
    assert train.parse_args().resume == resume


def loaded(path: Path, *options: str) -> Config:
    """The config of a program with these options."""
    parser = ArgumentParser()
    parser.add_argument('config')
    add_common_arguments(parser)
    return load_config(parser.parse_args([str(path), *options]))


def test_a_config_that_fails_in_its_own_code_has_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('LOCAL_RANK', '0')  # which is set otherwise
    path = tmp_path / 'mine.py'
    path.write_text('model = dict(type=GFL)\n')
    with pytest.raises(ConfigError, match="name 'GFL' is not defined") as error:
        loaded(path)
    assert isinstance(error.value.__cause__, NameError)


@pytest.mark.parametrize(
    ('content', 'options', 'work_dir'),
    [
        ('', [], 'work_dirs/mine_1.5x'),
        ('work_dir = None', [], 'work_dirs/mine_1.5x'),
        ("work_dir = 'its_own'", [], 'its_own'),
        ("work_dir = 'its_own'", ['--work-dir', 'another'], 'another'),
    ],
)
def test_work_folder(
    content: str,
    options: list[str],
    work_dir: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv('LOCAL_RANK', '0')  # which is set otherwise
    path = tmp_path / 'mine_1.5x.py'
    path.write_text(content)
    assert loaded(path, *options).work_dir == work_dir


@pytest.mark.parametrize('launcher', ['pytorch', 'slurm', 'mpi'])
@pytest.mark.parametrize('content', ['', "launcher = 'none'"], ids=['', 'written by a run'])
def test_launchers(
    content: str, launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / 'mine.py'
    path.write_text(content)
    monkeypatch.setenv('LOCAL_RANK', '5')  # by torchrun
    assert loaded(path, '--launcher', launcher).launcher == launcher
    assert os.environ['LOCAL_RANK'] == '5'
    for option in ('--local-rank', '--local_rank'):  # of a newer and an older launcher
        monkeypatch.delenv('LOCAL_RANK')
        assert loaded(path, option, '3').launcher == 'none'
        assert os.environ['LOCAL_RANK'] == '3'


@pytest.mark.parametrize('base', [Runner, DistillationRunner])
def test_a_runner_that_is_not_the_plugins_stays(
    base: type[Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    class OwnRunner(base):
        """Of somebody who needs more than mmengine's, or the plugin's."""

        @classmethod
        def from_cfg(cls, cfg: Config) -> str:
            return 'my own'

    monkeypatch.setitem(RUNNERS.module_dict, 'OwnRunner', OwnRunner)
    for default in (DistillationRunner, EvaluationRunner):
        assert build_runner(Config(dict(runner_type='OwnRunner')), default) == 'my own'


def test_classes_are_those_of_metainfo_or_of_the_type(tmp_path: Path) -> None:
    file = tmp_path / 'classes.txt'
    file.write_text('sun\nmoon\n')
    named = dataset('nowhere', metainfo=dict(classes=('sun', 'moon')))
    listed = dataset('nowhere', metainfo=dict(classes=str(file)))
    recoloured = dataset('nowhere', type='VOCDataset', metainfo=dict(palette=[(0, 0, 0)]))
    both = dict(type='ConcatDataset', datasets=[listed, dataset('elsewhere')])
    assert training_classes(config(named)) == ('sun', 'moon')
    assert training_classes(config(dict(type='RepeatDataset', times=2, dataset=both))) == [
        'sun',
        'moon',
    ]
    assert len(training_classes(config(dataset('nowhere')))) == 80
    assert training_classes(config(recoloured))[:2] == ('aeroplane', 'bicycle')
    assert len(training_classes(config(dataset('nowhere', metainfo=None)))) == 80


def test_classes_of_a_type_that_is_not_registered() -> None:
    """A config in pure Python names the class itself."""

    class SkyDataset(CocoDataset):
        METAINFO = dict(classes=('sun', 'moon'))

    assert training_classes(config(dict(type=SkyDataset))) == ('sun', 'moon')


@needs.mmrotate
def test_a_data_set_may_name_its_scope() -> None:
    ships = dataset('nowhere', type='DOTADataset', _scope_='mmrotate')
    unnamed = dataset('nowhere', type='DOTADataset')
    for cfg in (
        config(ships),
        config(ships, default_scope='mmdet'),
        config(unnamed, default_scope='mmrotate'),
    ):
        assert training_classes(cfg)[:2] == ('plane', 'baseball-diamond')
    # of a package that does not have it, the data set is MMDetection's
    assert len(training_classes(config(dataset('nowhere'), default_scope='mmrotate'))) == 80


@pytest.mark.parametrize(
    'cfg',
    [
        Config(),
        Config(dict(train_dataloader=None)),
        config(object()),
        config(dict(type='BaseDetDataset', ann_file='a.json')),
    ],
)
def test_classes_that_a_config_does_not_tell_are_unknown(cfg: Config) -> None:
    assert training_classes(cfg) is None


def test_classes_of_an_unknown_data_set() -> None:
    with pytest.raises(ConfigError, match=r"train_dataloader\.dataset\.type: 'SkyDataset' is not"):
        training_classes(config(dict(type='SkyDataset')))


@pytest.mark.parametrize('root', ['.', 's3://bucket/coco/'])
@pytest.mark.parametrize('is_folder', [False, True])
def test_one_class_name_without_its_comma(
    is_folder: bool, root: str, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MMDetection would take its letters for the names of the classes."""
    monkeypatch.chdir(data_root)
    if is_folder:
        Path('sun').mkdir()
    cfg = config(dataset(root, metainfo=dict(classes='sun')))
    with pytest.raises(FileNotFoundError) as error:
        check_data_folders(cfg)
    assert str(error.value).splitlines()[1:] == [
        "train_dataloader.dataset.metainfo.classes: found the text 'sun', which is no file (looked "
        f'for at {Path.cwd() / "sun"}), expected a file with a name in each line, or a tuple of '
        "names, in which one alone takes a comma: ('sun',)"
    ]
    assert training_classes(cfg) is None  # a program that only tests asks without this check
    check_data_folders(config(dataset(root, metainfo=dict(classes=('sun',)))))


def test_images_of_a_server_are_not_looked_up(data_root: Path) -> None:
    prefix = dict(img='s3://bucket/images/')
    names = dict(classes='s3://bucket/classes.txt')
    check_data_folders(config(dataset(data_root, data_prefix=prefix, metainfo=names)))
