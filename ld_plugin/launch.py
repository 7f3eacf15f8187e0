"""What `tools/train.py` and `tools/test.py` share: arguments, config, runner."""

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.dist import master_only
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn

from .data_check import training_classes
from .detectors.distilled import DistilledDetector
from .detectors.model_config import read_file


class _Runner(Runner):
    """mmengine's, with two things that it cannot know of."""

    def build_model(self, model: nn.Module | dict[str, Any]) -> nn.Module:
        """Compare class names now, if the config tells them, and not in the first step alone."""
        built = super().build_model(model)
        if isinstance(built, DistilledDetector) and (names := training_classes(self.cfg)):
            built.match_classes(names)
        return built

    @master_only
    def dump_config(self) -> None:
        """Write the config that it ran as `config.py`, not under the name of the config file.

        In an editable install MIM looks for a config's name in the whole source tree, work folders
        included, and refuses a name found twice: a copy of that name would make every second
        `mim train mmdet-ld-plugin NAME` fail.
        """
        self.cfg.dump(Path(self.work_dir, 'config.py'))


def add_common_arguments(parser: ArgumentParser) -> None:
    """Add what mmdet's training and test programs both take (MIM passes `--launcher`)."""
    parser.add_argument('--work-dir', help='folder for logs, checkpoints and results')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
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
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_file(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs', Path(args.config).stem))
    return cfg


def build_runner(cfg: Config) -> Runner:
    """Build the config's own runner if it names one (`runner_type`), else mmengine's."""
    return RUNNERS.build(cfg) if 'runner_type' in cfg else _Runner.from_cfg(cfg)
