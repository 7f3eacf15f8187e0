"""Make of a distilled student's training checkpoint one for the stock config.

What stays are the stock detector's weights and the class names. Trainable helpers of the
distillers, optimizer, schedules and logs go. With mmengine's EMA hook the averaged weights stay, as
they are the ones that the hook puts into a checkpoint's `state_dict`.
"""

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ld_plugin.detectors.checkpoint import first_of, load_checkpoint_file, weights_of
from ld_plugin.errors import ConfigError

KEPT_META = ('dataset_meta', 'CLASSES', 'PALETTE', 'epoch', 'iter', 'mmengine_version')


def parse_args() -> Namespace:
    parser = ArgumentParser(
        description="Strip a distilled student's training checkpoint down to what the stock config "
        'loads: the weights, and the class names.'
    )
    parser.add_argument(
        'input', metavar='IN', help='checkpoint of the training, such as epoch_12.pth'
    )
    parser.add_argument('output', metavar='OUT', help='where to write the published checkpoint')
    return parser.parse_args()


def published(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The `meta` and `state_dict` that the stock detector needs, out of a training checkpoint."""
    meta = checkpoint.get('meta') or {}
    return dict(
        meta={key: meta[key] for key in KEPT_META if key in meta},
        state_dict=weights_of(checkpoint),
    )


def read(path: Path) -> dict[str, Any]:
    """Read a training checkpoint.

    Raises:
        ConfigError: It is missing, broken, or something else.
    """
    checkpoint = load_checkpoint_file(path, key='IN')
    state = checkpoint.get('state_dict')
    if not isinstance(state, Mapping) or not all(map(torch.is_tensor, state.values())):
        raise ConfigError(
            f"IN: {str(path)!r} is no training checkpoint: expected 'state_dict' with weights, "
            f'found the keys {first_of(checkpoint)}. Give a file that '
            'CheckpointHook wrote, such as epoch_12.pth.'
        )
    return checkpoint


def write(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint as a whole: an interrupted run leaves the old file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f'.{path.name}.unfinished')
    try:
        torch.save(checkpoint, unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def main() -> None:
    args = parse_args()
    source, target = Path(args.input), Path(args.output)
    if target.exists() and source.exists() and target.samefile(source):
        sys.exit(f'OUT: {args.output} is the input itself, which would be lost; name another file')
    if target.is_dir() or args.output.endswith(os.sep):  # one that is not there yet, too
        sys.exit(f'OUT: {args.output} is a folder; name a file in it')
    if target.exists() and not target.is_file():
        sys.exit(f'OUT: {args.output} is no file, and would be replaced by one; name another')
    try:
        checkpoint = read(source)
    except ConfigError as error:
        sys.exit(str(error))
    result = published(checkpoint)
    if not result['state_dict']:
        found = first_of(checkpoint['state_dict'])
        sys.exit(f'IN: {args.input} has no weights of a detector; found {found}')
    try:
        write(result, target)
    except (OSError, RuntimeError) as error:  # torch raises the second
        sys.exit(f'OUT: {args.output} cannot be written ({error})')
    dropped = len(checkpoint['state_dict']) - len(result['state_dict'])
    others = sorted(set(checkpoint) - set(result))
    print(
        f'{source}: {size(source)}\n{target}: {size(target)}\n'
        f'dropped {dropped} weights of distillers, and {", ".join(others) or "nothing else"}; '
        f'kept {len(result["state_dict"])} weights'
    )


def size(path: Path) -> str:
    return f'{path.stat().st_size / 1e6:.1f} MB'


if __name__ == '__main__':
    main()
