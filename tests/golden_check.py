"""Recompute reference numbers with the plugin's public functions.

    python tests/golden_check.py tests/data/golden

A file ``<method>_<variant>.npz`` holds inputs and the outputs that the method's published
implementation gave for them. One line per output says how far ours lies from it:

    ok               agrees
    FAIL             does not; the exit status is then 1
    not comparable   the published value is a plain defect that ours does not share, or none at all
    not implemented  no check exists for this method, or for this array

Floats agree to 1e-4 of the array's largest value (an array of zeros to 1e-7), the rest exactly.
Sizes, counts and settings are all taken from the arrays.
"""

import argparse
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a program, too, `tests` is ours

from tests.golden import bckd, crosskd, defeat, ld, pgfi, rank, rotated
from tests.golden.case import Case, Row, compare

UNREADABLE = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError)

CHECKS: dict[str, Callable[[Case], Iterator[Row]]] = {
    'bckd': bckd.check_bckd,
    'crosskd': crosskd.check_crosskd,
    'defeat': defeat.check_defeat,
    'im_regions': ld.check_im_regions,
    'kd_kl': ld.check_kd_kl,
    'ld_head': ld.check_ld_head,
    'pgfi': pgfi.check_pgfi,
    'rank_mimic': rank.check_rank_mimic,
    'rotated_ld': rotated.check_rotated_ld,
    'vlr_region': ld.check_vlr_region,
}


def check_file(path: Path) -> Iterator[tuple[str, str]]:
    """(line, status) of every output in a file."""
    method = path.stem.rpartition('_')[0]
    if method not in CHECKS:
        yield _line(path, '', 'not implemented'), 'not implemented'
        return
    try:
        with np.load(path) as archive:
            case = Case({name: archive[name] for name in archive.files})
    except UNREADABLE as error:
        yield _line(path, '', f'FAIL: cannot be read: {error}'), 'FAIL'
        return
    try:
        for row in CHECKS[method](case):
            yield _report(path, row)
    except KeyError as error:
        yield _line(path, '', f'FAIL: array {error} is missing'), 'FAIL'
        return
    except Exception as error:  # which must not hide the files that follow
        yield _line(path, '', f'FAIL: {type(error).__name__}: {error}'), 'FAIL'
        return
    for name in case.unused:
        yield _line(path, name, 'not implemented'), 'not implemented'


def _report(path: Path, row: Row) -> tuple[str, str]:
    if row.reason:
        return _line(path, row.name, row.reason), 'not comparable'
    error, relative, agrees = compare(row)
    status = 'ok' if agrees else 'FAIL'
    if row.ours.shape != row.expected.shape:
        shapes = f'shape {tuple(row.ours.shape)}, expected {tuple(row.expected.shape)}'
        return _line(path, row.name, f'{status}: {shapes}'), status
    return _line(path, row.name, f'abs {error:.1e}  rel {relative:.1e}  {status}'), status


def _line(path: Path, quantity: str, result: str) -> str:
    return f'{path.name:18} {quantity:44} {result}'


def main(arguments: list[str] | None = None) -> int:
    """Check a folder and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folder', type=Path, help='with .npz files')
    folder = parser.parse_args(arguments).folder
    if not folder.is_dir():
        parser.error(f'{folder} is not a folder.')
    files = sorted(folder.glob('*.npz'))
    if not files:
        parser.error(f'{folder} holds no .npz file.')
    counts: dict[str, int] = {}
    for path in files:
        for line, status in check_file(path):
            print(line)
            counts[status] = counts.get(status, 0) + 1
    print(', '.join(f'{number} {status}' for status, number in sorted(counts.items())))
    return 1 if counts.get('FAIL') else 0


if __name__ == '__main__':
    sys.exit(main())
