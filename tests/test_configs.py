"""`configs/`: every config is built and trained, shrunk by overrides as a command line gives them.

What stays of a config: its head, its classes, its losses, its recipe, its schedule, its pipelines
and the names of its data files. What is overridden: the backbone's depth, channels, image sizes,
batch size, pretrained weights, and the root of the data, which is made of handwritten digits under
the config's class names.
"""

import copy
import functools
import importlib.util
import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zipfile import ZipFile

import cv2
import make_digits
import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, METRICS, MODELS
from mmengine import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from ld_plugin import recipes
from ld_plugin.detectors.checkpoint import load_checkpoint_file
from ld_plugin.detectors.model_config import (
    published_checkpoint,
    read_config,
    student_model,
)
from ld_plugin.errors import ConfigError
from ld_plugin.packages import is_installed
from tests import needs

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / 'configs'
SIZE = (160, 120)
CHANNELS = 32  # the heads' group norm has 32 groups
MILESTONES = {4: [3], 12: [8, 11], 24: [16, 22], 72: [48, 66]}
PAPERS = ['bckd', 'crosskd', 'defeat', 'ld', 'pkd', 'rm_pfi']  # folders of published rows
if is_installed('mmrotate'):
    PAPERS.append('rotated_ld')
HEADS = ['bbox_head', 'rpn_head', 'roi_head']


def _configs(folder: str = '*') -> list[str]:
    """Names of the configs to train with, as 'folder/file.py'; `_base_` holds parts of them."""
    files = [f for f in sorted(CONFIGS.glob(f'{folder}/*.py')) if f.parent.name != '_base_']
    names = [str(f.relative_to(CONFIGS)) for f in files]
    return [name for name in names if not _is_rotated(name) or is_installed('mmrotate')]


def _is_rotated(name: str) -> bool:
    """By its name, for without MMRotate it cannot be read."""
    return 'rotated' in name or 'oriented' in name


@functools.cache
def _read(name: str) -> Config:
    """To look at; stock names are read too."""
    return read_config(name if '::' in name else CONFIGS / name)


def _load(name: str) -> Config:
    return copy.deepcopy(_read(name))


def _model(name: str) -> dict[str, Any]:
    return _read(name).model.to_dict()


def _losses(cfg: Config) -> list[str]:
    """Keys of the distillers; None stands for one that a config leaves out of its recipe."""
    distillers = cfg.model.get('distillers', {})
    return [key for key, distiller in distillers.items() if distiller is not None]


def _num_classes(model: Mapping[str, Any]) -> int:
    head = model.get('bbox_head') or model['roi_head']['bbox_head']
    return head['num_classes']


ALL = _configs()
ROWS = [name for folder in PAPERS for name in _configs(folder)]


# --- data under the names that a config expects ---------------------------------------------------


def _rename_classes(digits: Path, out: Path, classes: Sequence[str]) -> None:
    """Write the annotations again, digit i being class i (modulo their number)."""
    for file in (digits / 'annotations').glob('*.json'):
        coco = json.loads(file.read_text())
        label_of = {category['id']: label for label, category in enumerate(coco['categories'])}
        coco['categories'] = [{'id': i + 1, 'name': name} for i, name in enumerate(classes)]
        for annotation in coco['annotations']:
            label = label_of[annotation['category_id']] % len(classes)
            annotation['category_id'] = label + 1
        (out / 'annotations' / file.name).write_text(json.dumps(coco))
    names = dict(zip(make_digits.CLASSES, itertools.cycle(classes), strict=False))
    for file in (digits / 'Annotations').glob('*.xml'):
        text = re.sub(
            '<name>(.*?)</name>', lambda m: f'<name>{names[m.group(1)]}</name>', file.read_text()
        )
        (out / 'Annotations' / file.name).write_text(text)
    for split in ('train', 'val', 'test'):
        _write_patches(digits / 'dota' / split, out / split, names)
    _write_ships(digits / 'dota/train', out / 'FullDataSet')


def _write_patches(digits: Path, out: Path, names: Mapping[str, str]) -> None:
    """A split in DOTA's form, under the names that MMRotate's splitting tool gives its patches."""
    for folder in ('annfiles', 'images'):
        (out / folder).mkdir(parents=True)
    for file in (digits / 'annfiles').glob('*.txt'):
        text = re.sub('[a-z]+', lambda m: names[m.group()], file.read_text())
        patch = f'{file.stem}__{SIZE[0]}__0___0'
        (out / 'annfiles' / f'{patch}.txt').write_text(text)
        for suffix in ('jpg', 'png'):  # images are read by their content
            image = digits / 'images' / f'{file.stem}.jpg'
            (out / 'images' / f'{patch}.{suffix}').symlink_to(image)


