"""`tools/make_digits.py`: what is in the pictures, and that three formats say the same about it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import cv2
import make_digits as tool
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from tests import needs

TOOL = Path(__file__).parents[1] / 'tools' / 'make_digits.py'
COUNTS = {'train': 8, 'val': 3, 'test': 4}
SIZE = (160, 120)


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tool.make_digits(tmp_path_factory.mktemp('digits') / 'data', COUNTS, SIZE, seed=3)


@pytest.fixture(scope='module')
def options() -> object:
    return tool.Options(counts=COUNTS, width=SIZE[0], height=SIZE[1], seed=3)


def _scenes(options: object, more: int = 0) -> list:
    """The scenes in the folder, and some more of each split."""
    return [
        tool.make_scene(options, split, index)
        for split, count in COUNTS.items()
        for index in range(count + more)
    ]


def _coco(data: Path, split: str) -> tuple[dict, dict[str, list[dict]]]:
    """A split's COCO file, and its annotations by the image's name without suffix."""
    coco = json.loads((data / 'annotations' / f'{split}.json').read_text())
    names = {image['id']: Path(image['file_name']).stem for image in coco['images']}
    by_name: dict[str, list[dict]] = {name: [] for name in names.values()}
    for ann in coco['annotations']:
        by_name[names[ann['image_id']]].append(ann)
    return coco, by_name


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


# --- the same again, and apart ------------------------------------------------------------------


def test_same_options_give_same_bytes(data: Path, tmp_path: Path) -> None:
    again = tool.make_digits(tmp_path / 'again', COUNTS, SIZE, seed=3)
    assert _contents(again) == _contents(data)
    other = tool.make_digits(tmp_path / 'other', COUNTS, SIZE, seed=4)
    image = 'JPEGImages/train_000000.jpg'
    assert _contents(other)[image] != _contents(data)[image]


def test_whole_angles_are_written_like_others() -> None:
    assert repr(tool.Options(max_angle=45)) == repr(tool.Options(max_angle=45.0))


def test_counts_of_other_splits_change_nothing(data: Path, tmp_path: Path) -> None:
    fewer = _contents(tool.make_digits(tmp_path / 'fewer', {'train': 2, 'test': 4}, SIZE, seed=3))
    whole = _contents(data)
    scenes = [
        name
        for name in fewer
        if Path(name).suffix in ('.jpg', '.xml') or 'annfiles' in name or 'test' in name
    ]
    assert len(scenes) > 4 * 6
    assert all(fewer[name] == whole[name] for name in scenes)
    assert _coco(tmp_path / 'fewer', 'val')[0]['images'] == []


def test_splits_share_no_scans(data: Path) -> None:
    parts = {split: set(itertools.chain(*scans)) for split, scans in tool.split_scans(3).items()}
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 1797
    assert tool.split_scans(4) != tool.split_scans(3)
    labels = tool.load_scans()[1]
    marker = json.loads((data / 'digits.json').read_text())
    for split in tool.SPLITS:
        assert set(marker['splits'][split]['scans']) <= parts[split]
        for ann in _coco(data, split)[0]['annotations']:
            assert ann['scan'] in parts[split]
            assert labels[ann['scan']] == ann['category_id'] - 1


def test_splits_share_no_background(data: Path) -> None:
    marker = json.loads((data / 'digits.json').read_text())
    seen = {name: np.zeros(photo.shape[:2], int) for name, photo in tool.load_photos().items()}
    for split in tool.SPLITS:
        regions = marker['splits'][split]['background']
        for name, (x0, y0, x1, y1) in regions.items():
            seen[name][y0:y1, x0:x1] += 1
        for image in _coco(data, split)[0]['images']:
            x0, y0, x1, y1 = image['crop']
            region = regions[image['photo']]
            assert region[0] <= x0 < x1 <= region[2] and region[1] <= y0 < y1 <= region[3]
    for covered in seen.values():
        assert covered.max() == 1 and covered.mean() > 0.9
        # Two cuts, with a margin on both sides.
        assert (covered[0] == 0).sum() >= 2 * 2 * tool.STRIP_MARGIN


def test_background_is_the_crop_of_the_photograph() -> None:
    samples = load_sample_images()
    photos = {Path(n).name: x for n, x in zip(samples.filenames, samples.images, strict=True)}
    options = tool.Options(counts=COUNTS, distractors=0, min_digits=0, max_digits=1)
    flips = set()
    for index in range(8):
        scene = tool.make_scene(options, 'train', index)
        scene.digits.clear()
        shown = tool.render(scene)
        np.testing.assert_allclose(shown, np.clip(scene.background + scene.noise, 0, 255), atol=0.6)
        x0, y0, x1, y1 = scene.crop
        crop = photos[scene.photo][y0:y1, x0:x1, ::-1]  # OpenCV's order of colours
        crop = cv2.resize(crop.astype(np.float32), (320, 240), interpolation=cv2.INTER_AREA)
        crop = crop[:, ::-1] if scene.flip else crop
        for colour in range(3):  # light and contrast are others
            pair = crop[..., colour].ravel(), scene.background[..., colour].ravel()
            assert np.corrcoef(*pair)[0, 1] > 0.97
        flips.add(scene.flip)
    assert flips == {False, True}


# --- ink and boxes -------------------------------------------------------------------------------


def test_boxes_are_the_extent_of_the_ink(options: object) -> None:
    for scene in _scenes(options, more=10):
        for digit in scene.digits:
            mask = digit.mask(SIZE[1], SIZE[0])
            rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert digit.box == (cols[0], rows[0], cols[-1] + 1, rows[-1] + 1)
            assert 0 <= digit.box[0] < digit.box[2] <= SIZE[0]
            assert 0 <= digit.box[1] < digit.box[3] <= SIZE[1]


def test_removing_a_digit_changes_its_box_only(options: object) -> None:
    for scene in _scenes(options):
        whole = tool.render(scene)
        for digit in list(scene.digits):
            others = [other for other in scene.digits if other is not digit]
            without = tool.Scene(**{**vars(scene), 'digits': others})
            changed = (tool.render(without) != whole).any(2)
            x0, y0, x1, y1 = digit.box
            assert changed[y0:y1, x0:x1].sum() == changed.sum()
            # Most of what a detector is asked to find can be seen.
            assert changed.sum() > 0.5 * digit.mask(*whole.shape[:2]).sum()


def test_quads_enclose_the_ink_tightly(options: object) -> None:
    uncut = 0
    for scene in _scenes(options, more=10):
        for digit in scene.digits:
            width, height = (np.linalg.norm(digit.quad[i + 1] - digit.quad[i]) for i in (0, 1))
            x_axis, y_axis = tool._rotation(digit.angle).T
            pixels = np.argwhere(digit.mask(SIZE[1], SIZE[0]))[:, ::-1] + 0.5
            along = (pixels - digit.quad[0]) @ np.stack([x_axis, y_axis], 1)
            # Pixel centres, and ink reaches half a pixel further: one pixel of tolerance.
            assert along.min() > -1 and (along.max(0) < (width + 1, height + 1)).all()
            if not digit.truncated:
                uncut += 1
                assert (along.min(0) < 2).all()
                assert (along.max(0) > (width - 2, height - 2)).all()
            low, high = digit.quad.min(0) - 1, digit.quad.max(0) + 1
            assert (low <= digit.box[:2]).all() and (digit.box[2:] <= high).all()
            assert options.min_height - 1 <= height <= options.max_height + 4
    assert uncut > 50


def test_digits_are_recognisable(options: object) -> None:
    digits = [digit for scene in _scenes(options, more=20) for digit in scene.digits]
    assert min(digit.visible for digit in digits) >= 1 - options.max_hidden
    assert 0.05 < np.mean([digit.visible < 1 for digit in digits]) < 0.6
    none = tool.Options(counts=COUNTS, width=160, height=120, max_hidden=0, max_digits=20)
    shown = [d.visible for i in range(5) for d in tool.make_scene(none, 'train', i).digits]
    assert len(shown) > 10 and min(shown) == 1


@pytest.mark.parametrize(
    ('start', 'box'),
    [
        ((310, 230), (310, 230, 320, 240)),
        ((-1, 5), (0, 5, 9, 15)),
        ((-2, 5), None),
        ((5, 232), None),
    ],
)
def test_digits_are_cut_a_little_at_most(start: tuple, box: tuple | None) -> None:
    options = tool.Options(counts=COUNTS, width=320, height=240)
    known = dict(label=0, scan=0, angle=0.0, quad=np.zeros((4, 2)))
    ink = np.ones((10, 10), np.float32)
    digit = tool._crop_digit(ink, np.array(start), options, **known)
    assert (digit and digit.box) == box
    assert digit is None or digit.truncated == (digit.alpha.size < 100)


def test_images_show_the_scenes(data: Path, options: object) -> None:
    for split, count in COUNTS.items():
        for index in range(count):
            image = cv2.imread(str(data / 'JPEGImages' / f'{split}_{index:06}.jpg'))
            assert image.shape == (SIZE[1], SIZE[0], 3)
            shown = tool.render(tool.make_scene(options, split, index))
            assert np.abs(image.astype(int) - shown).mean() < 6
            linked = data / 'dota' / split / 'images' / f'{split}_{index:06}.jpg'
            assert os.path.samefile(linked, data / 'JPEGImages' / linked.name)


def test_quality_is_that_of_the_files(data: Path, tmp_path: Path) -> None:
    coarse = tool.make_digits(tmp_path / 'data', {'train': 1}, SIZE, seed=3, quality=10)
    image = 'JPEGImages/train_000000.jpg'
    assert len(_contents(coarse)[image]) < 0.5 * len(_contents(data)[image])


def test_angle_turns_clockwise() -> None:
    # The top right corner of an upright rectangle moves down.
    turned = tool._rotation(30) @ [1, 0]
    assert turned[0] > 0 and turned[1] == pytest.approx(0.5)
    options = tool.Options(counts=COUNTS, max_angle=0)
    for digit in tool.make_scene(options, 'train', 0).digits:
        assert digit.quad[0, 1] == digit.quad[1, 1] < digit.quad[2, 1]


# --- three formats -------------------------------------------------------------------------------


def test_formats_agree(data: Path) -> None:
    for split, count in COUNTS.items():
        coco, by_name = _coco(data, split)
        listed = (data / 'ImageSets' / 'Main' / f'{split}.txt').read_text().split()
        assert len(listed) == count and listed == list(by_name)
        names = {c['id']: c['name'] for c in coco['categories']}
        assert list(names.values()) == list(tool.CLASSES)
        for name, anns in by_name.items():
            voc_file = ET.parse(data / 'Annotations' / f'{name}.xml')
            assert [int(side.text) for side in voc_file.find('size')] == [*SIZE, 3]
            objects = voc_file.findall('object')
            lines = (data / 'dota' / split / 'annfiles' / f'{name}.txt').read_text().splitlines()
            assert len(anns) == len(objects) == len(lines) > 0
            for ann, obj, line in zip(anns, objects, lines, strict=True):
                x, y, w, h = ann['bbox']
                voc = [
                    int(obj.find(f'bndbox/{key}').text) for key in ('xmin', 'ymin', 'xmax', 'ymax')
                ]
                assert voc == [x + 1, y + 1, x + w, y + h]
                assert ann['area'] == w * h
                *quad, dota_name, difficulty = line.split()
                assert [float(value) for value in quad] == ann['segmentation'][0]
                assert names[ann['category_id']] == dota_name == obj.find('name').text
                assert difficulty == obj.find('difficult').text == '0'


def test_voc_tells_which_digits_are_cut_off(options: object, tmp_path: Path) -> None:
    scene = tool.make_scene(options, 'train', 0)
    scene.digits = [replace(scene.digits[0], truncated=cut) for cut in (False, True)]
    tool._write_voc(tmp_path / 'a.xml', tool._scene_record(scene, options, 'train', 0))
    objects = ET.parse(tmp_path / 'a.xml').findall('object')
    assert [obj.find('truncated').text for obj in objects] == ['0', '1']


@needs.mmrotate
def test_stock_data_sets_read_them(data: Path) -> None:
    import mmdet.datasets  # noqa: F401  registers
    import mmrotate.datasets  # noqa: F401  (registers its types)
    from mmdet.registry import DATASETS

    for split, count in COUNTS.items():
        _, by_name = _coco(data, split)
        for form, config in tool.dataset_configs(data, split).items():
            dataset = DATASETS.build(dict(config, pipeline=[], test_mode=True))
            assert len(dataset) == count, form
            for index in range(count):
                info = dataset.get_data_info(index)
                anns = by_name[Path(info['img_path']).stem]
                assert Path(info['img_path']).is_file()
                labels = [instance['bbox_label'] for instance in info['instances']]
                assert labels == [ann['category_id'] - 1 for ann in anns]
                for instance, ann in zip(info['instances'], anns, strict=True):
                    x, y, w, h = ann['bbox']
                    expected = {
                        'coco': [x, y, x + w, y + h],
                        'voc': [x, y, x + w - 1, y + h - 1],
                        'dota': ann['segmentation'][0],
                    }[form]
                    assert instance['bbox'] == expected and not instance['ignore_flag']


@needs.mmrotate
def test_stock_rotated_pipeline_finds_the_angles(data: Path) -> None:
    import mmrotate.datasets  # noqa: F401  (registers its types)
    from mmdet.registry import DATASETS
    from mmengine.registry import init_default_scope

    init_default_scope('mmrotate')  # as in its configs
    pipeline = [
        dict(type='mmdet.LoadImageFromFile'),
        dict(type='mmdet.LoadAnnotations', with_bbox=True, box_type='qbox'),
        dict(type='mmrotate.ConvertBoxType', box_type_mapping=dict(gt_bboxes='rbox')),
        dict(type='mmdet.PackDetInputs', meta_keys=('img_id', 'img_path')),
    ]
    config = tool.dataset_configs(data, 'train')['dota']
    dataset = DATASETS.build(dict(config, pipeline=pipeline))
    _, by_name = _coco(data, 'train')
    for index in range(COUNTS['train']):
        sample = dataset[index]['data_samples']
        anns = by_name[sample.img_id]
        boxes = sample.gt_instances.bboxes.tensor.numpy()
        assert len(boxes) == len(anns)
        for (cx, cy, w, h, angle), ann in zip(boxes, anns, strict=True):
            quad = np.array(ann['segmentation'][0]).reshape(4, 2)
            np.testing.assert_allclose([cx, cy], quad.mean(0), atol=0.6)
            # A rectangle is the same after a quarter turn, with its sides exchanged.
            turn = (np.rad2deg(angle) - ann['angle'] + 45) % 90 - 45
            assert abs(turn) < 6
            sides = [np.linalg.norm(quad[1] - quad[0]), np.linalg.norm(quad[2] - quad[1])]
            np.testing.assert_allclose(sorted([w, h]), sorted(sides), atol=1.5)


# --- folders -------------------------------------------------------------------------------------


def test_a_program_that_calls_it_keeps_its_signal_handlers(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert tool.main([str(tmp_path / 'data'), '--train', '1', '--size', '96x96', '--quiet']) == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_finished_folder_is_used_again(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / 'a[1]' / 'data'
    args = [str(out), '--train', '2', '--val', '0', '--test', '0', '--size', '96x96']
    assert tool.main(args) == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob('*')}
    capsys.readouterr()
    assert tool.main(args) == 0
    assert 'is there already' in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob('*')} == before
    assert [path.name for path in out.parent.iterdir()] == ['data']


def test_other_options_need_overwrite(tmp_path: Path) -> None:
    out = tool.make_digits(tmp_path / 'data', {'train': 2}, (96, 96))
    with pytest.raises(tool.DigitsError, match=r'other options .seed: 0 there, 1 now'):
        tool.make_digits(out, {'train': 2}, (96, 96), seed=1)
    tool.make_digits(out, {'val': 1}, (96, 96), seed=1, overwrite=True)
    assert [path.name for path in (out / 'JPEGImages').iterdir()] == ['val_000000.jpg']
    assert [path.name for path in tmp_path.iterdir()] == ['data']


def test_data_of_another_version_need_overwrite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tool.make_digits(tmp_path / 'data', {'train': 1}, (96, 96))
    monkeypatch.setattr(tool, 'FORMAT', tool.FORMAT + 1)
    with pytest.raises(tool.DigitsError, match=r'options .by another version of this tool'):
        tool.make_digits(out, {'train': 1}, (96, 96))


def test_a_link_to_a_folder_elsewhere_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'disk').mkdir()
    (tmp_path / 'data').symlink_to('disk')
    for seed in (0, 1):
        out = tool.make_digits('~/data', {'train': 1}, (96, 96), seed, overwrite=True)
        assert out == tmp_path.resolve() / 'disk'
        assert (tmp_path / 'data').is_symlink()


@pytest.mark.parametrize(
    'file',
    [
        'JPEGImages/train_000001.jpg',
        'Annotations/train_000001.xml',
        'dota/train/images/train_000001.jpg',
        'dota/train/annfiles/train_000001.txt',
        'annotations/train.json',
        'ImageSets/Main/train.txt',
    ],
)
def test_missing_files_are_made_again(tmp_path: Path, file: str) -> None:
    out = tool.make_digits(tmp_path / 'data', {'train': 2}, (96, 96))
    before = _contents(out)
    (out / file).unlink()
    tool.make_digits(out, {'train': 2}, (96, 96))
    assert _contents(out) == before


def test_what_others_made_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.tex').touch()
    for overwrite in (False, True):
        with pytest.raises(tool.DigitsError, match='not made by this tool'):
            tool.make_digits(tmp_path / 'mine', {'train': 1}, overwrite=overwrite)
        with pytest.raises(tool.DigitsError, match='is a file'):
            tool.make_digits(tmp_path / 'mine' / 'thesis.tex', {'train': 1}, overwrite=overwrite)
    out = tool.make_digits(tmp_path / 'data', {'train': 1}, (96, 96))
    (out / 'work_dirs').mkdir()
    with pytest.raises(tool.DigitsError, match="holds 'work_dirs'"):
        tool.make_digits(out, {'train': 2}, (96, 96), overwrite=True)
    assert tool.make_digits(out, {'train': 1}, (96, 96)) == out


def test_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tool, '_write_dota', stop)
        with pytest.raises(KeyboardInterrupt):
            tool.make_digits(tmp_path / 'data', {'train': 1}, (96, 96))
    assert not list(tmp_path.iterdir())
    # A run that was killed cannot clean up; the next one does. There is no process 4194304.
    for process in (4194304, os.getpid()):
        (tmp_path / f'{tool._partial_prefix(tmp_path / "data")}{process}').mkdir()
    tool.make_digits(tmp_path / 'data', {'train': 1}, (96, 96))
    assert [path.name for path in tmp_path.iterdir()] == ['data']


@pytest.mark.parametrize('error', [None, PermissionError], ids=['ours', "somebody else's"])
def test_what_another_process_is_writing_stays(
    error: type[Exception] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(process: int, number: int) -> None:
        assert (process, number) == (4194304, 0)
        if error:
            raise error

    monkeypatch.setattr(os, 'kill', kill)
    others = tmp_path / f'{tool._partial_prefix(tmp_path / "data")}4194304'
    others.mkdir()
    tool.make_digits(tmp_path / 'data', {'train': 1}, (96, 96))
    assert others.exists()


def test_of_two_runs_at_once_the_faster_one_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_marker = tool._write_marker

    def finish_twice(partial: Path, *args: object) -> None:
        write_marker(partial, *args)
        shutil.copytree(partial, tmp_path / 'data')

    monkeypatch.setattr(tool, '_write_marker', finish_twice)
    tool.make_digits(tmp_path / 'data', {'train': 1}, (96, 96))
    assert [path.name for path in tmp_path.iterdir()] == ['data']


def test_what_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tool.make_digits(tmp_path / 'data', {'train': 1}, (96, 96))
    before, rename = _contents(out), Path.rename

    def fail(path: Path, target: Path) -> Path:
        if target == out and path.suffix != '.old':
            raise OSError
        return rename(path, target)

    monkeypatch.setattr(Path, 'rename', fail)
    with pytest.raises(tool.FolderError, match='cannot rename'):
        tool.make_digits(out, {'train': 1}, (96, 96), seed=1, overwrite=True)
    assert _contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ['data']


def test_copies_where_links_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, 'link', refuse)
    out = tool.make_digits(tmp_path / 'data', {'train': 1}, (96, 96))
    copy = out / 'dota' / 'train' / 'images' / 'train_000000.jpg'
    assert copy.read_bytes() == (out / 'JPEGImages' / copy.name).read_bytes()


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--size', '64x320'], 'both sides must be from 96'),
        (['--size', '320x4097'], 'both sides must be from 96 to 4096'),
        (['--size', '320'], 'expected WIDTHxHEIGHT'),
        (['--train', '-1'], '--train must not be negative'),
        (['--train', 'many'], 'invalid int value'),
        (['--test', '1000000'], 'at most 999999 images per split'),
        (['--train', '0', '--val', '0', '--test', '0'], 'nothing to make'),
        (['--seed', '-5'], '--seed must not be negative'),
        (['--max-digits', '0'], '--max-digits must be from 1'),
        (['--max-digits', '101'], '--max-digits must be from 1 to 100'),
        (['--min-digits', '9'], '--min-digits 9 is more than --max-digits 8'),
        (['--min-height', '4'], 'cannot be read'),
        (['--min-height', '60', '--max-height', '50'], 'is more than --max-height'),
        (['--max-height', '200'], 'too much for images of 320x240: at most 144'),
        (['--max-angle', 'nan'], '--max-angle must be from 0 to 180'),
        (['--max-angle', '-1'], '--max-angle must be from 0 to 180'),
        (['--max-hidden', '1'], '--max-hidden must be from 0 to 0.9'),
        (['--distractors', '101'], '--distractors must be at most 100'),
        (['--quality', '9'], '--quality must be from 10 to 100'),
        (['--quality', '500'], '--quality must be from 10 to 100'),
    ],
)
def test_bad_options(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    args: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(tool, '_write_split', lambda *_: [])  # nothing is made, however many
    try:
        status = tool.main([str(tmp_path / 'data'), *args])
    except SystemExit as error:  # argparse's own way out
        status = error.code
    assert status == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'data').exists()


def test_bad_arguments() -> None:
    with pytest.raises(tool.DigitsError, match="unknown split 'dev'"):
        tool.make_digits('unused', {'dev': 1})
    with pytest.raises(tool.DigitsError, match="unknown option 'colour'"):
        tool.make_digits('unused', colour='red')
    with pytest.raises(tool.DigitsError, match='--train must be a whole number'):
        tool.make_digits('unused', {'train': 1.5})
    with pytest.raises(tool.DigitsError, match='--val must be a whole number, not True'):
        tool.make_digits('unused', {'val': True})


@pytest.mark.parametrize(
    ('size', 'given', 'heights'),
    [
        ((320, 240), {}, (24, 110)),
        ((96, 96), {}, (12, 44)),
        ((320, 240), {'max_height': 20}, (20, 20)),
        ((320, 240), {'min_height': 120}, (120, 120)),
    ],
)
def test_digits_follow_the_size_unless_asked_otherwise(
    size: tuple[int, int], given: dict[str, int], heights: tuple[int, int]
) -> None:
    options = tool.Options(width=size[0], height=size[1], **given)
    assert (options.min_height, options.max_height) == heights


def test_a_limit_below_what_can_be_read_is_told_as_such() -> None:
    with pytest.raises(tool.DigitsError, match='--min-height 8 is more than --max-height 7'):
        tool.Options(max_height=7)


@pytest.mark.parametrize('size', [(96, 96), (640, 96), (100, 300), (1024, 768)])
def test_any_size(size: tuple[int, int]) -> None:
    options = tool.Options(counts={'train': 1}, width=size[0], height=size[1], max_angle=180)
    digits = []
    for index in range(6):
        scene = tool.make_scene(options, 'val', index)
        assert tool.render(scene).shape == (size[1], size[0], 3)
        digits += scene.digits
    assert len(digits) >= 6


def test_images_without_digits(tmp_path: Path) -> None:
    out = tool.make_digits(tmp_path / 'data', {'train': 12}, (96, 96), min_digits=0, max_digits=1)
    empty = [
        path for path in (out / 'dota' / 'train' / 'annfiles').iterdir() if not path.read_text()
    ]
    assert 0 < len(empty) < 12


def test_command_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(TOOL),
            'data',
            '--train',
            '0',
            '--val',
            '5',
            '--test',
            '0',
            '--size',
            '128X96',
            '--preview',
            'sheet.png',
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert '5 images are in' in done.stdout and 'val' in done.stdout
    assert cv2.imread(str(tmp_path / 'sheet.png')).shape == (2 * 98, 4 * 130, 3)


@pytest.mark.parametrize(
    ('error', 'status', 'message'),
    [
        (KeyboardInterrupt(), 130, 'make_digits: interrupted, nothing was written'),
        (OSError('no space left'), 2, 'make_digits: no space left'),
    ],
)
def test_what_stops_the_program(
    error: BaseException,
    status: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    def stop(*_args: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(tool, 'make_digits', stop)
    assert tool.main(['data']) == status
    assert capsys.readouterr().err == f'{message}\n'


def test_a_polite_kill_cleans_up(tmp_path: Path) -> None:
    options = ['--train', '999999', '--size', '96x96', '--quiet']
    with subprocess.Popen([sys.executable, str(TOOL), 'data', *options], cwd=tmp_path) as program:
        while not any(tmp_path.rglob('*.xml')) and program.poll() is None:
            time.sleep(0.05)
        program.terminate()
    assert program.returncode == 143
    assert not list(tmp_path.iterdir())
