"""`tools/check_data.py`: every message, and what the stock data sets do without it."""

import io
import json
import math
import re
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import check_data
import cv2
import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine import Config

from ld_plugin.annotation_check import Report, config_sources, folder_sources
from ld_plugin.annotation_check.coco import check_coco
from ld_plugin.annotation_check.dota import check_dota, check_dota_images
from ld_plugin.annotation_check.xml_files import check_hrsc, check_voc
from ld_plugin.errors import ConfigError
from ld_plugin.packages import is_installed
from tests import needs

CLASSES = ('plane', 'small-vehicle')
GOOD = '10 10 30 10 30 20 10 20 plane 0'


def image(path: Path) -> Path:
    """64 x 48 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((48, 64, 3), np.uint8))
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def messages(report: Report, is_error: bool = True) -> list[str]:
    return [str(problem) for problem in report.problems if problem.is_error == is_error]


# --- DOTA -----------------------------------------------------------------------------------------


def dota(root: Path, *lines: str, raw: bool = False) -> Report:
    """Check one image with these lines, in classes of its own."""
    image(root / 'images/P1.png')
    text(root / 'annfiles/P1.txt', '\n'.join([GOOD, *lines]) + '\n')
    return check_dota(root / 'annfiles', root / 'images', CLASSES, raw=raw)


def test_good_lines(tmp_path: Path) -> None:
    turned = '10.5 -3.25 30.0 10 25 20 5e0 8 small-vehicle 2'  # over the border, cut by the tool
    report = dota(tmp_path, turned, raw=False)
    assert report.problems == []
    assert str(report) == '1 images, 2 objects: plane 1, small-vehicle 1'


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('imagesource:GoogleEarth', "found 'imagesource:GoogleEarth', a line of the raw files at"),
        ('gsd:0.14', "found 'gsd:0.14', a line of the raw files"),
        ('', 'found an empty line, at which DOTADataset stops'),
        (
            '1 2 3 4 5 6 7 8 plane',
            'found 9 fields, expected 10 (x1 y1 x2 y2 x3 y3 x4 y4 class diff',
        ),
        ('10 10 30 10 30 20 10 20 small vehicle 0', 'found 11 fields, expected 10'),
        ('10 10 30 ten 30 20 10 20 plane 0', "found 'ten' as coordinate 4 of 8, expected a number"),
        ('10 10 30 10 nan 20 10 20 plane 0', "found 'nan' as coordinate 5 of 8, expected a number"),
        (
            '10 10 30 10 30 20 10 20 Plane 0',
            "found class 'Plane', expected one of the data set's 2",
        ),
        ('10 10 30 10 30 20 10 20 zebra 0', "the data set's 2: plane, small-vehicle"),
        ('10 10 30 10 30 20 10 20 plane easy', "found difficulty 'easy', expected a whole number"),
        ('10 10 30 10 30 10 10 10 plane 0', 'found a quadrilateral without area, whose offsets'),
        ('10 10 10 10 10 10 10 10 plane 0', 'found a quadrilateral without area'),
        (
            '100 10 130 10 130 20 100 20 plane 0',
            'the quadrilateral lies outside of its image of 64 x 48 pixels',
        ),
    ],
)
def test_malformed_line_is_named_with_file_and_line(
    tmp_path: Path, line: str, message: str
) -> None:
    (found,) = messages(dota(tmp_path, line, GOOD))
    assert found.startswith(f'{tmp_path}/annfiles/P1.txt:2: error: ')
    assert message in found


def test_every_line_is_named(tmp_path: Path) -> None:
    report = dota(tmp_path, 'plane', GOOD, '1 2 3', '10 10 30 10 30 20 10 20 plan 0')
    found = messages(report)
    assert str(report) == '1 images, 3 objects: plane 2, plan 1'
    assert [message.split(':')[1] for message in found] == ['2', '4', '5']
    assert "did you mean 'plane'?" in found[2]


@pytest.mark.parametrize('line', ['imagesource:GoogleEarth', 'gsd:null', ''])
def test_raw_files_have_headers(tmp_path: Path, line: str) -> None:
    assert dota(tmp_path, line, raw=True).problems == []


@pytest.mark.parametrize('line', [GOOD.replace(' 0', '\t0'), GOOD + ' ', ' ' + GOOD])
def test_raw_files_are_separated_by_single_spaces(tmp_path: Path, line: str) -> None:
    assert dota(tmp_path, line).problems == []
    (found,) = messages(dota(tmp_path, line, raw=True))
    assert 'found other separators than single spaces, which the splitting tool needs' in found


@pytest.mark.parametrize('suffix', ['.jpg', '.JPG', '.png', '.tif', '.bmp'])
def test_images_that_the_splitting_tool_reads(tmp_path: Path, suffix: str) -> None:
    image(tmp_path / f'images/P1{suffix}')
    text(tmp_path / 'labelTxt/P1.txt', GOOD)
    assert check_dota(tmp_path / 'labelTxt', tmp_path / 'images', raw=True).problems == []


def test_an_image_larger_than_pillow_thinks_safe(tmp_path: Path) -> None:
    text(tmp_path / 'labelTxt/P1.txt', GOOD)
    start = struct.pack('>4s2I5B', b'IHDR', 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = (start, b'IDAT')
    content = [struct.pack('>I', len(c) - 4) + c + struct.pack('>I', crc32(c)) for c in chunks]
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images/P1.png').write_bytes(b'\x89PNG\r\n\x1a\n' + b''.join(content))
    assert check_dota(tmp_path / 'labelTxt', tmp_path / 'images', raw=True).problems == []


def test_image_and_annotation_need_each_other(tmp_path: Path) -> None:
    image(tmp_path / 'images/P3.png')
    image(tmp_path / 'images/P4.jpg')
    text(tmp_path / 'annfiles/P2.txt', '')
    text(tmp_path / 'annfiles/P4.txt', '')
    report = dota(tmp_path)
    missing, other = messages(report)
    folder = tmp_path / 'images'
    assert f'P2.txt: error: its image {folder}/P2.png is missing; training stops at it' in missing
    assert 'P4.png is missing (there is P4.jpg); training' in other
    (unseen,) = messages(report, is_error=False)
    assert unseen.startswith(f'{folder}/P3.png: warning: has no {tmp_path}/annfiles/P3.txt; it is')
    raw = check_dota(tmp_path / 'annfiles', folder, raw=True)
    assert 'the splitting tool leaves its objects out without a word' in messages(raw)[0]
    assert 'takes it for an image without objects' in messages(raw, is_error=False)[0]


def test_empty_folder_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / 'annfiles').mkdir()
    (found,) = messages(check_dota(tmp_path / 'annfiles', tmp_path / 'images'))
    assert 'found no *.txt, expected one for every image' in found
    image(tmp_path / 'images/P1.png')
    (tmp_path / 'annfiles/P1.txt').write_bytes(b'\xff\xfe1')
    (found,) = messages(check_dota(tmp_path / 'annfiles', tmp_path / 'images'))
    assert f'{tmp_path}/annfiles/P1.txt: error: found bytes that are no UTF-8 text' in found


def test_broken_image(tmp_path: Path) -> None:
    image(tmp_path / 'images/P1.png')
    (tmp_path / 'images/P1.png').write_bytes(b'')
    text(tmp_path / 'annfiles/P1.txt', f'{GOOD}\n{GOOD}\n')
    (found,) = messages(check_dota(tmp_path / 'annfiles', tmp_path / 'images', CLASSES))
    assert found.startswith(f'{tmp_path}/images/P1.png: error: found no image that can be read')
    text(tmp_path / 'annfiles/P1.txt', '')  # of the image to be seen, too
    assert messages(check_dota(tmp_path / 'annfiles', tmp_path / 'images', CLASSES)) == [found]


def test_annotations_that_cannot_be_read_do_not_end_the_check(tmp_path: Path) -> None:
    (tmp_path / 'annfiles').mkdir()
    (tmp_path / 'annfiles/P1.txt').symlink_to(tmp_path / 'gone')
    (tmp_path / 'annfiles/P2.txt').mkdir()
    text(tmp_path / 'annfiles/P3.txt', 'nonsense')
    for name in ('P1', 'P2', 'P3'):
        image(tmp_path / f'images/{name}.png')
    report = check_dota(tmp_path / 'annfiles', tmp_path / 'images')
    assert messages(report, is_error=False) == []  # there may be objects in them
    gone, folder, wrong = messages(report)
    assert gone.startswith(f'{tmp_path}/annfiles/P1.txt: error: cannot be read (No such file')
    assert folder.startswith(f'{tmp_path}/annfiles/P2.txt: error: cannot be read (Is a directory)')
    assert wrong.startswith(f'{tmp_path}/annfiles/P3.txt:1: error: found 1 fields')


def test_images_to_test_on(tmp_path: Path) -> None:
    (found,) = messages(check_dota_images(tmp_path / 'images'))
    assert 'found no *.png, expected the images to test on' in found
    image(tmp_path / 'images/P1.png')
    image(tmp_path / 'images/P2.jpg')
    report = check_dota_images(tmp_path / 'images')
    assert (report.problems, report.num_images) == ([], 1)


# --- COCO -----------------------------------------------------------------------------------------


def coco_content() -> dict[str, list[dict[str, Any]]]:
    return dict(
        images=[dict(id=1, file_name='a.jpg', width=64, height=48)],
        annotations=[
            dict(id=7, image_id=1, category_id=i, bbox=[1, 2, 30, 20], area=600, iscrowd=0)
            for i in (1, 2)
        ],
        categories=[dict(id=1, name='plane'), dict(id=2, name='small-vehicle')],
    )


def coco(root: Path, change: Callable[[dict], object]) -> Report:
    content = coco_content()
    content['annotations'][1]['id'] = 8
    change(content)
    image(root / 'images/a.jpg')
    return check_coco(text(root / 'a.json', json.dumps(content)), root / 'images', CLASSES)


def test_good_coco_file(tmp_path: Path) -> None:
    report = coco(tmp_path, lambda content: None)
    assert report.problems == []
    assert str(report) == '1 images, 2 objects: plane 1, small-vehicle 1'


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda c: [annotation.pop('iscrowd') for annotation in c['annotations']],
            'a.json, annotation 7: warning: found no iscrowd, here and in 2 annotations altogether',
        ),
        (
            lambda c: c['annotations'][1].update(id=0),
            'a.json, annotation 0: warning: evaluation on this file takes the object with this id',
        ),
        (lambda c: c['annotations'].clear(), 'a.json: warning: found no object; where images'),
    ],
)
def test_what_only_evaluation_or_filters_mind_in_coco_files(
    change: Callable, message: str, tmp_path: Path
) -> None:
    (found,) = coco(tmp_path, change).problems
    assert message in str(found)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda c: c.pop('images'),
            "a.json: error: found no list 'images', expected images, annot",
        ),
        (lambda c: c['annotations'][0].pop('area'), 'annotations[0]: error: has no area; reading'),
        (lambda c: c['images'].append(3), 'images[1]: error: has no id, file_name, width, height'),
        (
            lambda c: c['annotations'][0].update(area=None),
            'a.json, annotations[0]: error: found area None, expected int or float',
        ),
        (
            lambda c: c['images'][0].update(width=None),
            'a.json, images[0]: error: found width None, expected int or float',
        ),
        (
            lambda c: c['images'][0].update(id=[1]),
            'a.json, images[0]: error: found id [1], expected int or float or str',
        ),
        (
            lambda c: c['categories'][1].update(name='plane'),
            "found 2 'categories' with name 'plane', expected one",
        ),
        (
            lambda c: c.update(images=[], annotations=[]),
            "a.json: error: found no 'images'; reading the data set stops at it",
        ),
        (
            lambda c: c['images'].append(c['images'][0]),
            "found 2 'images' with id 1, expected one",
        ),
        (
            lambda c: c['annotations'][1].update(id=7),
            "found 2 'annotations' with id 7, expected one",
        ),
        (
            lambda c: c['annotations'][0].update(category_id=9),
            "annotation 7: error: found category_id 9, which 'categories' lacks",
        ),
        (
            lambda c: c['annotations'][0].update(image_id=9),
            "annotation 7: error: found image_id 9, which 'images' lacks",
        ),
        (
            lambda c: c['annotations'][0].update(bbox=[1, 2, 3]),
            'annotation 7: error: found bbox [1, 2, 3], expected four finite numbers: x, y, width,',
        ),
        (
            lambda c: c['annotations'][0].update(bbox=[1, 2, math.inf, 5]),
            'annotation 7: error: found bbox [1, 2, inf, 5], expected four finite numbers',
        ),
        (
            lambda c: c['annotations'][0].update(bbox=[math.nan, 2, 3, 5]),
            'annotation 7: error: found bbox [nan, 2, 3, 5], expected four finite numbers',
        ),
        (
            lambda c: c['images'][0].update(file_name='b.jpg'),
            'a.json, image 1: error: its image {root}/images/b.jpg is missing; training stops',
        ),
        (
            lambda c: c['categories'][1].update(name='smallvehicle'),
            "found class 'smallvehicle', expected one of the data set's 2; did you mean "
            "'small-vehicle'?; what is of it is left out without a word",
        ),
        (
            lambda c: c['categories'].reverse(),
            "found class 'small-vehicle' in place 0 of 'categories' (others left out), where the "
            "data set has 'plane'",
        ),
    ],
)
def test_errors_of_coco_files(tmp_path: Path, change: Callable, message: str) -> None:
    (found,) = messages(coco(tmp_path, change))
    assert message.format(root=tmp_path) in found


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: c['annotations'][0].update(bbox=[1, 2, 30, 0]), 'without area or thinner than'),
        (lambda c: c['annotations'][0].update(bbox=[1, 2, 0, 20]), 'without area or thinner than'),
        (
            lambda c: c['annotations'][0].update(area=0),
            'without area or thinner than a pixel: bbox',
        ),
        (lambda c: c['annotations'][0].update(ignore=1), 'found ignore 1: bbox'),
        (
            lambda c: c['annotations'][0].update(bbox=[64, 2, 5, 5]),
            'found a box outside of its image of 64 x 48 pixels: bbox [64, 2, 5, 5]; it is',
        ),
        (
            lambda c: (c['categories'].pop(), c['annotations'].pop()),
            "a.json: warning: has no category 'small-vehicle', which the data set has",
        ),
        (  # of a class that the data set does not have, too
            lambda c: (c['categories'][1].update(name='ship'), c['annotations'].pop()),
            "a.json: warning: has no category 'small-vehicle', which the data set has",
        ),
        (
            lambda c: c.pop('annotations'),
            "a.json: warning: has no 'annotations', as COCO's own test",
        ),
    ],
)
def test_warnings_of_coco_files(tmp_path: Path, change: Callable, message: str) -> None:
    report = coco(tmp_path, change)
    (found,) = messages(report, is_error=False)
    assert message in found
    assert messages(report) == []


@pytest.mark.parametrize('name', ['img[1].png', './img.png', '{root}/images/b.png'])
def test_names_of_images_are_no_patterns(tmp_path: Path, name: str) -> None:
    name = name.format(root=tmp_path)
    image(tmp_path / 'images' / name)
    content = coco_content()
    content['annotations'][1]['id'] = 8
    content['images'][0]['file_name'] = name
    assert check_coco(text(tmp_path / 'a.json', json.dumps(content))).problems == []


@pytest.mark.parametrize('missing', [False, True])
def test_splits_that_each_count_from_the_same_name(tmp_path: Path, missing: bool) -> None:
    names = [f'{number}.png' for number in range(3)]
    for split, last in (('train', 3), ('val', 2)):
        for name in names[: last - (missing and split == 'val')]:
            image(tmp_path / split / name)
        content = coco_content()
        row = content['images'][0]
        content['images'] = [
            row | dict(id=i, file_name=name) for i, name in enumerate(names[:last])
        ]
        for number, annotation in enumerate(content['annotations']):
            annotation.update(id=number + 1, image_id=0)
        text(tmp_path / f'annotations/instances_{split}.json', json.dumps(content))
    found = [
        m
        for split in ('train', 'val')
        for m in messages(check_coco(tmp_path / f'annotations/instances_{split}.json'))
    ]
    assert len(found) == missing
    assert not missing or f'{tmp_path}/val/1.png is missing' in found[0]


def test_the_current_folder_is_no_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = coco_content()
    content['annotations'][1]['id'] = 8
    row = content['images'][0]
    content['images'].append(row | dict(id=77, file_name='c.png'))
    for name in (row['file_name'], 'c.png', f'val/{row["file_name"]}'):
        image(Path(name))
    (found,) = messages(check_coco(text(Path('instances_val.json'), json.dumps(content))))
    assert 'val/c.png is missing' in found


def test_of_equal_names_the_folder_with_most_images(tmp_path: Path) -> None:
    content = coco_content()
    content['annotations'][1]['id'] = 8
    content['images'].append(content['images'][0] | dict(id=77, file_name='c.png'))
    first = content['images'][0]['file_name']
    for name in (f'x/{first}', f'y/{first}', 'y/c.png', f'z/{first}'):
        image(tmp_path / name)
    assert messages(check_coco(text(tmp_path / 'a.json', json.dumps(content)))) == []


def test_broken_json(tmp_path: Path) -> None:
    (found,) = messages(check_coco(text(tmp_path / 'a.json', '{"images": [\n  {"id": }]}')))
    assert found == f'{tmp_path}/a.json:2: error: no JSON: Expecting value (column 10)'
    (found,) = messages(check_coco(text(tmp_path / 'a.json', '[]')))
    assert 'found a list, expected an object with images, annotations, categories' in found
    (tmp_path / 'a.json').write_bytes(b'{"images": "\xff"}')
    (found,) = messages(check_coco(tmp_path / 'a.json'))
    assert found.startswith(f'{tmp_path}/a.json: error: found bytes that are no UTF-8 text')


# --- VOC and HRSC ---------------------------------------------------------------------------------

VOC = """<annotation><size><width>64</width><height>48</height></size>
<object><name>plane</name><difficult>0</difficult><bndbox>
<xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>20</ymax></bndbox></object></annotation>"""
HRSC = """<HRSC_Image><Img_SizeWidth>64</Img_SizeWidth><Img_SizeHeight>48</Img_SizeHeight>
<HRSC_Objects><HRSC_Object>
<mbox_cx>9</mbox_cx><mbox_cy>9</mbox_cy><mbox_w>8</mbox_w><mbox_h>4</mbox_h><mbox_ang>1</mbox_ang>
<header_x>9</header_x><header_y>9</header_y></HRSC_Object></HRSC_Objects></HRSC_Image>"""


def voc(root: Path, old: str = '', new: str = '') -> Report:
    image(root / 'JPEGImages/a.jpg')
    text(root / 'Annotations/a.xml', VOC.replace(old, new))
    return check_voc(root / 'Annotations', root / 'JPEGImages', ['a'], CLASSES)


def hrsc(root: Path, old: str = '', new: str = '') -> Report:
    image(root / 'AllImages/a.bmp')
    text(root / 'Annotations/a.xml', HRSC.replace(old, new))
    return check_hrsc(root / 'Annotations', root / 'AllImages', ['a'])


def dota_without_objects(root: Path) -> Report:
    dota(root)
    text(root / 'annfiles/P1.txt', '')
    return check_dota(root / 'annfiles', root / 'images', CLASSES)


def voc_without_objects(root: Path) -> Report:
    return voc(root, VOC[VOC.index('<object>') : VOC.index('</annotation>')])


def hrsc_without_objects(root: Path) -> Report:
    return hrsc(root, HRSC[HRSC.index('<HRSC_Object>') : HRSC.index('</HRSC_Objects>')])


@pytest.mark.parametrize('check', [dota_without_objects, voc_without_objects, hrsc_without_objects])
def test_no_object_at_all(tmp_path: Path, check: Callable) -> None:
    (found,) = check(tmp_path).problems
    assert 'warning: found no object; where images without any' in str(found)


@pytest.mark.parametrize('check', [voc, hrsc])
def test_good_xml_files(tmp_path: Path, check: Callable) -> None:
    assert check(tmp_path).problems == []
    assert check(tmp_path).objects.total() == 1
    assert check(tmp_path, '>9<', '> 9 <').problems == []


@pytest.mark.parametrize('key', ['xmin', 'mbox_cx', 'mbox_cy', 'mbox_w', 'mbox_h', 'mbox_ang'])
def test_fractions_of_boxes_are_read(tmp_path: Path, key: str) -> None:
    check = voc if key == 'xmin' else hrsc
    assert check(tmp_path, f'</{key}>', f'.5</{key}>').problems == []


@pytest.mark.parametrize(
    ('check', 'old', 'new', 'message'),
    [
        (voc, '</bndbox>', '', 'a.xml:3: error: no XML: mismatched tag (column 61)'),
        (voc, '<name>plane</name>', '', 'object 1: error: has no name or no bndbox; reading'),
        (voc, '<xmin>1<', '<xmin>one<', "found 'one' as xmin, expected a number"),
        (voc, '<xmin>1</xmin>', '', 'found None as xmin, expected a number'),
        (voc, '<difficult>0<', '<difficult>no<', "found 'no' as difficult, expected a whole"),
        (voc, '<difficult>0<', '<difficult>0.0<', "found '0.0' as difficult, expected a whole"),
        (voc, '>plane<', '>planes<', "did you mean 'plane'?; what is of it is left out"),
        (
            voc,
            '<width>64<',
            '<width>64.5<',
            "found '64.5' as size/width, expected a whole number; reading the data set stops at it",
        ),
        (
            voc,
            '<width>64</width>',
            '',
            'a.xml: error: found None as size/width, expected a whole number; reading the data',
        ),
        (
            voc,
            '<xmin>1<',
            '<xmin>70<',
            'the box 70 2 30 20 lies outside of its image of 64 x 48 pixels; every prior',
        ),
        (voc, '<xmin>1<', '<xmin>nan<', "found 'nan' as xmin, expected a number"),
        (voc, '<xmax>30<', '<xmax>inf<', "found 'inf' as xmax, expected a number"),
        (hrsc, '<mbox_cx>9<', '<mbox_cx>nan<', "found 'nan' as mbox_cx, expected a number"),
        (
            voc,
            '<annotation>',
            '<?xml version="1.0" encoding="gb2312"?><annotation>',
            'a.xml: error: no XML that can be read: multi-byte encodings are not supported',
        ),
        (
            voc,
            '<annotation>',
            '<?xml version="1.0" encoding="none"?><annotation>',
            'a.xml: error: no XML that can be read: unknown encoding',
        ),
        (hrsc, '</header_y>', '', 'a.xml:4: error: no XML: mismatched tag'),
        (hrsc, '>64<', '><', "a.xml: error: found '' as Img_SizeWidth, expected a whole number"),
        (hrsc, '>64<', '>64.0<', "found '64.0' as Img_SizeWidth, expected a whole number"),
        (hrsc, '<mbox_ang>1</mbox_ang>', '', 'object 1: error: found None as mbox_ang, expected'),
        (hrsc, '<mbox_cx>9<', '<mbox_cx>?<', "found '?' as mbox_cx, expected a number"),
        (hrsc, '<header_x>9<', '<header_x>?<', "found '?' as header_x, expected a whole number"),
        (hrsc, '<header_y>9<', '<header_y>9.5<', "found '9.5' as header_y, expected a whole"),
        (
            hrsc,
            '<mbox_cy>9<',
            '<mbox_cy>53<',
            'object 1: error: the box around (9, 53) lies outside of its image of 64 x 48 pixels',
        ),
        (hrsc, '<mbox_cx>9<', '<mbox_cx>-4<', 'the box around (-4, 9) lies outside of its image'),
    ],
)
def test_errors_of_xml_files(
    tmp_path: Path, check: Callable, old: str, new: str, message: str
) -> None:
    (found,) = messages(check(tmp_path, old, new))
    assert message in found


@pytest.mark.parametrize('place', ['<mbox_cy>52<', '<mbox_cy>-4<', '<mbox_cx>67<', '<mbox_cx>-3<'])
def test_turned_boxes_that_reach_into_their_image(tmp_path: Path, place: str) -> None:
    # 8 x 4 at 1 rad: its rectangle reaches 3.84 to both sides and 4.45 up and down
    assert hrsc(tmp_path, f'{place[:9]}9<', place).problems == []


@pytest.mark.parametrize(
    ('check', 'old', 'new', 'message'),
    [
        (
            voc,
            '<xmax>30<',
            '<xmax>1<',
            'found a box without area, whose offsets are infinite: 1',
        ),
        (voc, '<xmax>30<', '<xmax>1.9<', 'object 1: warning: found a box without area'),
        (hrsc, '<mbox_h>4<', '<mbox_h>0<', 'object 1: warning: found a box without area'),
    ],
)
def test_boxes_without_area_in_xml_files(
    tmp_path: Path, check: Callable, old: str, new: str, message: str
) -> None:
    report = check(tmp_path, old, new)
    assert message in messages(report, is_error=False)[0]
    assert messages(report) == []


@pytest.mark.parametrize('check', [check_voc, check_hrsc])
def test_data_set_without_images(tmp_path: Path, check: Callable) -> None:
    (found,) = messages(check(tmp_path, tmp_path, []))
    assert 'found no images listed; reading the data set stops at it' in found


SHIP = """<object><name>ship</name><bndbox>
<xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>20</ymax></bndbox></object>"""
VAN = SHIP.replace('ship', 'small-vehicle')
ON_PURPOSE = 'warning: {} objects are left out, of classes that the data set does not have: {}'


def test_classes_left_out_on_purpose(tmp_path: Path) -> None:
    def change(content: dict) -> None:
        content['categories'] += [dict(id=3, name='ship'), dict(id=4, name='bridge')]
        for number, kind in enumerate((3, 4, 3), start=9):
            content['annotations'].append(
                dict(content['annotations'][0], id=number, category_id=kind)
            )

    report = coco(tmp_path / 'coco', change)
    assert messages(report) == []
    (found,) = messages(report, is_error=False)
    assert found.endswith(f'a.json: {ON_PURPOSE.format(3, "ship, bridge")}')

    report = voc(tmp_path / 'voc', '</annotation>', f'{SHIP}{VAN}{SHIP}</annotation>')
    assert messages(report) == []
    (found,) = messages(report, is_error=False)
    assert found.endswith(f'a.xml, object 2: {ON_PURPOSE.format(2, "ship")}')


def test_of_classes_left_out_nothing_else_is_looked_at(tmp_path: Path) -> None:
    """As XMLDataset does not."""
    voc(tmp_path)
    other = '<object><name>crowd</name></object><object><name>plane'
    text(tmp_path / 'Annotations/a.xml', VOC.replace('<object><name>plane', other))
    folders = tmp_path / 'Annotations', tmp_path / 'JPEGImages'
    assert not any('bndbox' in m for m in messages(check_voc(*folders, ['a'], CLASSES)))
    (found,) = messages(check_voc(*folders, ['a']))
    assert 'object 1: error: has no name or no bndbox' in found


def test_classes_that_may_be_left_out_by_mistake(tmp_path: Path) -> None:
    # no small-vehicle anywhere: it may be the ship
    (found,) = messages(voc(tmp_path / 'a', '</annotation>', f'{SHIP}</annotation>'))
    assert "object 2: error: found class 'ship', expected one of" in found
    # all there, but nobody means 'planes'
    planes = SHIP.replace('ship', 'Planes')
    report = voc(tmp_path / 'b', '</annotation>', f'{VAN}{planes}{planes}{SHIP}</annotation>')
    assert [m.split(': ')[0][-8:] for m in messages(report)] == ['object 3', 'object 4']
    assert all("found class 'Planes'" in m and "mean 'plane'?" in m for m in messages(report))
    (found,) = messages(report, is_error=False)
    assert found.endswith(ON_PURPOSE.format(1, 'ship'))


def test_another_kind_of_vehicle_may_be_left_out_on_purpose(tmp_path: Path) -> None:
    large = SHIP.replace('ship', 'large-vehicle')
    (found,) = voc(tmp_path, '</annotation>', f'{VAN}{large}</annotation>').problems
    assert str(found).endswith(ON_PURPOSE.format(1, 'large-vehicle'))


def test_ids_of_ships(tmp_path: Path) -> None:
    assert hrsc(tmp_path, '<mbox_cx>', '<Class_ID>7</Class_ID><mbox_cx>').problems == []
    folders = tmp_path / 'Annotations', tmp_path / 'AllImages'
    assert check_hrsc(*folders, ['a'], class_ids=['7']).problems == []
    (found,) = messages(check_hrsc(*folders, ['a'], class_ids=['100000001', '8']))
    assert "object 1: error: found '7' as Class_ID, expected one of 100000001, 8" in found


@pytest.mark.parametrize('check', [check_voc, check_hrsc])
def test_a_folder_in_place_of_an_xml_file(tmp_path: Path, check: Callable) -> None:
    (tmp_path / 'a.xml').mkdir()
    found = messages(check(tmp_path, tmp_path, ['a', 'b']))
    assert found[0].startswith(f'{tmp_path}/a.xml: error: cannot be read (Is a directory); reading')
    assert found[1].startswith(f'{tmp_path}/b.xml: error: is missing')


def test_missing_xml_files_and_images(tmp_path: Path) -> None:
    found = messages(check_voc(tmp_path, tmp_path, ['a']))
    assert found[0] == f'{tmp_path}/a.xml: error: is missing; reading the data set stops at it'
    assert f'its image {tmp_path}/a.jpg is missing; training stops at it' in found[1]
    assert (
        f'its image {tmp_path}/a.bmp is missing'
        in messages(check_hrsc(tmp_path, tmp_path, ['a']))[1]
    )


# --- from a config --------------------------------------------------------------------------------


AT_ROOT = dict(data_prefix=dict(sub_data_root=''))


def checked(dataset: Mapping[str, Any], *loaders: str) -> list[Report]:
    cfg = {f'{loader}_dataloader': dict(dataset=dataset) for loader in loaders or ('train',)}
    return [source.check() for source in config_sources(Config(cfg), list(cfg))]


def coco_dataset(root: Path) -> dict[str, Any]:
    coco(root, lambda content: content['annotations'][0].update(image_id=9))
    metainfo = dict(classes=CLASSES)
    prefix = dict(img='images/')
    return dict(
        type='CocoDataset', data_root=str(root), ann_file='a.json', data_prefix=prefix,
        metainfo=metainfo,
    )  # fmt: skip


def test_a_data_set_is_checked_once(tmp_path: Path) -> None:
    (report,) = checked(coco_dataset(tmp_path), 'val', 'test')
    assert len(messages(report)) == 1
    loaders = [f'{loader}_dataloader' for loader in ('train', 'val')]
    cfg = Config({loader: dict(dataset=coco_dataset(tmp_path)) for loader in loaders})
    (source,) = config_sources(cfg, [*loaders, 'test_dataloader'])
    assert source.name == f'{tmp_path}/a.json (train_dataloader.dataset, val_dataloader.dataset)'


def test_data_sets_that_read_other_things_are_each_checked(tmp_path: Path) -> None:
    dataset = coco_dataset(tmp_path)
    other = dataset | dict(metainfo=dict(classes=(*CLASSES, 'ship')), pipeline=[])
    cfg = {
        f'{name}_dataloader': dict(dataset=x) for name, x in (('train', dataset), ('val', other))
    }
    reports = [source.check() for source in config_sources(Config(cfg), list(cfg))]
    assert [len(messages(report, is_error=False)) for report in reports] == [0, 1]


@pytest.mark.parametrize(
    'change',
    [
        dict(type='VOCDataset'),
        dict(data_root='elsewhere'),
        dict(ann_file='b.json'),
        dict(data_prefix=dict(img='others/')),
        dict(ann_subdir='labels'),
        dict(img_subdir='pictures'),
        dict(img_suffix='tif'),
        dict(classwise=True),
        dict(backend_args=dict(backend='petrel')),
    ],
)
def test_keys_that_tell_other_files(tmp_path: Path, change: dict) -> None:
    dataset = coco_dataset(tmp_path)
    both = dict(type='ConcatDataset', datasets=[dataset, dataset | change])
    assert len(checked(both)) == 2


def test_classes_of_ships_that_a_config_asks_for(tmp_path: Path) -> None:
    pytest.importorskip('mmrotate')
    hrsc(tmp_path, '<mbox_cx>', '<Class_ID>100000099</Class_ID><mbox_cx>')
    text(tmp_path / 'names.txt', 'a')
    dataset = dict(
        type='mmrotate.HRSCDataset', data_root=str(tmp_path), ann_file='names.txt', **AT_ROOT
    )
    (report,) = checked(dataset)
    assert messages(report) == []
    (report,) = checked(dataset | dict(classwise=True))
    (found,) = messages(report)
    assert "found '100000099' as Class_ID, expected one of 100000001, 100000002" in found


def test_wrappers_are_looked_into(tmp_path: Path) -> None:
    one = coco_dataset(tmp_path / 'one')
    parts = dict(type='ConcatDataset', datasets=[one, coco_dataset(tmp_path / 'two')])
    reports = checked(dict(type='RepeatDataset', times=2, dataset=parts))
    assert [len(messages(report)) for report in reports] == [1, 1]


def test_class_names_of_a_file_and_of_the_data_set(tmp_path: Path) -> None:
    dataset = coco_dataset(tmp_path)
    names = text(tmp_path / 'names.txt', 'plane\nsmall-vehicle')
    (report,) = checked(dataset | dict(metainfo=dict(classes=str(names))))
    assert len(messages(report)) == 1
    (report,) = checked(dataset | dict(metainfo=None))
    assert any(
        "found class 'plane', expected one of the data set's 80" in m for m in messages(report)
    )


def test_missing_folder_is_said_by_its_key(tmp_path: Path) -> None:
    (report,) = checked(coco_dataset(tmp_path) | dict(data_root='nowhere'), 'train', 'val')
    (found,) = messages(report)
    assert found.startswith("train_dataloader.dataset.data_root: error: folder 'nowhere' not found")


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(type='LVISV1Dataset'), 'not checked: there is no check for what LVISV1Dataset reads'),
        (dict(data_root='s3://bucket'), 'not checked: it is on a storage server'),
        (
            dict(data_prefix=dict(img='http://localhost/images/')),
            'not checked: it is on a storage server',
        ),
    ],
)
def test_what_is_not_checked_is_said(tmp_path: Path, change: dict, message: str) -> None:
    (report,) = checked(coco_dataset(tmp_path) | change)
    assert messages(report, is_error=False)[0].endswith(message)


@pytest.mark.parametrize('kind', ['CocoDataset', 'VOCDataset'])
def test_data_set_without_a_file(tmp_path: Path, kind: str) -> None:
    (report,) = checked(dict(type=kind, data_root=str(tmp_path)))
    message = 'train_dataloader.dataset.ann_file: error: missing, expected the file of annotations'
    assert messages(report)[0].startswith(message)


@needs.mmrotate
@pytest.mark.parametrize(
    ('kind', 'prefix', 'key'),
    [
        ('CocoDataset', None, 'img'),
        ('CocoDataset', dict(img_path='images/'), 'img'),
        ('VOCDataset', None, 'sub_data_root'),
        ('VOCDataset', dict(img=''), 'sub_data_root'),
        ('mmrotate.HRSCDataset', None, 'sub_data_root'),
        ('mmrotate.DOTADataset', dict(img='images/'), 'img_path'),
    ],
)
def test_prefixes_that_the_stock_data_set_does_not_find_its_files_by(
    tmp_path: Path, kind: str, prefix: dict | None, key: str
) -> None:
    coco(tmp_path, lambda content: None)
    voc(tmp_path)
    hrsc(tmp_path)
    dota(tmp_path, '')
    text(tmp_path / 'names.txt', 'a')
    files = dict(CocoDataset='a.json')
    files['mmrotate.DOTADataset'] = 'annfiles/'
    dataset = dict(
        type=kind,
        data_root=str(tmp_path),
        ann_file=files.get(kind, 'names.txt'),
        metainfo=dict(classes=CLASSES),
    )
    if prefix is not None:
        dataset['data_prefix'] = prefix
    (report,) = checked(dataset)
    (found,) = messages(report)
    assert found.startswith(f'train_dataloader.dataset.data_prefix.{key}: error: missing, ')
    with pytest.raises((KeyError, FileNotFoundError, AssertionError)):
        DATASETS.build(dataset | dict(pipeline=[]))


class OwnDataset(CocoDataset):
    """Of somebody whose images are always in the same folder."""

    def __init__(self, data_prefix: Mapping[str, str] = {'img': 'images/'}, **kwargs: Any) -> None:
        super().__init__(data_prefix=dict(data_prefix), **kwargs)


def test_a_class_of_ones_own_may_have_a_prefix_of_its_own(tmp_path: Path) -> None:
    dataset = coco_dataset(tmp_path) | dict(type=OwnDataset, pipeline=[])
    del dataset['data_prefix']
    assert len(DATASETS.build(dataset)) == 1
    (report,) = checked(dataset)
    assert not any('data_prefix' in message for message in messages(report))


class NoBaseDataset(torch.utils.data.Dataset):
    """Of somebody who needs nothing of MMEngine's."""


