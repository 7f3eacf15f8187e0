"""COCO's JSON files."""

import glob
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .report import (
    Report,
    check_has_objects,
    check_image_sizes,
    check_images_exist,
    check_left_out,
)

_ID, _TEXT, _NUMBER = (int, float, str), (str,), (int, float)
#: what every row needs, and of which types
_TABLES = dict(
    images=dict(id=_ID, file_name=_TEXT, width=_NUMBER, height=_NUMBER),
    annotations=dict(id=_ID, image_id=_ID, category_id=_ID, bbox=(object,), area=_NUMBER),
    categories=dict(id=_ID, name=_TEXT),
)


def check_coco(
    file: Path,
    images: Path | None = None,
    classes: Sequence[str] | None = None,
    min_size: float | None = None,
) -> Report:
    """Check an annotation file.

    Args:
        file: A ``*.json``.
        images: The folder that file names count from; None looks for the first of them in the
            file's folder and in the one above.
        classes: The data set's class names, in its order; None lets every name pass.
        min_size: Of the data set's ``filter_cfg``, in pixels, as `check_image_sizes` takes it.
    """
    report = Report()
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
    except json.JSONDecodeError as error:
        report.error(f'{file}:{error.lineno}', f'no JSON: {error.msg} (column {error.colno})')
        return report
    except UnicodeDecodeError as error:
        report.error(file, f'found bytes that are no UTF-8 text ({error})')
        return report
    is_unlabelled = isinstance(content, dict) and 'annotations' not in content
    if is_unlabelled:
        report.warn(
            file, "has no 'annotations', as COCO's own test sets; nothing can be learnt from it"
        )
        content['annotations'] = []
    if not _has_tables(report, file, content):
        return report
    report.num_images = len(content['images'])
    if not report.num_images:
        report.error(file, "found no 'images'; reading the data set stops at it")
    name_of = {category['id']: category['name'] for category in content['categories']}
    _check_annotations(report, file, content, name_of)
    if not is_unlabelled:
        check_has_objects(report, file)
    _check_for_evaluation(report, file, content['annotations'])
    if classes is not None:
        _check_classes(report, file, list(name_of.values()), classes)
    names = [(f'{file}, image {image["id"]}', image['file_name']) for image in content['images']]
    sizes = (
        (place, image['width'], image['height'])
        for (place, _), image in zip(names, content['images'], strict=True)
    )
    check_image_sizes(report, sizes, min_size)
    images = images or _image_folder(file, names)
    check_images_exist(report, images, names, 'training stops at it')
    return report


def _image_folder(file: Path, names: Sequence[tuple[str, str]]) -> Path:
    """Where the first image is; of several such folders, where the others are, too."""
    first = names[0][1] if names else ''
    if not first or Path(first).is_absolute():
        return file.parent
    plain = os.path.normpath(first)  # './a.jpg' is found as 'a.jpg'
    for root in (file.parent, file.parent.parent):
        found = [Path(str(path)[: -len(plain)]) for path in root.rglob(glob.escape(plain))]
        if len(found) == 1:
            return found[0]
        if found:
            # such as val2017 for instances_val2017.json, where every split counts from 0.jpg
            return max(
                found,
                key=lambda folder: (
                    folder.absolute().name in file.stem,  # the current one has no other name
                    sum(Path(folder, name).is_file() for _, name in names),
                ),
            )
    return file.parent


def _has_tables(report: Report, file: Path, content: Any) -> bool:
    """Whether everything that the other checks read is there; what is missing is reported."""
    if not isinstance(content, Mapping):
        report.error(file, f'found a {type(content).__name__}, expected an object with {_tables()}')
        return False
    before = len(report.problems)
    for table, needed in _TABLES.items():
        rows = content.get(table)
        if not isinstance(rows, list):
            report.error(file, f"found no list '{table}', expected {_tables()}")
            continue
        for index, row in enumerate(rows):
            place = f'{file}, {table}[{index}]'
            missing = [k for k in needed if not isinstance(row, Mapping) or k not in row]
            if missing:
                report.error(place, f'has no {", ".join(missing)}; reading the file stops at it')
                continue
            for key, types in needed.items():
                if not isinstance(row[key], types):
                    expected = ' or '.join(kind.__name__ for kind in types)
                    report.error(place, f'found {key} {row[key]!r}, expected {expected}')
    if len(report.problems) > before:
        return False
    for table, key in (*((table, 'id') for table in _TABLES), ('categories', 'name')):
        (most, times), *_ = Counter(row[key] for row in content[table]).most_common(1) or [(0, 0)]
        if times > 1:
            report.error(file, f"found {times} '{table}' with {key} {most!r}, expected one")
    return len(report.problems) == before


