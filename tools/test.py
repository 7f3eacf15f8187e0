"""Evaluate a checkpoint on the test set of a config.

Works on the distilled config and on the stock one: a published student is an ordinary checkpoint
of the stock detector. Of a distilled config only the student is built: testing needs no teacher.
"""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from mmdet.engine.hooks.utils import trigger_visualization_hook
from mmdet.evaluation import DumpDetResults
from mmengine.config import Config, ConfigDict

import ld_plugin  # noqa: F401  (registers the plugin's types)
from ld_plugin.data_check import TESTING, check_data_folders, check_submission_folders
from ld_plugin.detectors.model_config import student_model
from ld_plugin.errors import ConfigError
from ld_plugin.launch import add_common_arguments, build_runner, load_config
from ld_plugin.runner import EvaluationRunner


def parse_args() -> Namespace:
    parser = ArgumentParser(description='Evaluate a checkpoint on the test set of a config.')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    add_common_arguments(parser)
    parser.add_argument('--out', type=Path, metavar='FILE.pkl', help='write all predictions here')
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument(
        '--show-dir', help='write pictures of predictions to WORK_DIR/TIMESTAMP/SHOW_DIR'
    )
    parser.add_argument('--wait-time', type=float, default=2, help='seconds per picture of --show')
    parser.add_argument(
        '--tta', action='store_true', help="augment at test time, as the config's tta_... say"
    )
    args = parser.parse_args()
    if args.out is not None and args.out.suffix not in ('.pkl', '.pickle'):
        parser.error(f'--out: predictions are written as a pickle; {args.out} must end in .pkl')
    if args.out is not None and args.out.is_dir():
        parser.error(f'--out: {args.out} is a folder; name a file in it')
    return args


def augment(cfg: Config) -> None:
    """Test with `tta_model` around the detector, on what `tta_pipeline` makes of an image.

    Raises:
        ConfigError: The config lacks one of them.
    """
    for key in ('tta_model', 'tta_pipeline'):
        if key not in cfg:
            raise ConfigError(
                f'{key}: not in the config, but --tta needs it; inherit it, for example from '
                "'mmdet::retinanet/retinanet_tta.py', or leave the option out"
            )
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    cfg.load_from, cfg.resume = args.checkpoint, False
    if args.show or args.show_dir:
        cfg = trigger_visualization_hook(cfg, args)
    try:
        check_data_folders(cfg, TESTING)
        check_submission_folders(cfg)
        cfg.model = student_model(cfg)
        if args.tta:
            augment(cfg)
    except (ConfigError, FileNotFoundError, FileExistsError) as error:
        sys.exit(f'{args.config}: {error}')
    runner = build_runner(cfg, EvaluationRunner)
    if args.out is not None:
        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=str(args.out)))
    runner.test()


if __name__ == '__main__':
    main()
