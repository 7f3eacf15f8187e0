"""What the command lines of several tools take."""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Distinct(argparse.Action):
    """Keeps the values of an option, of which none may be there twice."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Sequence[Any],
        option_string: str | None = None,
    ) -> None:
        (most, times), *_ = Counter(values).most_common(1)
        if times > 1:
            parser.error(f'{option_string}: found {most} {times} times, expected each value once')
        setattr(namespace, self.dest, values)


def folder(text: str) -> Path:
    """A folder that is there, or can be made.

    Raises:
        argparse.ArgumentTypeError: It is something else.
    """
    path = Path(text)
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise argparse.ArgumentTypeError(f'found {existing}, which is no folder')
    return path


def result_file(text: str) -> Path:
    """A file that can be written when the work is done.

    Raises:
        argparse.ArgumentTypeError: Its folder is missing, or it is a folder itself.
    """
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f'found {text}, expected a file in a folder that is there')
    return path


def random_seed(text: str) -> int:
    """A number that random generators can begin with, NumPy's too, which mmengine seeds.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f'found {value}, expected 0 to {2**32 - 1}')
    return value


def image_size(text: str) -> tuple[int, int]:
    """Width and height in pixels, from a text such as 320x240.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    try:
        width, height = (int(part) for part in text.lower().split('x'))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'found {text!r}, expected WIDTHxHEIGHT, such as 320x240'
        ) from None
    return width, height


def positive(text: str) -> int:
    """A whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: It is less.
    """
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'found {value}, expected at least 1')
    return value