def test_a_data_set_of_another_base(tmp_path: Path) -> None:
    (report,) = checked(dict(type=NoBaseDataset))
    (found,) = messages(report, is_error=False)
    assert found.endswith('not checked: there is no check for what NoBaseDataset reads')


def test_unknown_data_set() -> None:
    with pytest.raises(ConfigError, match=r"train_dataloader\.dataset\.type: 'Coco' is not a reg"):
        checked(dict(type='Coco'))


@needs.mmrotate
def test_voc_dota_and_hrsc_data_sets(tmp_path: Path) -> None:
    voc(tmp_path, '>plane<', '>zebra<')
    names = str(text(tmp_path / 'names.txt', 'a'))
    common = dict(data_root=str(tmp_path), metainfo=dict(classes=CLASSES))
    (report,) = checked(dict(type='VOCDataset', ann_file=names, **AT_ROOT, **common))
    assert 'zebra' in messages(report)[0]
    hrsc(tmp_path, '<mbox_ang>1<', '<mbox_ang>?<')
    (report,) = checked(dict(type='mmrotate.HRSCDataset', ann_file=names, **AT_ROOT, **common))
    assert 'mbox_ang' in messages(report)[0]
    dota(tmp_path, '')
    prefix = dict(data_prefix=dict(img_path='images/'))
    kind = dict(type='mmrotate.DOTAv15Dataset', **prefix)
    (report,) = checked(kind | dict(ann_file='annfiles/', **common))
    assert len(messages(report)) == 1
    (report,) = checked(kind | dict(ann_file='annfiles/', data_root=str(tmp_path)))
    assert 'an empty line' in messages(report)[0]
    (report,) = checked(kind | dict(ann_file='', data_root=str(tmp_path)))
    assert (report.problems, report.num_images) == ([], 1)
    (report,) = checked(kind | dict(ann_file='annfiles/', img_suffix='tif', **common))
    assert 'P1.tif is missing (there is P1.png)' in messages(report)[-1]