def _write_ships(digits: Path, out: Path) -> None:
    """A split in HRSC's form."""
    for folder in ('Annotations', 'AllImages'):
        (out / folder).mkdir(parents=True)
    for file in (digits / 'annfiles').glob('*.txt'):
        quads = [np.array(line.split()[:8], np.float32) for line in file.read_text().splitlines()]
        (out / 'Annotations' / f'{file.stem}.xml').write_text(
            '<HRSC_Image><Img_SizeWidth>160</Img_SizeWidth><Img_SizeHeight>120</Img_SizeHeight>'
            f'<HRSC_Objects>{"".join(map(_ship, quads))}</HRSC_Objects></HRSC_Image>'
        )
        image = digits / 'images' / f'{file.stem}.jpg'
        (out / 'AllImages' / f'{file.stem}.bmp').symlink_to(image)


def _ship(quad: np.ndarray) -> str:
    (x, y), (width, height), angle = cv2.minAreaRect(quad.reshape(4, 2))
    values = dict(
        mbox_cx=x, mbox_cy=y, mbox_w=width, mbox_h=height, mbox_ang=np.deg2rad(angle),
        Class_ID='100000001', header_x=0, header_y=0,
    )  # fmt: skip
    fields = ''.join(f'<{key}>{value}</{key}>' for key, value in values.items())
    return f'<HRSC_Object>{fields}</HRSC_Object>'


def _add_known_names(out: Path) -> None:
    """The names of COCO's, VOC's, DOTA's and HRSC's files, beside those of `make_digits.py`."""
    (out / 'trainval').symlink_to(out / 'train')
    (out / 'dota').symlink_to(out)
    for split in ('trainval', 'test'):
        images = (out / 'FullDataSet/AllImages').glob('*.bmp')
        (out / f'ImageSets/{split}.txt').write_text('\n'.join(image.stem for image in images))
    for split, name in (('train', 'train2017'), ('val', 'val2017')):
        (out / name).symlink_to(out / 'JPEGImages')
        (out / f'annotations/instances_{name}.json').symlink_to(out / f'annotations/{split}.json')
    (out / 'ImageSets/Main/trainval.txt').symlink_to(out / 'ImageSets/Main/train.txt')
    for year in ('VOC2007', 'VOC2012'):
        (out / year).symlink_to(out)


@pytest.fixture(scope='module')
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sequence[str]], Path]:
    """Gives a folder of annotated images for a list of class names, in COCO's and VOC's layout."""
    made: dict[tuple[str, ...], Path] = {}
    root = tmp_path_factory.mktemp('data')
    digits = make_digits.make_digits(
        root / 'digits',
        dict(train=4, val=2, test=2),
        SIZE,
        max_digits=3,
        min_height=48,  # the VOC configs ignore objects below 32 px
        max_height=72,
    )

    def folder(classes: Sequence[str]) -> Path:
        key = tuple(classes)
        if key not in made:
            out = made[key] = root / str(len(made))
            (out / 'annotations').mkdir(parents=True)
            (out / 'Annotations').mkdir()
            (out / 'ImageSets').mkdir()
            (out / 'JPEGImages').symlink_to(digits / 'JPEGImages')
            (out / 'ImageSets/Main').mkdir()
            for file in (digits / 'ImageSets/Main').glob('*.txt'):
                (out / 'ImageSets/Main' / file.name).write_text(file.read_text())
            _rename_classes(digits, out, classes)
            _add_known_names(out)
        return made[key]

    return folder


# --- overrides ------------------------------------------------------------------------------------


