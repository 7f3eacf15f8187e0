"""Large images in DOTA's form: MMRotate's splitting tool, and what is read of its patches."""

import importlib.util
import json
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