def test_folders_of_voc_under_other_names(tmp_path: Path) -> None:
    voc(tmp_path)
    (tmp_path / 'Annotations').rename(tmp_path / 'labels')
    (tmp_path / 'JPEGImages').rename(tmp_path / 'pictures')
    text(tmp_path / 'names.txt', 'a')
    dataset = dict(
        type='VOCDataset', data_root=str(tmp_path), ann_file='names.txt', ann_subdir='labels',
        img_subdir='pictures', metainfo=dict(classes=CLASSES), **AT_ROOT,
    )  # fmt: skip
    (report,) = checked(dataset)
    assert messages(report) == []
    assert len(DATASETS.build(dataset)) == report.num_images == 1


# --- the program ----------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, 'argv', ['check_data.py', *map(str, arguments)])
    return check_data.main()


def test_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    image(tmp_path / 'raw/images/P1.png')
    text(tmp_path / 'raw/labelTxt-v1.0/labelTxt/P1.txt', f'imagesource:x\ngsd:1\n{GOOD}\n')
    image(tmp_path / 'split/images/P1__10__0___0.jpg')
    text(tmp_path / 'split/annfiles/P1__10__0___0.txt', GOOD)
    voc(tmp_path / 'voc')
    hrsc(tmp_path / 'hrsc')
    image(tmp_path / 'coco/images/a.jpg')
    text(tmp_path / 'coco/annotations/a.json', json.dumps(coco_content()).replace('7', '8', 1))
    text(tmp_path / 'coco/options.json', '{}')
    text(tmp_path / 'split/images/.DS_Store', '')
    for name, row in (('captions', dict(caption='a plane')), ('panoptic', dict(segments_info=[]))):
        other = dict(coco_content(), annotations=[dict(image_id=1, **row)])
        text(tmp_path / f'coco/annotations/{name}.json', json.dumps(other))
    assert run(monkeypatch, tmp_path) == 0
    *lines, summary = capsys.readouterr().out.splitlines()
    assert summary == 'errors: 0, warnings: 0'
    assert len(lines) == 5
    for option in (['--loaders', 'train'], ['--cfg-options', 'a=1']):
        with pytest.raises(SystemExit):
            run(monkeypatch, tmp_path, *option)
        assert 'a folder has neither' in capsys.readouterr().err
    assert run(monkeypatch, tmp_path, '--classes', 'ship', 'plane') == 1
    assert 'small-vehicle' in capsys.readouterr().out
    assert run(monkeypatch, tmp_path, '--classes', 'ship') == 1
    out = capsys.readouterr().out
    for place in (
        'raw/labelTxt-v1.0/labelTxt/P1.txt:3',
        'split/annfiles/P1__10__0___0.txt:1',
        'voc/Annotations/a.xml, object 1',
        'coco/annotations/a.json',
    ):
        assert f"{place}: error: found class 'plane'" in out