def _mappings(value: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every dict in a part of a config, with its dotted key."""
    if isinstance(value, Mapping):
        yield key, value
        for name, item in value.items():
            yield from _mappings(item, f'{key}.{name}')
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _mappings(item, f'{key}.{index}')


def _classes(dataset: Mapping[str, Any], scope: str) -> Sequence[str]:
    kind = dataset['type'] if '.' in dataset['type'] else f'{scope}.{dataset["type"]}'
    metainfo = dataset.get('metainfo') or DATASETS.get(kind).METAINFO
    return metainfo['classes']


def _loader_overrides(cfg: Config, key: str, data_folder: Callable) -> dict[str, Any]:
    """Four images in batches of two, small, from generated data."""
    found = list(_mappings(cfg[key], key))
    datasets = [(k, node) for k, node in found if 'ann_file' in node]
    changes = {f'{key}.batch_size': 2, f'{key}.num_workers': 0, f'{key}.persistent_workers': False}
    for k, node in datasets:
        changes[f'{k}.data_root'] = str(data_folder(_classes(node, cfg.default_scope)))
        changes[f'{k}.indices'] = 4 // len(datasets)
    for k, node in found:
        kind = str(node.get('type')).removeprefix('mmdet.')
        if kind == 'Resize':
            changes[f'{k}.scale'] = (128, 96)
        elif kind == 'RandomResize':
            changes[f'{k}.scale'] = [(128, 96), (160, 120)]
        elif kind == 'RepeatDataset':
            changes[f'{k}.times'] = 1
    return changes


def _narrow(model: Mapping[str, Any]) -> dict[str, Any]:
    """A shallow backbone of few channels, and heads of as few as they can have."""
    # plain blocks know neither deformable convolutions nor groups
    depth, first = (50, 32) if {'dcn', 'groups'} & model['backbone'].keys() else (18, 8)
    changes = {
        'model.backbone.depth': depth,
        'model.backbone.base_channels': 8,
        'model.backbone.init_cfg': None,
        'model.neck.in_channels': [first, 2 * first, 4 * first, 8 * first],
        'model.neck.out_channels': CHANNELS,
    }
    for part in HEADS:
        for key, node in _mappings(model.get(part), f'model.{part}'):
            for name in ('in_channels', 'feat_channels', 'out_channels', 'fc_out_channels'):
                if name in node:
                    changes[f'{key}.{name}'] = CHANNELS
    return changes


def _teacher_overrides(teacher: Mapping[str, Any]) -> dict[str, Any]:
    config = _load(teacher['config'])
    config.merge_from_dict(_narrow(config.model))
    scope = config.default_scope
    whole = dict(model=config.model.to_dict(), default_scope=scope, _delete_=True)
    return {'model.teacher.config': whole, 'model.teacher.checkpoint': None}


def _shrink(cfg: Config, data_folder: Callable, work_dir: Path) -> Config:
    """Two iterations of the config on two CPU cores."""
    cfg.merge_from_dict(_narrow(cfg.model))
    if 'teacher' in cfg.model:
        cfg.merge_from_dict(_teacher_overrides(cfg.model.teacher))
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg[key] is not None:
            cfg.merge_from_dict(_loader_overrides(cfg, key, data_folder))
    if 'ann_file' in (cfg.val_evaluator or {}):
        dataset = cfg.val_dataloader.dataset
        file = str(Path(dataset.data_root, dataset.ann_file))
        cfg.merge_from_dict({'val_evaluator.ann_file': file})
    cfg.merge_from_dict(
        dict(
            work_dir=str(work_dir),
            train_cfg=dict(max_epochs=1, val_begin=2),  # test_validates does it where it differs
            default_hooks=dict(checkpoint=None),
            log_level='WARNING',
            randomness=dict(seed=0),
        )
    )
    return cfg


# --- every config trains --------------------------------------------------------------------------


class _Watch(Hook):
    """Keeps the initial weights and the losses of every iteration."""

    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []

    def before_train(self, runner: Runner) -> None:
        self.initial = {k: v.clone() for k, v in runner.model.state_dict().items()}

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self.losses.append({name: float(value.detach()) for name, value in outputs.items()})


@pytest.fixture
def without_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner logs its environment and the whole config, which takes longer than it trains."""
    monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)
    monkeypatch.setattr(Config, 'pretty_text', '')


def _changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor], part: str) -> bool:
    weights = [k for k in before if k.startswith(part) and k.endswith('.weight')]
    return any(not torch.equal(before[k], after[k]) for k in weights)


@pytest.mark.usefixtures('without_reports')
@pytest.mark.filterwarnings('ignore:.*the teacher has random weights')
@pytest.mark.parametrize('name', ALL)
def test_trains_two_iterations(name: str, data_folder: Callable, tmp_path: Path) -> None:
    cfg = _shrink(_load(name), data_folder, tmp_path)
    runner, watch = Runner.from_cfg(cfg), _Watch()
    runner.register_hook(watch)
    runner.train()

    dataset = runner.train_dataloader.dataset
    assert _num_classes(cfg.model) == len(dataset.metainfo['classes'])
    distillers = _losses(cfg)
    state = runner.model.state_dict()
    stock = MODELS.build(student_model(cfg))
    of_student = {k: v for k, v in state.items() if not k.startswith('distillers.')}
    stock.load_state_dict(of_student, strict=True)
    data = stock.data_preprocessor(next(iter(runner.train_dataloader)), training=True)
    of_stock = [loss for loss in stock.train()(**data, mode='loss') if 'loss_' in loss]

    assert len(watch.losses) == 2
    for losses in watch.losses:
        expected = [*of_stock, *(f'loss_{key}' for key in distillers)]
        assert [loss for loss in losses if 'loss_' in loss] == expected
        assert all(torch.tensor(value).isfinite() for value in losses.values())
        assert all(losses[f'loss_{key}'] > 0 for key in distillers)
    for part in {'backbone', 'neck', *HEADS} & set(cfg.model):
        assert _changed(watch.initial, state, part)


VALIDATED = [
    ('ld/ld_r18-gfl-r101_fpn_1x_coco.py', ['coco/bbox_mAP', 'coco/bbox_mAP_50']),
    ('ld/ld_r18-gfl-r101_fpn_4e_voc0712.py', ['pascal_voc/mAP', 'pascal_voc/AP75']),
    ('bccd/ld_r18-gfl-r34_fpn_12e_bccd.py', ['pascal_voc/mAP', 'pascal_voc/AP75']),
    ('defeat/defeat_r50-faster-rcnn-r101_fpn_1x_voc0712.py', ['pascal_voc/mAP', 'pascal_voc/AP50']),
]


DOTA_METRICS = ['dota/mAP', *(f'dota/AP{threshold}' for threshold in range(50, 100, 5))]
VALIDATED += [
    (f'rotated_ld/{name}.py', DOTA_METRICS)
    for name in (
        'rotated-ld_r18-dist-rotated-retinanet-r34_fpn_gwd_1x_dota-train',
        'rotated-ld_r18-dist-rotated-retinanet-r34_fpn_gwd_rr-6x_hrsc',
        'defeat_r18-oriented-rcnn-r50_fpn_1x_dota-train',
    )
    if is_installed('mmrotate')
]


