"""What `tools/train.py` and `tools/test.py` share: arguments, config, runner."""

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from .detectors.model_config import OF_CODE, read_file
from .errors import ConfigError
from .runner import DistillationRunner


class OverrideAction(DictAction):
    """MMEngine's for ``KEY=VALUE``, but that texts keep their spaces, as of a folder's name."""

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        parsed = DictAction._parse_iterable(val)
        return val.strip('\'" ') if isinstance(parsed, str) else parsed


def add_common_arguments(parser: ArgumentParser) -> None:
    """Add what mmdet's training and test programs both take (MIM passes `--launcher`)."""
    parser.add_argument('--work-dir', help='folder for logs, checkpoints and results')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OverrideAction,
        metavar='KEY=VALUE',
        help='override config entries: a.b=1, a.list="[1,2]", a.0.b=c for the first item of a list',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes of a distributed run',
    )
    # `python -m torch.distributed.launch` passes this one; torchrun sets the variable instead.
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help='set by launchers'
    )


def load_config(args: Namespace) -> Config:
    """Read the config file and lay the command line over it.

    The work folder is the command line's, else the config's, else `work_dirs/<name of the config>`.

    Raises:
        SystemExit: The config cannot be read.
        ConfigError: It fails in its own code, of which the traceback tells more.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    try:
        cfg = read_file(args.config)
    except ConfigError as error:
        if isinstance(error.__cause__, OF_CODE):
            raise
        raise SystemExit(str(error)) from error
    cfg.launcher = args.launcher
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs', Path(args.config).stem))
    return cfg


def build_runner(cfg: Config, default: type[Runner] = DistillationRunner) -> Runner:
    """Build the runner that the config names in `runner_type`.

    Args:
        cfg: A whole config.
        default: What to build where it names none, or the plugin's.
    """
    kind = cfg.get('runner_type', DistillationRunner)
    # which a config in pure Python names as a class, and a written one by its module, too
    cls = RUNNERS.get(kind) if isinstance(kind, str) else kind
    if cls is DistillationRunner:
        return default.from_cfg(cfg)
    return RUNNERS.build(cfg)
