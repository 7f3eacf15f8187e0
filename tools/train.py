"""Train a detector, with or without a teacher, from a config.

Takes what mmdet's own `tools/train.py` takes. The plugin's types are registered here, so that a
config needs no `custom_imports`.
"""

import sys
from argparse import ArgumentParser, Namespace

from mmengine.config import Config
from mmengine.runner import find_latest_checkpoint

import ld_plugin  # noqa: F401  (registers the plugin's types)
from ld_plugin.data_check import check_data_folders
from ld_plugin.errors import ConfigError
from ld_plugin.launch import add_common_arguments, build_runner, load_config


def parse_args() -> Namespace:
    # MIM reads this help and appends arguments of its own if it finds its word for the number of
    # graphics cards in it, so no text here may contain that word.
    parser = ArgumentParser(description='Train a detector, with or without a teacher.')
    parser.add_argument('config', help='config file')
    add_common_arguments(parser)
    parser.add_argument('--amp', action='store_true', help='train in mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate from the config's auto_scale_lr.base_batch_size",
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from this checkpoint; without a value, from the latest one in the work folder, '
        'if there is one',
    )
    return parser.parse_args()


def apply_training_options(cfg: Config, args: Namespace) -> None:
    """Write `--amp`, `--auto-scale-lr` and `--resume` into the config."""
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise ConfigError(
                'auto_scale_lr.base_batch_size: not in the config, but --auto-scale-lr needs it; '
                "set it to the total batch size that the config's learning rate is meant for, or "
                'leave the option out'
            )
        cfg.auto_scale_lr.enable = True
    if args.resume == 'auto':
        # what has no checkpoint yet begins as it would without the option
        cfg.resume = find_latest_checkpoint(cfg.work_dir) is not None
        if cfg.resume:
            cfg.load_from = None
    elif args.resume is not None:
        cfg.resume, cfg.load_from = True, args.resume


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    try:
        apply_training_options(cfg, args)
        check_data_folders(cfg)
    except (ConfigError, FileNotFoundError) as error:
        sys.exit(f'{args.config}: {error}')
    build_runner(cfg).train()


if __name__ == '__main__':
    main()