@pytest.fixture
def quick_dota_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    """MMRotate's metric starts four interpreters for every IoU threshold; threads are enough."""
    if is_installed('mmrotate'):
        context = SimpleNamespace(Pool=ThreadPool)
        name = 'mmrotate.evaluation.functional.mean_ap.get_context'
        monkeypatch.setattr(name, lambda method: context)


@pytest.mark.usefixtures('without_reports', 'quick_dota_metric')
@pytest.mark.filterwarnings('ignore:.*the teacher has random weights')
@pytest.mark.parametrize(('name', 'metrics'), VALIDATED, ids=[name for name, _ in VALIDATED])
def test_validates(
    name: str, metrics: Sequence[str], data_folder: Callable, tmp_path: Path
) -> None:
    found = Runner.from_cfg(_shrink(_load(name), data_folder, tmp_path)).val()
    assert set(metrics) <= set(found)
    assert all(0 <= found[metric] <= 1 for metric in metrics)


@needs.mmrotate
@pytest.mark.usefixtures('quick_dota_metric')
@pytest.mark.parametrize('data', ['gwd_1x_dota-train', 'gwd_rr-6x_hrsc'])
def test_dota_metric_gives_every_threshold_and_their_mean(data: str) -> None:
    """Of two objects one is found exactly, the other with an overlap of 0.82."""
    cfg = _load(f'rotated_ld/dist-rotated-retinanet_r18_fpn_{data}.py')
    metric = METRICS.build(cfg.val_evaluator)
    metric.dataset_meta = dict(classes=('ship',))
    gts = torch.tensor([[50, 50, 40, 20, 0.5], [150, 50, 40, 20, -0.5]])
    found = gts * torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0.82, 1]])
    labels, scores = torch.zeros(2, dtype=torch.long), torch.tensor([0.9, 0.8])
    none = dict(bboxes=gts[:0], labels=labels[:0])
    sample = dict(
        img_id='ships__1024__0___0',
        gt_instances=dict(bboxes=gts, labels=labels),
        ignored_instances=none,
        pred_instances=dict(bboxes=found, scores=scores, labels=labels),
    )
    metric.process({}, [sample])
    result = metric.evaluate(1)
    assert list(result) == DOTA_METRICS
    precision = [result[name] for name in DOTA_METRICS[1:]]
    half = 6 / 11  # recall reaches 0.5: six of eleven points
    assert precision == pytest.approx([1] * 7 + [half] * 3, abs=5e-4)  # it rounds
    assert result['dota/mAP'] == pytest.approx((7 + 3 * half) / 10)


@needs.mmrotate
@pytest.mark.usefixtures('without_reports')
@pytest.mark.filterwarnings('ignore:.*the teacher has random weights')
@pytest.mark.parametrize('data', ['dota', 'dotav15'])
def test_testing_writes_the_submission(data: str, data_folder: Callable, tmp_path: Path) -> None:
    name = f'rotated_ld/rotated-ld_r18-dist-rotated-retinanet-r34_fpn_gwd_1x_{data}.py'
    cfg = _shrink(_load(name), data_folder, tmp_path)
    cfg.model.test_cfg.update(score_thr=0.001, max_per_img=3)  # it has learnt nothing
    out = tmp_path / 'submission'
    cfg.merge_from_dict({'test_evaluator.outfile_prefix': str(out)})
    runner = Runner.from_cfg(cfg)
    assert runner.test() == {}
    classes = runner.test_dataloader.dataset.metainfo['classes']
    with ZipFile(out / 'submission.zip') as archive:
        assert archive.namelist() == [f'Task1_{name}.txt' for name in classes]
        lines = [line for file in archive.namelist() for line in archive.read(file).splitlines()]
    assert {line.split()[0] for line in lines} == {b'test_000000', b'test_000001'}
    assert all(len([float(word) for word in line.split()[1:]]) == 9 for line in lines)


# --- programs that train --------------------------------------------------------------------------