def _tables() -> str:
    return ', '.join(_TABLES)


def _check_annotations(
    report: Report, file: Path, content: Mapping[str, Any], name_of: Mapping[int, str]
) -> None:
    size_of = {image['id']: (image['width'], image['height']) for image in content['images']}
    for annotation in content['annotations']:
        place = f'{file}, annotation {annotation["id"]}'
        name = name_of.get(annotation['category_id'])
        if name is None:
            message = f"found category_id {annotation['category_id']!r}, which 'categories' lacks"
            report.error(place, message)
            continue
        report.objects[name] += 1
        size = size_of.get(annotation['image_id'])
        if size is None:
            message = f"found image_id {annotation['image_id']!r}, which 'images' lacks"
            report.error(place, message)
        elif not _is_box(annotation['bbox']):
            message = (
                f'found bbox {annotation["bbox"]!r}, expected four finite numbers: x, y, width, '
                'height'
            )
            report.error(place, message)
        elif left_out := _left_out(annotation, size):
            report.warn(place, f'{left_out}: bbox {annotation["bbox"]}; it is left out')


def _check_for_evaluation(
    report: Report, file: Path, annotations: Sequence[Mapping[str, Any]]
) -> None:
    """What pycocotools, and nothing before it, minds."""
    without = [annotation['id'] for annotation in annotations if 'iscrowd' not in annotation]
    if without:
        report.warn(
            f'{file}, annotation {without[0]}',
            f'found no iscrowd, here and in {len(without)} annotations altogether; evaluation on '
            'this file, but not training, stops at it (KeyError): write 0',
        )
    if any(annotation['id'] == 0 for annotation in annotations):
        report.warn(
            f'{file}, annotation 0',
            'evaluation on this file takes the object with this id for never found; count from 1',
        )


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box))


def _is_finite(x: Any) -> bool:
    # Python reads and writes NaN and Infinity, which are no JSON
    return isinstance(x, int | float) and math.isfinite(x)


def _left_out(annotation: Mapping[str, Any], size: tuple[float, float]) -> str:
    """Why CocoDataset leaves a box out, if it does."""
    x, y, width, height = annotation['bbox']
    if annotation.get('ignore'):
        return f'found ignore {annotation["ignore"]!r}'
    if annotation['area'] <= 0 or width < 1 or height < 1:
        return 'found a box without area or thinner than a pixel'
    if x >= size[0] or y >= size[1] or x + width <= 0 or y + height <= 0:
        return f'found a box outside of its image of {size[0]} x {size[1]} pixels'
    return ''


def _check_classes(
    report: Report, file: Path, names: Sequence[str], classes: Sequence[str]
) -> None:
    """Compare the file's classes with the data set's; both have an order."""
    others = {name: [file] for name in report.objects if name not in classes}
    check_left_out(report, others, classes, names)
    found = [name for name in names if name in classes]  # the labels 0, 1 ... of CocoDataset
    for label, name in enumerate(found):
        if name != classes[label]:
            report.error(
                file,
                f"found class {name!r} in place {label} of 'categories' (others left out), where "
                f'the data set has {classes[label]!r}: CocoDataset numbers classes in the '
                "file's order, so every name from here on is another's. Write metainfo.classes "
                'in that order, without classes that the file lacks',
            )
            return
    for name in classes[len(found) :]:
        report.warn(file, f'has no category {name!r}, which the data set has')