def test_folder_of_the_annotations_themselves(tmp_path: Path) -> None:
    image(tmp_path / 'images/P1.png')
    text(tmp_path / 'annfiles/P1.txt', GOOD)
    text(tmp_path / 'annfiles/notes/mine.txt', 'of a folder below')
    (source, _) = folder_sources(tmp_path / 'annfiles')
    assert source.check().problems == []
    assert folder_sources(tmp_path / 'annfiles/notes') == []


def test_images_of_several_kinds_are_those_that_the_data_set_reads_by_default(
    tmp_path: Path,
) -> None:
    for name in ('P1.png', 'P2.jpg', 'P3.jpg'):
        image(tmp_path / 'images' / name)
        text(tmp_path / f'annfiles/{Path(name).stem}.txt', GOOD)
    (source,) = folder_sources(tmp_path)
    found = messages(source.check())
    assert [message.split(' is missing')[0][-6:] for message in found] == ['P2.png', 'P3.png']


def test_names_that_the_terminal_has_no_letters_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coco(tmp_path, lambda content: content['categories'][1].update(name='Wäschebär'))
    shown = io.TextIOWrapper(io.BytesIO(), encoding='ascii')
    monkeypatch.setattr(sys, 'stdout', shown)
    assert run(monkeypatch, tmp_path) == 0
    shown.flush()
    assert rb'W\xe4scheb\xe4r 1' in shown.buffer.getvalue()