def _train(program: Path, cfg: Config, folder: Path) -> dict[str, Any]:
    """Train by a program of its own from a file; gives the checkpoint that it leaves."""
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    cfg.dump(folder / 'shrunk.py')
    done = subprocess.run(
        [sys.executable, str(program), 'shrunk.py'],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    return torch.load(Path(cfg.work_dir) / 'epoch_1.pth', weights_only=False)


def _assert_distilled(checkpoint: Mapping[str, Any], cfg: Config) -> None:
    assert checkpoint['meta']['iter'] == 2
    reported = checkpoint['message_hub']['log_scalars']
    distillers = _losses(cfg)
    assert distillers
    assert {f'train/loss_{key}' for key in distillers} <= reported.keys()
    MODELS.build(student_model(cfg)).load_state_dict(checkpoint['state_dict'], strict=True)


def test_stock_program_trains_the_config_of_the_readme(
    data_folder: Callable, tmp_path: Path
) -> None:
    readme = (ROOT / 'README.md').read_text()
    own = re.search(r"```python\n(_base_ = 'mmdet::.*?)```", readme, re.DOTALL).group(1)
    (tmp_path / 'own.py').write_text(own)
    cfg = _shrink(read_config(tmp_path / 'own.py'), data_folder, tmp_path / 'out')
    program = Path(importlib.util.find_spec('mmdet').origin).parent / '.mim/tools/train.py'
    _assert_distilled(_train(program, cfg, tmp_path), cfg)


@needs.mmrotate
def test_training_program_trains_a_rotated_detector(data_folder: Callable, tmp_path: Path) -> None:
    name = 'rotated_ld/rotated-ld_r18-dist-rotated-retinanet-r34_fpn_gwd_1x_dota-train.py'
    cfg = _shrink(_load(name), data_folder, tmp_path / 'out')
    assert cfg.default_scope == 'mmrotate'
    assert cfg.model.type == 'mmdet.DistilledSingleStageDetector'
    _assert_distilled(_train(ROOT / 'tools/train.py', cfg, tmp_path), cfg)


# --- what the files say ---------------------------------------------------------------------------


@pytest.mark.parametrize('name', ALL)
def test_dump_reads_back(name: str, tmp_path: Path) -> None:
    cfg = _load(name)
    cfg.dump(tmp_path / 'dumped.py')
    assert Config.fromfile(tmp_path / 'dumped.py').model.to_dict() == cfg.model.to_dict()


def test_users_own_config_works_and_survives_dump(tmp_path: Path) -> None:
    (tmp_path / 'mine.py').write_text(
        "_base_ = 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'\n"
        'from ld_plugin.recipes import ld_full, ld_main, ld_voc\n'
        'model = dict(\n'
        "    type='DistilledSingleStageDetector',\n"
        "    teacher=dict(config='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py', checkpoint='auto'),\n"
        '    distillers=ld_full,\n'
        ')\n'
    )
    cfg = Config.fromfile(tmp_path / 'mine.py')
    cfg.dump(tmp_path / 'dumped.py')
    model = Config.fromfile(tmp_path / 'dumped.py').model.to_dict()
    assert model == cfg.model.to_dict()
    assert model['distillers'] == recipes.ld_full
    assert model['backbone']['depth'] == 50
    assert cfg.ld_main.to_dict() == recipes.ld_main
    assert cfg.ld_voc.to_dict() == recipes.ld_voc


@pytest.mark.parametrize('folder', [*PAPERS, 'bccd'])
def test_leaves_are_short(folder: str) -> None:
    stock_base = 'bccd/gfl_r18_fpn_12e_bccd.py'  # the base of its folder
    for name in set(_configs(folder)) - {stock_base}:
        assert len((CONFIGS / name).read_text().splitlines()) < 40, name


def test_names_are_unique_for_mim() -> None:
    """MIM looks for a config by its file name alone, below the whole checkout."""
    packages = [spec for name in ('mmdet', 'mmrotate') if (spec := importlib.util.find_spec(name))]
    stock = [Path(spec.origin).parent / '.mim' / 'configs' for spec in packages]
    names = Counter(path.name for root in (CONFIGS, *stock) for path in root.glob('*/*.py'))
    ours = [path.name for path in CONFIGS.glob('*/*.py')]
    assert [name for name in ours if names[name] > 1] == []


@pytest.mark.parametrize('name', [name for name in ALL if 'voc0712' in name])
def test_voc_root_moves_all_data_of_voc(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def roots() -> list[str]:
        cfg = read_config(CONFIGS / name)
        loaders = [cfg[f'{loader}_dataloader'] for loader in ('train', 'val', 'test')]
        found = [node for loader in loaders for _, node in _mappings(loader, '')]
        files = [node['ann_file'] for node in found if 'ann_file' in node]
        assert [file.split('/')[0] for file in files] == ['VOC2007', 'VOC2012', *['VOC2007'] * 2]
        return [cfg.data_root, *(node['data_root'] for node in found if 'ann_file' in node)]

    monkeypatch.delenv('VOC_ROOT', raising=False)
    assert roots() == ['data/VOCdevkit/'] * 5
    for root in ('/elsewhere/voc', "/home/o'brien/voc"):
        monkeypatch.setenv('VOC_ROOT', root)
        assert roots() == [root] * 5


@pytest.mark.parametrize('name', [name for name in ALL if name.split('/')[0] in ('bccd', 'demo')])
def test_root_of_the_data_may_have_quotes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = """/home/o'brien/the "large" disk/data"""
    for variable in ('BCCD_ROOT', 'DIGITS_ROOT'):
        monkeypatch.setenv(variable, root)
    cfg = read_config(CONFIGS / name)
    for loader in ('train', 'val', 'test'):
        assert cfg[f'{loader}_dataloader'].dataset.data_root == root


@pytest.mark.parametrize('name', ALL)
def test_neck_and_initial_weights_fit_the_backbone(name: str) -> None:
    """The overrides of the other tests give all three their own."""
    backbone, neck = _model(name)['backbone'], _model(name)['neck']
    first = backbone.get('base_channels', 64) * (1 if backbone['depth'] < 50 else 4)
    assert list(neck['in_channels']) == [first, 2 * first, 4 * first, 8 * first]
    if backbone['init_cfg'] is not None:  # of another depth, most of them would fit nowhere
        weights = backbone['init_cfg']['checkpoint'].split('/')[-1]
        assert weights.removesuffix('_caffe') == f'resnet{backbone["depth"]}'


GI = dict(im=dict(recipes.imitation_gi['im'], region=dict(type='GIRegion', scope='batch')))
NEGATIVES = dict(type='EverywhereRegion', exclude_positives=True)
#: what configs distil by: the first pattern that fits the name says it
DISTILLERS = {
    'bccd/ld-vlr_*': dict(recipes.ld_full, kd=None),
    'bccd/ld-kd_*': recipes.ld_kd,
    'bckd/*': recipes.bckd,
    'crosskd/*': recipes.crosskd,
    'defeat/*-retinanet-*': recipes.defeat,
    'ld/im-decoupled_*': recipes.imitation_decoupled,
    'ld/im-fine-grained_*': recipes.imitation_fine_grained,
    'ld/im-fitnet_*': recipes.fitnet,
    'ld/im-gi_*': GI,
    'ld/im-inside-gt_*': recipes.imitation_inside_gt,
    'ld/im-main_*': recipes.imitation_main,
    'ld/ld-gi_*_coco.py': recipes.ld_full | GI,
    'ld/ld-gi_*_voc0712.py': recipes.ld_voc | GI,
    'ld/ld-negatives_*-dist-fcos-*': dict(
        recipes.ld_point, ld_vlr=dict(recipes.ld_point['ld_vlr'], region=NEGATIVES)
    ),
    'ld/ld_*-dist-retinanet-*': recipes.ld_retina,
    'ld/ld_*-dist-*': recipes.ld_point,
    'ld/ld_*_voc0712.py': recipes.ld_voc,
    'pkd/*': recipes.pkd,
    'rm_pfi/*': recipes.rm_pfi,
    'rotated_ld/rotated-ld_*_gwd_*_hrsc.py': dict(recipes.rotated_ld_gwd, kd=None),
    'rotated_ld/rotated-ld_*_kld*_hrsc.py': dict(recipes.rotated_ld_kld, kd=None),
    '*/rotated-ld_*_gwd_*': recipes.rotated_ld_gwd,
    '*/rotated-ld_*_kld_*': recipes.rotated_ld_kld,
    '*/defeat_*-rcnn-*': recipes.defeat_two_stage,
    '*/ld-main_*': recipes.ld_main,
    '*/ld-self_*': recipes.ld_main,
    '*/ld_*': recipes.ld_full,
}
SCALED = 'bccd/ld-kd1'  # published recipes at other weights


@pytest.mark.parametrize('name', [name for name in ALL if not name.startswith(SCALED)])
def test_distils_by_what_its_name_says(name: str) -> None:
    model = _model(name)
    if 'distillers' in model:
        assert model['distillers'] == next(
            distillers for pattern, distillers in DISTILLERS.items() if fnmatch(name, pattern)
        )


def test_a_tenth_of_the_weight_of_kd() -> None:
    distillers = _model('bccd/ld-kd1_r18-gfl-r34_fpn_12e_bccd.py')['distillers']
    assert distillers['kd']['loss'].pop('loss_weight') == 0.1 * 10
    expected = copy.deepcopy(recipes.ld_full)
    del expected['kd']['loss']['loss_weight']
    assert distillers == expected


@pytest.mark.parametrize('name', ALL)
def test_every_config_says_what_its_learning_rate_is_for(name: str) -> None:
    scale = _read(name).auto_scale_lr
    assert scale.base_batch_size > 0
    assert scale.enable in (True, False)


# --- teachers -------------------------------------------------------------------------------------


def _teachers() -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name in ALL:
        if 'teacher' in _model(name):
            yield name, _model(name)['teacher']


def test_configs_with_a_teacher_import_the_plugin_and_name_its_runner() -> None:
    """MMDetection's own program knows its types from nowhere else; a failed import must stop it."""
    names = [name for name, _ in _teachers()]
    assert names
    for name in names:
        imports = _read(name).get('custom_imports', {})
        assert 'ld_plugin' in imports.get('imports', []), name
        assert imports.allow_failed_imports is False, name
        assert _read(name).runner_type == 'DistillationRunner', name


def test_stock_teachers_have_a_published_checkpoint() -> None:
    stock = {t['config'] for _, t in _teachers() if t['checkpoint'] == 'auto'}
    assert stock  # the COCO ones
    for config in stock:
        assert config.startswith(('mmdet::', 'mmrotate::'))
        assert re.fullmatch(r'https://\S+\.pth', published_checkpoint(config))


def test_own_teachers_are_where_their_config_leaves_them() -> None:
    own = [(name, t) for name, t in _teachers() if t['checkpoint'] != 'auto']
    assert own  # VOC, BCCD, R-18
    for name, teacher in own:
        package, config = teacher['config'].split('::')
        epochs = _read(config).train_cfg.max_epochs
        assert package == 'ld_plugin'
        expected = f'work_dirs/{Path(config).stem}/epoch_{epochs}.pth'
        assert teacher['checkpoint'] == expected, name


def _images(config: Config) -> list[tuple[Any, ...]]:
    """What is trained on, however large the images are made."""
    datasets = _mappings(config.train_dataloader.dataset, '')
    keys = 'type', 'data_root', 'ann_file', 'data_prefix', 'metainfo'
    return [tuple(map(node.get, keys)) for _, node in datasets if 'ann_file' in node]


def test_own_teachers_saw_the_students_images() -> None:
    for name, teacher in _teachers():
        config = _read(teacher['config'])
        assert _num_classes(config.model) == _num_classes(_model(name)), name
        if teacher['checkpoint'] != 'auto':
            assert _images(config) == _images(_read(name)) != [], name


def test_missing_teacher_is_said_with_the_command_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        MODELS.build(_load('bccd/ld_r18-gfl-r34_fpn_12e_bccd.py').model)
    assert 'work_dirs/gfl_r34_fpn_36e_bccd/epoch_36.pth' in str(error.value)
    assert 'mim train mmdet-ld-plugin bccd/gfl_r34_fpn_36e_bccd.py' in str(error.value)
    for _, teacher in _teachers():
        if teacher['checkpoint'] != 'auto':
            config = teacher['config'].removeprefix('ld_plugin::')
            with pytest.raises(ConfigError, match=f'mim train mmdet-ld-plugin {re.escape(config)}'):
                load_checkpoint_file(teacher['checkpoint'], trained_by=teacher['config'])


# --- READMEs --------------------------------------------------------------------------------------


def _rows(folder: str, *columns: str) -> list[dict[str, str]]:
    """Rows of the tables with these columns in a folder's README, without marks of code."""
    lines = (CONFIGS / folder / 'README.md').read_text().splitlines()
    rows = []
    for is_table, block in itertools.groupby(lines, lambda line: line.startswith('|')):
        if is_table:
            cells = [[c.strip(' `') for c in line.strip('| ').split('|')] for line in block]
            table = [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]
            rows += table if set(columns) <= set(cells[0]) else []
    return rows


@pytest.mark.parametrize('folder', [*PAPERS, 'bccd'])
def test_readme_lists_every_config_once(folder: str) -> None:
    rows = _rows(folder, 'config', 'epochs')
    assert sorted(f'{folder}/{row["config"]}.py' for row in rows) == _configs(folder)
    for row in rows:
        assert _read(f'{folder}/{row["config"]}.py').train_cfg.max_epochs == int(row['epochs'])


@pytest.mark.parametrize('name', ROWS)
def test_readme_says_what_the_config_does(name: str) -> None:
    cfg, folder = _read(name), Path(name).parent.name
    (row,) = [r for r in _rows(folder, 'config', 'epochs') if r['config'] == Path(name).stem]
    epochs = int(row['epochs'])
    depth = f'R-{cfg.model.backbone.depth}' + '-DCN' * ('dcn' in cfg.model.backbone)
    assert row['student'].split()[-1] == depth
    *warm_up, steps = cfg.param_scheduler
    assert all(phase.end == 500 for phase in warm_up)
    assert (steps.type, steps.end) == ('MultiStepLR', epochs)
    assert steps.milestones == MILESTONES[epochs]
    losses = _losses(cfg)
    assert row.get('losses', '').split(', ') == (losses or [''])
    if losses:
        (teacher,) = [r for r in _rows(folder, 'weights') if r['teacher'] == row['teacher']]
        assert cfg.model.teacher.config == teacher['config']
        assert (cfg.model.teacher.checkpoint == 'auto') == (teacher['weights'] == 'auto')


@pytest.mark.parametrize('name', ROWS)
def test_published_schedule(name: str) -> None:
    """The LD authors' images per GPU on GFL, with its learning rate scaled; else the stock ones."""
    cfg, is_rotated = _read(name), name.startswith('rotated_ld/')
    is_scaled = name.startswith('ld/') and 'dist-' not in name
    assert cfg.train_dataloader.batch_size == (3 if is_scaled else 2)
    base = 2 if is_rotated else 16  # MMRotate's rates are for one GPU
    assert cfg.auto_scale_lr.to_dict() == dict(enable=is_scaled, base_batch_size=base)
    rate = 0.0025 if is_rotated else 0.01
    rate *= 2 if 'rpn_head' in cfg.model and 'voc' not in name else 1
    assert cfg.optim_wrapper.optimizer.to_dict() == dict(
        type='SGD', lr=rate, momentum=0.9, weight_decay=0.0001
    )
    if 'voc0712' in name:
        assert cfg.train_dataloader.dataset.times == 3
    if 'voc0712' in name and is_scaled:
        assert cfg.val_evaluator.iou_thrs == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]


# --- settings that are those of stock configs -----------------------------------------------------


@needs.mmrotate
@pytest.mark.parametrize('name', [n for n in ALL if n.startswith('rotated_ld/') and 'dist-' in n])
def test_rotated_boxes_are_learnt_as_in_stock_configs(name: str) -> None:
    loss = re.search('gwd|kld-stable|kld', name)[0]
    kind = 'rr-6x_hrsc' if loss == 'kld-stable' else '1x_dota'
    folder = loss.split('-')[0]
    stock = _model(f'mmrotate::{folder}/rotated-retinanet-hbox-oc_r50_fpn_{loss}_{kind}.py')
    for key in ('loss_bbox', 'reg_decoded_bbox'):
        assert _model(name)['bbox_head'][key] == stock['bbox_head'][key], key


#: where files are, and what stands beside a type in stock configs alone, or in those over them
ELSEWHERE = ('_scope_', 'backend_args', 'data_root')


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items() if k not in ELSEWHERE}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


