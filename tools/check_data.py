"""Check a data set before training: every wrong line, box, class and missing image, by its file.

    python tools/check_data.py CONFIG
    python tools/check_data.py FOLDER [--classes ship plane]

CONFIG is a path, the name of a config of this package, or a name as `_base_` takes it (such as
`mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py`); the data sets of its loaders are checked,
also inside of wrappers, against their class names. In a FOLDER are checked, or below it: DOTA's
text files in `annfiles` or `labelTxt...` (beside `images`), COCO's JSON files, and the XML files of
VOC and HRSC2016 in `Annotations`. The exit status is 1 if there are errors, and 0 otherwise.

What the stock data sets make of it:

- `DOTADataset` stops at a header (`imagesource:`, `gsd:`), an empty line, a line with too few
  fields, a word for a number or an unknown class (ValueError, IndexError, KeyError), without saying
  in which file or line; it never asks whether an image has no text file. MMRotate's splitting tool
  leaves lines with fewer than nine fields out without a word, writes those of nine (no difficulty)
  back as two broken ones, and takes an image without a text file for one without objects.
- `CocoDataset` leaves out objects of other classes, without area, or outside of their image,
  without a word, and numbers classes in the file's order, whatever the order in `metainfo.classes`.
- `XMLDataset` leaves out objects of other classes without a word, and keeps boxes without area.
  Classes left out are a warning; an error if they may be those of the data set's, spelt otherwise.
- `CocoDataset`, `XMLDataset` and `HRSCDataset` leave images out of training whose shorter side, as
  the file says it, is below `filter_cfg.min_size`, without a word: also those of 0 x 0 pixels that
  nobody filled in. The latter two ignore objects below `filter_cfg.bbox_min_size`.
- A missing image shows when a worker first reads it, hours later perhaps.
- An object outside of its image overlaps no prior; `MaxIoUAssigner` with `min_pos_iou=0`, as in
  RetinaNet, then gives it every prior there is. One without area has infinite offsets.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for a checkout without installation

from mmengine.config import Config

import ld_plugin  # noqa: F401  (registers the plugin's types)
from ld_plugin.annotation_check import Report, Source, config_sources, folder_sources
from ld_plugin.detectors.model_config import OF_CODE, own_config_root, read_config, read_file
from ld_plugin.errors import ConfigError
from ld_plugin.launch import OverrideAction

LOADERS = ('train', 'val', 'test')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('data', help='a config, or a folder of annotations')
    parser.add_argument('--loaders', nargs='+', choices=LOADERS, help='of a config; otherwise all')
    parser.add_argument(
        '--classes',
        nargs='+',
        metavar='NAME',
        help='class names that may occur in a folder (not of HRSC2016, which has ids)',
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=OverrideAction, metavar='KEY=VALUE',
        help='override config entries, such as train_dataloader.dataset.data_root=PATH',
    )  # fmt: skip
    args = parser.parse_args()
    is_folder = Path(args.data).is_dir()
    if args.classes and not is_folder:
        parser.error('--classes: a config names its own classes; it is for folders')
    if is_folder and (args.loaders or args.cfg_options):
        parser.error('--loaders, --cfg-options: a folder has neither; they are for configs')
    return args


def find_sources(args: argparse.Namespace) -> list[Source]:
    """What to check; stops if there is nothing."""
    if Path(args.data).is_dir():
        found = folder_sources(Path(args.data), args.classes)
        what = 'annfiles/*.txt, labelTxt/*.txt, *.json of COCO, or Annotations/*.xml'
    else:
        cfg = read(args.data)
        cfg.merge_from_dict(args.cfg_options or {})
        loaders = args.loaders or LOADERS
        found = config_sources(cfg, [f'{name}_dataloader' for name in loaders])
        what = f'a data set in {", ".join(loaders)}_dataloader'
    if not found:
        sys.exit(f'{args.data}: found nothing to check, expected {what}')
    return found


def read(name: str) -> Config:
    """A config by its path, by a name as MIM takes it, or by one with its package."""
    if '::' not in name:
        return read_file(find_config(name))
    try:
        return read_config(name)
    except ConfigError as error:  # which takes it for a teacher's
        raise ConfigError(str(error).removeprefix('model.teacher.config: ')) from error


def find_config(name: str) -> Path:
    """A path, or a name as MIM takes it."""
    if Path(name).is_file():
        return Path(name)
    for path in own_config_root().rglob(Path(name).name):
        if path.is_file():
            return path
    sys.exit(f'{name}: found no such folder or config, nor one of this name in {own_config_root()}')


def main() -> int:
    sys.stdout.reconfigure(errors='backslashreplace')  # names that the terminal has no letters for
    errors = warnings = 0
    try:
        sources = find_sources(parse_args())
    except ConfigError as error:
        if isinstance(error.__cause__, OF_CODE):
            raise  # the traceback tells more
        sys.exit(str(error))
    for source in sources:
        try:
            report = source.check()
        except (OSError, UnicodeDecodeError) as error:  # of one file; the others are checked, too
            report = Report()
            report.error(source.name, f'cannot be read ({error})')
        for problem in report.problems:
            print(problem)
            errors += problem.is_error
            warnings += not problem.is_error
        print(f'{source.name}: {report}', flush=True)
    print(f'errors: {errors}, warnings: {warnings}')
    return 1 if errors else 0


if __name__ == '__main__':
    sys.exit(main())
