"""DOTA's text files: a line of eight coordinates, class name and difficulty for every object.

Two programs of MMRotate read them. Its splitting tool reads the raw files (``labelTxt``), which may
begin with the lines ``imagesource:...`` and ``gsd:...``; its data sets read what the tool writes
(``annfiles``), and stop at such lines.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from .report import Report, check_has_objects, check_images_exist, file_names, unknown_class

NUM_COORDINATES = 8
HEADERS = ('imagesource:', 'gsd:')
#: that the splitting tool reads
RAW_SUFFIXES = ('.jpg', '.JPG', '.png', '.tif', '.bmp')
_FIELDS = 'x1 y1 x2 y2 x3 y3 x4 y4 class difficulty'


def check_dota(
    annotations: Path,
    images: Path,
    classes: Sequence[str] | None = None,
    suffix: str = 'png',
    raw: bool = False,
) -> Report:
    """Check a folder of DOTA's text files.

    Args:
        annotations: Folder of ``*.txt``.
        images: Folder of images with the same names.
        classes: Names that may occur; None lets every name pass.
        suffix: Of the images, as the data set's ``img_suffix``; raw images may have any.
        raw: Whether the files are for the splitting tool.
    """
    report = Report()
    files = sorted(annotations.glob('*.txt'))
    if not files:
        report.error(annotations, 'found no *.txt, expected one for every image')
    image_of = _images_of(images, suffix, raw)
    for file in files:
        _check_file(report, file, image_of.get(file.stem), classes, raw)
    report.num_images = len(files)
    check_has_objects(report, annotations)
    missing = [(f, f'{f.stem}.{suffix}') for f in files if f.stem not in image_of]
    check_images_exist(report, images, missing, _WITHOUT_IMAGE[raw])
    for stem in sorted(set(image_of) - {file.stem for file in files}):
        report.warn(image_of[stem], f'has no {annotations / stem}.txt; {_WITHOUT_FILE[raw]}')
    return report


def check_dota_images(images: Path, suffix: str = 'png') -> Report:
    """Check that there are images to test on, which have no annotations."""
    report = Report(num_images=len(_images_of(images, suffix, raw=False)))
    if not report.num_images:
        report.error(images, f'found no *.{suffix}, expected the images to test on')
    return report


_WITHOUT_IMAGE = {
    False: 'training stops at it',
    True: 'the splitting tool leaves its objects out without a word',
}
_WITHOUT_FILE = {
    False: 'it is left out without a word',
    True: 'the splitting tool takes it for an image without objects',
}


def _images_of(folder: Path, suffix: str, raw: bool) -> dict[str, Path]:
    """Images by their name without suffix."""
    suffixes = RAW_SUFFIXES if raw else (f'.{suffix}',)
    names = (Path(name) for name in file_names(folder))
    return {name.stem: folder / name for name in names if name.suffix in suffixes}


def _check_file(
    report: Report, file: Path, image: Path | None, classes: Sequence[str] | None, raw: bool
) -> None:
    try:
        lines = file.read_text(encoding='utf-8').splitlines()
    except UnicodeDecodeError as error:
        report.error(file, f'found bytes that are no UTF-8 text ({error})')
        return
    except OSError as error:
        report.error(file, f'cannot be read ({error.strerror}); reading the data set stops at it')
        return
    size = None
    if image is not None:
        try:
            size = _size(image)
        except OSError:
            report.error(image, 'found no image that can be read; what reads it stops at it')
    for number, line in enumerate(lines, start=1):
        if raw and (not line.strip() or line.startswith(HEADERS)):
            continue
        place = f'{file}:{number}'
        problem = next(_problems(line, classes, raw), None)
        if problem:
            report.error(place, problem)
        if len(fields := line.split()) == NUM_COORDINATES + 2:
            report.objects[fields[NUM_COORDINATES]] += 1
        if not problem and size is not None and _is_outside(_quadrilateral(line), size):
            report.error(
                place,
                f'the quadrilateral lies outside of its image of {size[0]} x {size[1]} pixels; '
                'every prior may be assigned to it',
            )


def _problems(line: str, classes: Sequence[str] | None, raw: bool) -> Iterator[str]:
    """What is wrong with a line, the most general first; the later ones rely on the earlier."""
    fields = line.split()
    if line.startswith(HEADERS):
        yield (
            f'found {line!r}, a line of the raw files at which DOTADataset stops; cut the images '
            "with MMRotate's splitting tool, which takes it out, or delete it"
        )
    if not fields:
        yield 'found an empty line, at which DOTADataset stops'
    if len(fields) != NUM_COORDINATES + 2:
        yield f'found {len(fields)} fields, expected 10 ({_FIELDS}): {line!r}'
    if raw and line.split(' ') != fields:
        yield f'found other separators than single spaces, which the splitting tool needs: {line!r}'
    for index, text in enumerate(fields[:NUM_COORDINATES], start=1):
        if not _is_number(text):
            yield f'found {text!r} as coordinate {index} of 8, expected a number: {line!r}'
    *_, name, difficulty = fields
    if classes is not None and name not in classes:
        yield unknown_class(name, classes)
    if not _is_whole(difficulty):
        yield f'found difficulty {difficulty!r}, expected a whole number such as 0 or 1: {line!r}'
    if _has_no_area(_quadrilateral(line)):
        yield f'found a quadrilateral without area, whose offsets are infinite: {line!r}'


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _quadrilateral(line: str) -> np.ndarray:
    """(4, 2), in pixels."""
    return np.array(line.split()[:NUM_COORDINATES], np.float32).reshape(4, 2)


def _has_no_area(quadrilateral: np.ndarray) -> bool:
    """Of the rectangle that the pipelines make of it."""
    _, sides, _ = cv2.minAreaRect(quadrilateral)
    return min(sides) < 1e-3


def _is_outside(quadrilateral: np.ndarray, size: tuple[int, int]) -> bool:
    low, high = quadrilateral.min(0), quadrilateral.max(0)
    return bool((high <= 0).any() or (low >= size).any())


def _size(image: Path) -> tuple[int, int]:
    """Width and height in pixels; only the file's head is read."""
    Image.MAX_IMAGE_PIXELS = None  # raw images of DOTA are larger than Pillow thinks safe
    with Image.open(image) as opened:
        return opened.size