STOCK_DATA = [
    ('_voc0712.py', 'mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py'),
    ('_hrsc.py', 'mmrotate::rotated_retinanet/rotated-retinanet-hbox-oc_r50_fpn_rr-6x_hrsc.py'),
]


@pytest.mark.parametrize(
    ('name', 'stock'),
    [(name, stock) for ending, stock in STOCK_DATA for name in ALL if name.endswith(ending)],
)
def test_data_are_those_of_stock_configs(name: str, stock: str) -> None:
    cfg, expected = _read(name), _read(stock)
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        assert _plain(cfg[loader].dataset) == _plain(expected[loader].dataset), loader
    assert cfg.val_evaluator.get('eval_mode') == expected.val_evaluator.get('eval_mode')


#: the root of the data, and what of it is trained on, validated on and tested on
PARTS = {
    'dota-train': ('data/split_ss_dota/', 'train', 'val', 'val'),
    'dota': ('data/split_ss_dota/', 'trainval', None, 'test'),
    'dotav15': ('data/split_ss_dota1_5/', 'trainval', None, 'test'),
    'hrsc': ('data/hrsc/', 'trainval', 'test', 'test'),
}


@needs.mmrotate
@pytest.mark.parametrize('name', _configs('rotated_ld'))
def test_parts_of_rotated_data(name: str) -> None:
    data = Path(name).stem.split('_')[-1]
    root, *parts = PARTS[data]
    for loader, part in zip(('train', 'val', 'test'), parts, strict=True):
        dataset = (_read(name)[f'{loader}_dataloader'] or {}).get('dataset', {})
        if part is None:
            assert not dataset
            continue
        assert dataset.data_root == root
        if data == 'hrsc':
            assert dataset.ann_file == f'ImageSets/{part}.txt'
        else:
            assert dataset.ann_file == ('' if part == 'test' else f'{part}/annfiles/')
            assert dataset.data_prefix == dict(img_path=f'{part}/images/')
    if None in parts:
        evaluator = _read(name).test_evaluator
        assert evaluator.format_only and evaluator.merge_patches
        assert evaluator.outfile_prefix == f'work_dirs/{data}_submission/Task1'


