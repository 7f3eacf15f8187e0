"""What a check says."""

import difflib
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Problem:
    """Something wrong at a place.

    Attributes:
        place: A file, with its line where it has one, or a key of a config.
        message: What was found, and what was expected.
        is_error: Whether training stops at it or goes wrong; else it is a warning.
    """

    place: str
    message: str
    is_error: bool = True

    def __str__(self) -> str:
        return f'{self.place}: {"error" if self.is_error else "warning"}: {self.message}'


@dataclass
class Report:
    """What was seen in one data set.

    Attributes:
        problems: In the order of files and lines.
        num_images: Images that the annotations are of.
        objects: How many objects of every class name, also of unknown ones.
    """

    problems: list[Problem] = field(default_factory=list)
    num_images: int = 0
    objects: Counter[str] = field(default_factory=Counter)

    def error(self, place: object, message: str) -> None:
        """Add what training stops at or goes wrong with."""
        self.problems.append(Problem(str(place), message))

    def warn(self, place: object, message: str) -> None:
        """Add what one may want to know."""
        self.problems.append(Problem(str(place), message, is_error=False))

    def __str__(self) -> str:
        classes = ', '.join(f'{name} {count}' for name, count in self.objects.most_common())
        total = self.objects.total()
        return f'{self.num_images} images, {total} objects{": " * bool(classes)}{classes}'


def unknown_class(name: str, classes: Sequence[str]) -> str:
    """Message for a class name that the data set does not have."""
    meant = _nearest(name, classes)
    hint = f'; did you mean {meant!r}?' if meant else f': {", ".join(classes)}'
    return f"found class {name!r}, expected one of the data set's {len(classes)}{hint}"


def _nearest(name: str, classes: Sequence[str], likeness: float = 0.6) -> str | None:
    """The class whose name is most like ``name``, of those at least as like as 0 to 1."""
    close = difflib.get_close_matches(name.lower(), [c.lower() for c in classes], 1, likeness)
    return next((c for c in classes if c.lower() in close), None)


def check_left_out(
    report: Report,
    others: Mapping[str, Sequence[object]],
    classes: Sequence[str],
    named: Collection[str],
) -> None:
    """Report classes that the data set does not have, whose objects it leaves out.

    That may be its purpose, which is a warning. It is an error where one may be a class of the data
    set's, spelt otherwise: where the names are alike, or where the files lack one of the data
    set's.

    Args:
        report: Is added to.
        others: The places of every such class, by its name.
        classes: The data set's.
        named: All class names in the files.
    """
    is_lacking = not set(classes) <= set(named)
    on_purpose = []
    for name, places in others.items():
        if not (is_lacking or _nearest(name, classes, likeness=0.8)):
            on_purpose.append(name)
            continue
        for place in places:
            message = f'{unknown_class(name, classes)}; what is of it is left out without a word'
            report.error(place, message)
    if on_purpose:
        count = sum(report.objects[name] for name in on_purpose)
        report.warn(
            others[on_purpose[0]][0],
            f'{count} objects are left out, of classes that the data set does not have: '
            f'{", ".join(on_purpose)}',
        )


def check_has_objects(report: Report, place: object) -> None:
    """Report images without a single object, unless what they have could not be read."""
    if report.num_images and not report.objects and not report.problems:
        report.warn(
            place,
            'found no object; where images without any are left out (filter_cfg.filter_empty_gt), '
            'nothing is left, and reading the data set stops',
        )


def check_image_sizes(
    report: Report, sizes: Iterable[tuple[object, float, float]], min_size: float | None
) -> None:
    """Report images that are left out of training for their size.

    Args:
        report: Is added to.
        sizes: Place, width and height in pixels of every image.
        min_size: Of the shorter side, in pixels; None for that of the stock configs, which finds
            images with sizes that nobody filled in.
    """
    short = [size for size in sizes if min(size[1:]) < (1 if min_size is None else min_size)]
    if short:
        place, width, height = short[0]
        limit = '32 in stock configs' if min_size is None else f'{min_size:g}'
        report.warn(
            place,
            f'found an image of {width:g} x {height:g} pixels, here and in {len(short)} images '
            f'altogether; training leaves them out without a word (filter_cfg.min_size, {limit})',
        )


def check_box_sizes(report: Report, small: Sequence[object], bbox_min_size: float) -> None:
    """Report objects that are no objects in training, for their size.

    Args:
        report: Is added to.
        small: Places of the objects with a side below ``bbox_min_size`` pixels.
        bbox_min_size: Of the data set's ``filter_cfg``.
    """
    if small:
        report.warn(
            small[0],
            f'found a side below {bbox_min_size:g} pixels, here and in {len(small)} objects '
            'altogether; training ignores them (filter_cfg.bbox_min_size)',
        )


def check_images_exist(
    report: Report, images: Path, names: Iterable[tuple[object, str]], consequence: str
) -> None:
    """Report images that are not there.

    Args:
        report: Is added to.
        images: Their folder.
        names: Pairs of the place that names an image, and its file name.
        consequence: What happens otherwise.
    """
    there = file_names(images)
    stems = {Path(name).stem: name for name in sorted(there)}
    for place, name in names:
        if name not in there and not Path(images, name).is_file():
            other = stems.get(Path(name).stem)
            hint = f' (there is {other})' if other else ''
            report.error(place, f'its image {Path(images, name)} is missing{hint}; {consequence}')


def file_names(folder: Path) -> Collection[str]:
    """Names of what lies in a folder; one listing is faster than to ask for every file."""
    return set(os.listdir(folder)) if folder.is_dir() else set()
