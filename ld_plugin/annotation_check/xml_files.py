"""PASCAL VOC's and HRSC2016's XML files, one for every image."""

import math
import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .report import (
    Report,
    check_box_sizes,
    check_has_objects,
    check_image_sizes,
    check_images_exist,
    check_left_out,
)

_VOC_BOX = ('xmin', 'ymin', 'xmax', 'ymax')
_VOC_SIZE = ('size/width', 'size/height')
_HRSC_BOX = ('mbox_cx', 'mbox_cy', 'mbox_w', 'mbox_h', 'mbox_ang')
_HRSC_HEADER = ('header_x', 'header_y')


def check_voc(
    annotations: Path,
    images: Path,
    names: Sequence[str],
    classes: Sequence[str] | None = None,
    min_size: float | None = None,
    bbox_min_size: float = 0,
) -> Report:
    """Check annotations in PASCAL VOC's form.

    Args:
        annotations: Folder of ``NAME.xml``.
        images: Folder of ``NAME.jpg``.
        names: What to check.
        classes: Class names that may occur; None lets every name pass.
        min_size: Of the data set's ``filter_cfg``, in pixels, as `check_image_sizes` takes it.
        bbox_min_size: Of the data set's ``filter_cfg``, in pixels.
    """
    check = _Check(annotations, images, names, '.jpg', min_size, bbox_min_size)
    report = check.report
    places: dict[str, list[str]] = {}
    for file, root in check.parsed():
        if root.find('size') is not None:
            wrong = [side for side in _VOC_SIZE if not _is_whole(root, side)]
            for side in wrong:
                report.error(file, f'{_not_whole(root, side)}; reading the data set stops at it')
            if not wrong:
                check.sizes.append((file, *(_number(root, side) for side in _VOC_SIZE)))
        for number, thing in enumerate(root.findall('object'), start=1):
            place = f'{file}, object {number}'
            if name := _check_voc_object(check, place, root, thing, classes):
                places.setdefault(name, []).append(place)
    if classes is not None:
        others = {name: found for name, found in places.items() if name not in classes}
        check_left_out(report, others, classes, places)
    return check.finished()


def check_hrsc(
    annotations: Path,
    images: Path,
    names: Sequence[str],
    class_ids: Collection[str] | None = None,
    min_size: float | None = None,
    bbox_min_size: float = 0,
) -> Report:
    """Check annotations in HRSC2016's form.

    Args:
        annotations: Folder of ``NAME.xml``.
        images: Folder of ``NAME.bmp``.
        names: What to check.
        class_ids: Ids of ships that may occur; None lets every id pass.
        min_size: Of the data set's ``filter_cfg``, in pixels, as `check_image_sizes` takes it.
        bbox_min_size: Of the data set's ``filter_cfg``, in pixels.
    """
    check = _Check(annotations, images, names, '.bmp', min_size, bbox_min_size)
    report = check.report
    for file, root in check.parsed():
        if not _is_whole(root, 'Img_SizeWidth'):
            report.error(file, _not_whole(root, 'Img_SizeWidth'))
        else:
            width = _number(root, 'Img_SizeWidth')
            # HRSCDataset takes the width for the height, too
            check.sizes.append((file, width, width))
        for number, thing in enumerate(root.findall('HRSC_Objects/HRSC_Object'), start=1):
            place = f'{file}, object {number}'
            report.objects['ship'] += 1
            wrong = [_not_a_number(thing, k) for k in _HRSC_BOX if _number(thing, k) is None]
            wrong += [_not_whole(thing, k) for k in _HRSC_HEADER if not _is_whole(thing, k)]
            ship = thing.findtext('Class_ID')
            if class_ids is not None and ship not in class_ids:
                known = ', '.join(sorted(class_ids))
                wrong.append(f'found {ship!r} as Class_ID, expected one of {known}')
            if wrong:
                report.error(place, wrong[0])
                continue
            side = min(_number(thing, 'mbox_w'), _number(thing, 'mbox_h'))
            if check.check_side(place, side):
                _check_hrsc_place(report, place, root, thing)
    return check.finished()