@pytest.mark.parametrize('name', [n for n in ALL if n.startswith('ld/dist-')])
def test_heads_with_distributions_learn_as_in_stock_configs(name: str) -> None:
    head = _model(name)['bbox_head']
    stock = name.removeprefix('ld/dist-')
    expected = _model(f'mmdet::{stock.split("_")[0]}/{stock}')['bbox_head']
    if 'retinanet' in name:  # L1 compares offsets
        expected['loss_bbox'] = dict(type='GIoULoss', loss_weight=2.0)
    assert head['reg_max'] == 16
    assert [head[k] for k in head if 'loss_' in k] == [expected[k] for k in head if 'loss_' in k]


def test_deformable_convolutions_are_those_of_the_stock_teacher() -> None:
    found = _model('ld/gfl_r101-dconv-c3-c5_fpn_4e_voc0712.py')['backbone']
    assert found == _model('mmdet::gfl/gfl_r101-dconv-c3-c5_fpn_ms-2x_coco.py')['backbone']


@pytest.mark.parametrize('name', ALL)
def test_evaluators_read_what_is_evaluated(name: str) -> None:
    for part in ('val', 'test'):
        loader, evaluator = _read(name)[f'{part}_dataloader'], _read(name)[f'{part}_evaluator']
        if 'ann_file' in (evaluator or {}):
            file = Path(loader.dataset.data_root, loader.dataset.ann_file)
            assert Path(evaluator.ann_file) == file


@pytest.mark.parametrize('name', _configs('bccd'))
def test_schedule_of_bccd(name: str) -> None:
    cfg, epochs = _read(name), int(re.search(r'_(\d+)e_', name)[1])
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[-1].end == epochs
    assert cfg.param_scheduler[-1].milestones == [epochs * 2 // 3, epochs * 11 // 12]
    assert cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 4
    assert cfg.optim_wrapper.optimizer.lr == 0.02
    files = [cfg[f'{loader}_dataloader'].dataset.ann_file for loader in ('train', 'val', 'test')]
    assert files == [f'ImageSets/Main/{part}.txt' for part in ('train', 'test', 'test')]