def test_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    dataset = coco_dataset(tmp_path)
    cfg = text(tmp_path / 'mine.py', f'train_dataloader = dict(dataset={dataset!r})')
    assert run(monkeypatch, cfg) == 1
    assert capsys.readouterr().out.splitlines()[-1] == 'errors: 1, warnings: 0'
    key = 'train_dataloader.dataset.data_root'
    assert run(monkeypatch, cfg, '--cfg-options', f'{key}={tmp_path}/gone') == 1
    assert f"{key}: error: folder '{tmp_path}/gone' not found" in capsys.readouterr().out
    with pytest.raises(
        SystemExit, match='found nothing to check, expected a data set in val_datal'
    ):
        run(monkeypatch, cfg, '--loaders', 'val')
    with pytest.raises(SystemExit):
        run(monkeypatch, cfg, '--classes', 'plane')
    assert '--classes: a config names its own classes' in capsys.readouterr().err


def test_warnings_are_counted_and_are_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    dataset = coco_dataset(tmp_path)
    coco(tmp_path, lambda content: content['annotations'][0].update(ignore=1))
    cfg = text(tmp_path / 'mine.py', f'test_dataloader = dict(dataset={dataset!r})')
    assert run(monkeypatch, cfg) == 0
    assert capsys.readouterr().out.splitlines()[-1] == 'errors: 0, warnings: 1'