@dataclass(frozen=True)
class _Check:
    """What a check of one folder was given, and what it has found so far.

    Attributes:
        annotations: Folder of ``NAME.xml``.
        images: Folder of ``NAME``, each with the suffix.
        names: What to check.
        suffix: Of the images, with its dot.
        min_size: Of the data set's ``filter_cfg``, in pixels, as `check_image_sizes` takes it.
        bbox_min_size: Of the data set's ``filter_cfg``, in pixels.
        report: Is added to.
        sizes: Files, and the width and height in pixels that they say.
        small: Places of the objects with a side below ``bbox_min_size``.
    """

    annotations: Path
    images: Path
    names: Sequence[str]
    suffix: str
    min_size: float | None
    bbox_min_size: float
    report: Report = field(default_factory=Report)
    sizes: list[tuple[Path, float, float]] = field(default_factory=list)
    small: list[str] = field(default_factory=list)

    def parsed(self) -> Iterator[tuple[Path, ET.Element]]:
        """Files with their root elements; what is no XML is reported."""
        report = self.report
        for name in self.names:
            file = self.annotations / f'{name}.xml'
            try:
                yield file, ET.parse(file).getroot()
            except FileNotFoundError:
                report.error(file, 'is missing; reading the data set stops at it')
            except OSError as error:
                what = f'cannot be read ({error.strerror})'
                report.error(file, f'{what}; reading the data set stops at it')
            except ET.ParseError as error:
                line, column = error.position
                reason = str(error).split(':')[0]
                report.error(f'{file}:{line}', f'no XML: {reason} (column {column + 1})')
            except (ValueError, LookupError) as error:  # an encoding that the parser does not know
                report.error(file, f'no XML that can be read: {error}')

    def check_side(self, place: str, side: float, box: str = '') -> bool:
        """Note a box that training ignores for its size, and report one without area.

        Args:
            place: Of its object.
            side: The shorter one, in pixels.
            box: Its numbers, for the message.

        Returns:
            Whether it is neither.
        """
        if side < self.bbox_min_size:
            self.small.append(place)
        elif side <= 0:
            self.report.warn(place, f'found a box without area, whose offsets are infinite{box}')
        else:
            return True
        return False

    def finished(self) -> Report:
        """The report, with what only all files together show."""
        self.report.num_images = len(self.names)
        if not self.names:
            message = 'found no images listed; reading the data set stops at it'
            self.report.error(self.annotations, message)
        check_image_sizes(self.report, self.sizes, self.min_size)
        check_box_sizes(self.report, self.small, self.bbox_min_size)
        check_has_objects(self.report, self.annotations)
        listed = [(self.annotations / f'{n}.xml', f'{n}{self.suffix}') for n in self.names]
        check_images_exist(self.report, self.images, listed, 'training stops at it')
        return self.report


def _check_voc_object(
    check: _Check,
    place: str,
    root: ET.Element,
    thing: ET.Element,
    classes: Sequence[str] | None,
) -> str | None:
    """The name of its class, if it has one."""
    report = check.report
    name, box = thing.findtext('name'), thing.find('bndbox')
    if name is not None and classes is not None and name not in classes:
        report.objects[name] += 1
        return name  # XMLDataset looks no further
    if name is None or box is None:
        report.error(place, 'has no name or no bndbox; reading the data set stops at it')
        return name
    report.objects[name] += 1
    wrong = [key for key in _VOC_BOX if _number(box, key) is None]
    if wrong:
        report.error(place, _not_a_number(box, wrong[0]))
        return name
    if thing.find('difficult') is not None and not _is_whole(thing, 'difficult'):
        report.error(place, _not_whole(thing, 'difficult'))
    x0, y0, x1, y1 = (_number(box, key) for key in _VOC_BOX)
    side = min(int(x1) - int(x0), int(y1) - int(y0))  # as XMLDataset reads them
    check.check_side(place, side, f': {x0:g} {y0:g} {x1:g} {y1:g}')
    width, height = (_number(root, f'size/{key}') for key in ('width', 'height'))
    if width and height and (x0 > width or y0 > height or x1 < 1 or y1 < 1):
        report.error(
            place,
            f'the box {x0:g} {y0:g} {x1:g} {y1:g} lies outside of its image of '
            f'{width:g} x {height:g} pixels; every prior may be assigned to it',
        )
    return name


def _check_hrsc_place(report: Report, place: str, root: ET.Element, thing: ET.Element) -> None:
    x, y, long, short, angle = (_number(thing, key) for key in _HRSC_BOX)
    cosine, sine = abs(math.cos(angle)), abs(math.sin(angle))
    reach = (long * cosine + short * sine) / 2, (long * sine + short * cosine) / 2
    size = [_number(root, f'Img_Size{side}') for side in ('Width', 'Height')]
    if all(size) and any(
        centre + half <= 0 or centre - half >= limit
        for centre, half, limit in zip((x, y), reach, size, strict=True)
    ):
        report.error(
            place,
            f'the box around ({x:g}, {y:g}) lies outside of its image of '
            f'{size[0]:g} x {size[1]:g} pixels; every prior may be assigned to it',
        )


def _number(element: ET.Element, key: str) -> float | None:
    """A finite number, if it is one."""
    try:
        number = float(element.findtext(key, default=''))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _is_whole(element: ET.Element, key: str) -> bool:
    """Whether the stock data sets can read it, for which `int` refuses 9.0 too."""
    try:
        int(element.findtext(key, default=''))
    except ValueError:
        return False
    return True


def _not_a_number(element: ET.Element, key: str) -> str:
    return f'found {element.findtext(key)!r} as {key}, expected a number'


def _not_whole(element: ET.Element, key: str) -> str:
    return f'found {element.findtext(key)!r} as {key}, expected a whole number'
