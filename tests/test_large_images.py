"""Large images in DOTA's form: MMRotate's splitting tool, and what is read of its patches."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmdet.registry import DATASETS

from ld_plugin.annotation_check.dota import check_dota

pytest.importorskip('mmrotate')
TOOL = Path(importlib.util.find_spec('mmrotate').origin).parent / (
    '.mim/tools/data/dota/split/img_split.py'
)
OPTIONS = dict(sizes=[160], gaps=[40], padding_value=[104, 116, 124], nproc=1)
LINES = ['imagesource:GoogleEarth', 'gsd:0.1', '10 10 40 10 40 30 10 30 plane 0']
SHIP = '200 100 290 100 290 140 200 140 ship 1'


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """An image of 320 x 240 pixels with two objects."""
    for folder in ('images', 'labelTxt'):
        (tmp_path / 'raw' / folder).mkdir(parents=True)
    cv2.imwrite(str(tmp_path / 'raw/images/P1.png'), np.zeros((240, 320, 3), np.uint8))
    write(tmp_path / 'raw', [*LINES, SHIP])
    return tmp_path / 'raw'


def write(raw: Path, lines: list[str]) -> None:
    (raw / 'labelTxt/P1.txt').write_text('\n'.join(lines) + '\n')


def split(raw: Path) -> Path:
    """Run the tool; gives the folder of its patches."""
    out = raw.parent / 'split'
    folders = dict(img_dirs=[f'{raw}/images'], ann_dirs=[f'{raw}/labelTxt'], save_dir=str(out))
    options = raw.parent / 'options.json'
    options.write_text(json.dumps(OPTIONS | folders))
    subprocess.run(
        [sys.executable, str(TOOL), '--base-json', str(options)], check=True, capture_output=True
    )
    return out


def dataset(out: Path) -> object:
    return DATASETS.build(
        dict(
            type='mmrotate.DOTADataset',
            ann_file=f'{out}/annfiles/',
            data_prefix=dict(img_path=f'{out}/images/'),
        )
    )


def test_patches_are_read_and_pass_the_check(raw: Path) -> None:
    assert check_dota(raw / 'labelTxt', raw / 'images', raw=True).problems == []
    out = split(raw)
    report = check_dota(out / 'annfiles', out / 'images', ('plane', 'ship'))
    assert report.problems == []
    assert str(report) == '6 images, 5 objects: ship 4, plane 1'
    found = dataset(out)
    names = [f'P1__160__{x}___{y}' for x in (0, 120, 160) for y in (0, 80)]
    assert sorted(found.get_data_info(i)['img_id'] for i in range(len(found))) == sorted(names)
    assert all(Path(found.get_data_info(i)['img_path']).is_file() for i in range(len(found)))


def test_the_tool_leaves_out_what_it_cannot_read(raw: Path) -> None:
    write(raw, [*LINES, SHIP.replace(' ', '\t'), '1 2 3 ship 0'])
    assert len(check_dota(raw / 'labelTxt', raw / 'images', raw=True).problems) == 2
    report = check_dota(split(raw) / 'annfiles', raw.parent / 'split/images')
    assert dict(report.objects) == dict(plane=1)


def test_a_raw_line_without_difficulty_becomes_two(raw: Path) -> None:
    write(raw, [*LINES, SHIP.removesuffix(' 1')])
    (problem,) = check_dota(raw / 'labelTxt', raw / 'images', raw=True).problems
    assert problem.place.endswith('P1.txt:4')
    out = split(raw)
    assert check_dota(out / 'annfiles', out / 'images').problems != []
    with pytest.raises(IndexError):
        dataset(out)


def commands_of_readme() -> list[list[str]]:
    """What the README says to run for splitting, as words."""
    readme = (Path(__file__).resolve().parents[1] / 'README.md').read_text().replace('\\\n', ' ')
    return [shlex.split(line) for line in re.findall('^ +(mim run .*img_split.*)$', readme, re.M)]


def test_readme_splits_both_parts_alike() -> None:
    train, val = commands_of_readme()
    assert train != val
    assert [word.replace('/train', '/val') for word in train] == val


def test_commands_of_the_readme_split_an_image(tmp_path: Path) -> None:
    """As they stand there, and where they stand: at 1024 pixels, overlapping by 200."""
    mim, *words = commands_of_readme()[0]
    assert mim == 'mim'
    raw = tmp_path / 'data/DOTA/train'
    for folder in ('images', 'labelTxt'):
        (raw / folder).mkdir(parents=True)
    cv2.imwrite(str(raw / 'images/P1.png'), np.zeros((1100, 1500, 3), np.uint8))
    cv2.imwrite(str(raw / 'images/P2.png'), np.zeros((200, 300, 3), np.uint8))
    middle, corner = '600 500 700 500 700 600 600 600', '1400 1000 1450 1000 1450 1050 1400 1050'
    write(raw, [*LINES, f'{middle} ship 0', f'{corner} ship 1'])
    (raw / 'labelTxt/P2.txt').write_text('\n'.join(LINES) + '\n')

    subprocess.run(
        [sys.executable, '-c', 'from mim.__main__ import cli; cli()', *words],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    out = tmp_path / 'data/split_ss_dota/train'
    patches = [f'P1__1024__{x}___{y}' for x in (0, 476) for y in (0, 76)] + ['P2__1024__0___0']
    for folder in ('images', 'annfiles'):
        assert sorted(path.stem for path in (out / folder).iterdir()) == sorted(patches)
    report = check_dota(out / 'annfiles', out / 'images', ('plane', 'ship'))
    assert report.problems == []
    # the middle is in each of the four patches, the planes and the corner in one
    assert dict(report.objects) == dict(ship=4 + 1, plane=1 + 1)
    assert len(dataset(out)) == 5
    padded = cv2.imread(str(out / 'images/P2__1024__0___0.png'))
    assert padded.shape == (1024, 1024, 3)
    assert padded[199, 299].tolist() == [0, 0, 0]
    assert padded[200, 300].tolist() == padded[-1, -1].tolist() == [104, 116, 124]