def test_config_of_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv('BCCD_ROOT', str(tmp_path / 'bccd'))
    own = 'ld_plugin::bccd/gfl_r18_fpn_12e_bccd.py'
    assert run(monkeypatch, own, '--loaders', 'train') == 1
    assert f"data_root: error: folder '{tmp_path}/bccd' not found" in capsys.readouterr().out
    stock = ['mmdet::gfl/gfl_r50_fpn_1x_coco.py']
    if is_installed('mmrotate'):
        stock.append('mmrotate::rotated_fcos/rotated-fcos-le90_r50_fpn_1x_dota.py')
    for name in stock:
        key = 'train_dataloader.dataset.data_root'
        options = ['--loaders', 'train', '--cfg-options', f'{key}={tmp_path}/gone']
        assert run(monkeypatch, name, *options) == 1
        assert f"{key}: error: folder '{tmp_path}/gone' not found" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"^found 'gone::a\.py', but no package 'gone'"):
        run(monkeypatch, 'gone::a.py')
    with pytest.raises(
        SystemExit, match=r"^found 'mmdet::gfl/gone\.py', which mmengine does not find among"
    ):
        run(monkeypatch, 'mmdet::gfl/gone.py')


def test_a_file_that_cannot_be_read_does_not_end_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    broken = dict(type='CocoDataset', ann_file=str(tmp_path), data_prefix=dict(img=''))
    voc(tmp_path, '>plane<', '>zebra<')
    (tmp_path / 'names.txt').write_bytes(b'\xff')
    names = dict(
        type='VOCDataset',
        data_root=str(tmp_path),
        ann_file='names.txt',
        data_prefix=dict(sub_data_root=str(tmp_path)),
    )
    config = f'train_dataloader = dict(dataset={broken})\nval_dataloader = dict(dataset={names})'
    assert run(monkeypatch, text(tmp_path / 'two.py', config)) == 1
    out = capsys.readouterr().out
    assert f'{tmp_path} (train_dataloader.dataset): error: cannot be read (' in out
    assert f'{tmp_path}/names.txt (val_dataloader.dataset): error: cannot be read (' in out
    assert out.endswith('errors: 2, warnings: 0\n')


