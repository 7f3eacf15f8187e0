"""What the command lines of several tools take."""

import argparse


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