def test_nothing_to_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # whoever runs the tests may have data
    with pytest.raises(SystemExit, match=r'found nothing to check, expected annfiles/\*\.txt'):
        run(monkeypatch, tmp_path)
    with pytest.raises(SystemExit, match=r'gone\.py: found no such folder or config'):
        run(monkeypatch, 'gone.py')
    with pytest.raises(SystemExit, match='data/bccd: found no such folder or config'):
        run(monkeypatch, 'data/bccd')  # not the folder of configs
    with pytest.raises(SystemExit, match='Only py/yml/yaml/json type are supported'):
        run(monkeypatch, image(tmp_path / 'a.png'))
    broken = text(tmp_path / 'broken.py', 'model = dict(')
    with pytest.raises(SystemExit, match=f"'{broken}', or its _base_, cannot be read as a config"):
        run(monkeypatch, broken)
    assert check_data.find_config('gfl_r18_fpn_1x_coco.py').parts[-2:] == (
        'ld',
        'gfl_r18_fpn_1x_coco.py',
    )


# --- what the stock data sets do ------------------------------------------------------------------


@needs.mmrotate
@pytest.mark.parametrize(
    ('line', 'error'),
    [
        ('imagesource:GoogleEarth', ValueError),
        ('', IndexError),
        ('10 10 30 10 30 20 10 20 plane', IndexError),
        ('10 10 30 10 30 20 10 20 zebra 0', KeyError),
    ],
)
def test_stock_data_set_does_not_say_where(tmp_path: Path, line: str, error: type) -> None:
    dota(tmp_path, line)
    dataset = dict(
        type='mmrotate.DOTADataset',
        ann_file=f'{tmp_path}/annfiles/',
        data_prefix=dict(img_path=f'{tmp_path}/images/'),
        metainfo=dict(classes=CLASSES),
    )
    with pytest.raises(error) as caught:
        DATASETS.build(dataset)
    assert 'P1' not in str(caught.value)


def sized(root: Path, kind: str, **filters: float) -> dict[str, Any]:
    """A data set of one image with 64 x 48 pixels, of HRSC2016 64 x 64."""
    coco(root, lambda content: None)
    voc(root)
    text(root / 'names.txt', 'a')
    is_coco = kind == 'CocoDataset'
    prefix = dict(img='images/') if is_coco else dict(sub_data_root='')
    return dict(
        type=kind, data_root=str(root), ann_file='a.json' if is_coco else 'names.txt',
        data_prefix=prefix, metainfo=dict(classes=CLASSES), filter_cfg=filters,
        serialize_data=False,
    )  # fmt: skip


@pytest.mark.parametrize('kind', ['CocoDataset', 'VOCDataset'])
def test_images_that_are_left_out_for_their_size(tmp_path: Path, kind: str) -> None:
    fits = sized(tmp_path, kind, min_size=48)
    (report,) = checked(fits)
    assert not any('pixels' in message for message in messages(report, is_error=False))
    assert len(DATASETS.build(fits)) == 1
    short = sized(tmp_path, kind, min_size=49)
    (report,) = checked(short, 'val', 'train')
    (found,) = (m for m in messages(report, is_error=False) if 'pixels' in m)
    assert found.endswith(
        'warning: found an image of 64 x 48 pixels, here and in 1 images altogether; training '
        'leaves them out without a word (filter_cfg.min_size, 49)'
    )
    assert len(DATASETS.build(short)) == 0
    (report,) = checked(short | dict(test_mode=True))
    assert not any('pixels' in message for message in messages(report, is_error=False))


def test_of_data_sets_that_read_the_same_the_filter_of_one_is_looked_at(tmp_path: Path) -> None:
    training = sized(tmp_path, 'CocoDataset', min_size=49)
    cfg = dict(
        val_dataloader=dict(dataset=training | dict(test_mode=True)),
        train_dataloader=dict(dataset=training),
    )
    (source,) = config_sources(Config(cfg), list(cfg))
    (found,) = messages(source.check(), is_error=False)
    assert 'leaves them out without a word' in found


@pytest.mark.parametrize('check', [coco, voc, hrsc])
def test_sizes_that_nobody_filled_in(tmp_path: Path, check: Callable) -> None:
    if check is coco:
        report = coco(tmp_path, lambda content: content['images'][0].update(width=0, height=0))
    elif check is voc:
        sides = '<width>64</width><height>48</height>'
        report = voc(tmp_path, sides, sides.replace('64', '0').replace('48', '0'))
    else:
        report = hrsc(tmp_path, 'Width>64<', 'Width>0<')
    assert messages(report) == []
    (found,) = (m for m in messages(report, is_error=False) if 'pixels, here' in m)
    assert 'found an image of 0 x 0 pixels, here and in 1 images' in found
    assert found.endswith('(filter_cfg.min_size, 32 in stock configs)')


@pytest.mark.parametrize(
    ('kind', 'smallest'),
    [('VOCDataset', 18), pytest.param('mmrotate.HRSCDataset', 4, marks=needs.mmrotate)],
)
def test_boxes_that_are_ignored_for_their_size(tmp_path: Path, kind: str, smallest: int) -> None:
    fits = sized(tmp_path, kind, bbox_min_size=smallest)
    if kind != 'VOCDataset':
        hrsc(tmp_path)
    (report,) = checked(fits)
    assert not any('ignores' in message for message in messages(report, is_error=False))
    assert DATASETS.build(fits).load_data_list()[0]['instances'][0]['ignore_flag'] == 0
    small = fits | dict(filter_cfg=dict(bbox_min_size=smallest + 1))
    (report,) = checked(small)
    (found,) = (m for m in messages(report, is_error=False) if 'ignores' in m)
    assert found.endswith(
        f'a.xml, object 1: warning: found a side below {smallest + 1} pixels, here and in 1 '
        'objects altogether; training ignores them (filter_cfg.bbox_min_size)'
    )
    assert DATASETS.build(small).load_data_list()[0]['instances'][0]['ignore_flag'] == 1


def test_sizes_are_counted_over_all_images(tmp_path: Path) -> None:
    for name in ('a', 'b'):
        image(tmp_path / f'{name}.jpg')
        text(tmp_path / f'{name}.xml', VOC)
    sizes = dict(min_size=49, bbox_min_size=19)
    images, objects = messages(check_voc(tmp_path, tmp_path, ['a', 'b'], **sizes), is_error=False)
    assert 'here and in 2 images altogether' in images
    assert 'here and in 2 objects altogether' in objects


@pytest.mark.parametrize('check', [check_voc, check_hrsc])
def test_ignored_boxes_need_no_area(tmp_path: Path, check: Callable) -> None:
    make, old, images = {
        check_voc: (voc, '<xmax>30<', 'JPEGImages'), check_hrsc: (hrsc, '<mbox_h>4<', 'AllImages')
    }[check]  # fmt: skip
    make(tmp_path, old, re.sub(r'\d+', '1' if check is check_voc else '0', old))
    (found,) = check(
        tmp_path / 'Annotations', tmp_path / images, ['a'], min_size=0, bbox_min_size=2
    ).problems
    assert 'ignores them' in str(found)


def test_numbers_of_ids_may_have_fractions(tmp_path: Path) -> None:
    def change(content: dict) -> None:
        content['images'][0]['id'] = content['categories'][0]['id'] = 1.0
        content['annotations'][0]['image_id'] = content['annotations'][0]['category_id'] = 1.0

    dataset = sized(tmp_path, 'CocoDataset')
    assert coco(tmp_path, change).problems == []
    assert len(DATASETS.build(dataset).load_data_list()[0]['instances']) == 2


def test_stock_data_set_numbers_classes_in_the_order_of_the_file(tmp_path: Path) -> None:
    dataset = coco_dataset(tmp_path)
    coco(tmp_path, lambda content: content['categories'].reverse())
    built = DATASETS.build(dataset)
    labels = [instance['bbox_label'] for instance in built[0]['instances']]
    assert [built.metainfo['classes'][label] for label in labels] == ['small-vehicle', 'plane']
    names = coco_content()['categories']
    assert [category['name'] for category in names] == ['plane', 'small-vehicle']


@pytest.mark.parametrize('bbox', [[-5, 3, 5, 5], [3, -5, 5, 5], [64, 3, 5, 5], [3, 48, 5, 5]])
def test_coco_box_that_touches_its_image_from_outside(bbox: list[int], tmp_path: Path) -> None:
    (found,) = coco(tmp_path, lambda c: c['annotations'][0].update(bbox=bbox, area=25)).problems
    assert 'found a box outside of its image of 64 x 48 pixels' in str(found)


@pytest.mark.parametrize('box', [(-9, 3, 0, 8), (3, -9, 8, 0), (21, 3, 25, 8), (3, 11, 8, 15)])
def test_voc_box_beside_its_image(box: tuple[int, ...], tmp_path: Path) -> None:
    image(tmp_path / 'a.jpg')
    sides = ''.join(
        f'<{side}>{value}</{side}>'
        for side, value in zip(('xmin', 'ymin', 'xmax', 'ymax'), box, strict=True)
    )
    text(
        tmp_path / 'a.xml',
        '<annotation><size><width>20</width><height>10</height></size>'
        f'<object><name>plane</name><bndbox>{sides}</bndbox></object></annotation>',
    )
    (found,) = check_voc(tmp_path, tmp_path, ['a']).problems
    assert 'outside' in str(found)


# --- borders --------------------------------------------------------------------------------------


def test_a_quadrilateral_of_half_a_pixel_has_an_area(tmp_path: Path) -> None:
    assert dota(tmp_path, '10 10 30 10 30 10.5 10 10.5 plane 0').problems == []


def test_a_box_of_one_pixel_in_a_coco_file(tmp_path: Path) -> None:
    change = dict(bbox=[1, 2, 5, 1], area=5)
    assert coco(tmp_path, lambda c: c['annotations'][0].update(change)).problems == []


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        ('<xmin>1</xmin>', '<xmin>64</xmin>'),
        ('<ymin>2</ymin>', '<ymin>48</ymin>'),
    ],
)
def test_the_last_pixel_of_voc_which_counts_from_1(tmp_path: Path, old: str, new: str) -> None:
    far = VOC.replace('<xmax>30<', '<xmax>66<').replace('<ymax>20<', '<ymax>50<')
    assert voc(tmp_path, VOC, far.replace(old, new)).problems == []


@pytest.mark.parametrize('x', ['-4', '68'])
def test_a_ship_that_touches_its_image_from_outside(tmp_path: Path, x: str) -> None:
    beside = HRSC.replace('<mbox_cx>9<', f'<mbox_cx>{x}<').replace('<mbox_ang>1<', '<mbox_ang>0<')
    (found,) = messages(hrsc(tmp_path, HRSC, beside))
    assert 'lies outside of its image' in found


@pytest.mark.parametrize(
    'corners',
    [
        '-9 10 0 10 0 20 -9 20',
        '64 10 70 10 70 20 64 20',
        '9 -9 19 -9 19 0 9 0',
        '9 48 19 48 19 58 9 58',
    ],
)
def test_a_quadrilateral_that_touches_its_image_from_outside(tmp_path: Path, corners: str) -> None:
    (found,) = messages(dota(tmp_path, f'{corners} plane 0'))
    assert 'lies outside of its image of 64 x 48' in found


@pytest.mark.parametrize('difficulty', ['\u00b2', '\u0661'])  # for which Python has digits, too
def test_difficulties_of_other_scripts(tmp_path: Path, difficulty: str) -> None:
    (found,) = messages(dota(tmp_path, f'10 10 30 10 30 20 10 20 plane {difficulty}'))
    assert 'expected a whole number' in found
