r"""Measure every method on every kind of detector on BCCD, and print the table of the README.

    python tools/benchmark_methods.py data/bccd --jobs 2

    python tools/benchmark_methods.py data/bccd --families GFL \
        --methods fitnet ld_full+pkd:0.5 ld_main+ld_full.ld_vlr

The second command measures the baseline that the papers share, two recipes together, the weights of
one of them halved, and two losses of ``ld_full``.

A family is a stock detector of MMDetection, made small. Its teacher is R-18 with 64 channels in
neck and head, its student the same with half of the backbone's channels. Where a stock head has no
distributions, the family has the head of this package that does, so that one teacher and one
student serve all methods. Data, image size and optimizer are those of ``configs/bccd``. Teachers
train for 18 epochs; students for 6, alone and with each recipe at its published weights: GFL's
with three seeds, the others' with one.

Complete runs are not repeated, and interrupted ones continue.
"""

import argparse
import dataclasses
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import benchmark_bccd as bccd
from mmdet.registry import MODELS
from mmengine import Config, ConfigDict, DefaultScope
from mmengine.hub import get_config
from recipe_names import RECIPES

BASE_CONFIG = bccd.CONFIGS / 'gfl_r18_fpn_12e_bccd.py'
TEACHER_EPOCHS, STUDENT_EPOCHS = 18, 6
CHANNELS, STACKED_CONVS = 64, 2


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of detector.

    Attributes:
        config: Its stock config.
        methods: Names of recipes, those of the papers, unless ``--methods`` names others.
        head: What differs from the stock dense head.
        detector: The plugin's detector for its student.
        low_precision: Of the teacher's forward pass with ``--bf16``.
        seeds: Of the students, unless ``--seeds`` names others.
    """

    config: str
    methods: tuple[str, ...]
    head: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    detector: str = 'DistilledSingleStageDetector'
    low_precision: str = 'bf16'
    seeds: tuple[int, ...] = (0,)


_DENSE = ('bckd', 'rm_pfi', 'defeat', 'crosskd', 'pkd')
_GIOU = dict(type='GIoULoss', loss_weight=2.0)
_GROUP_NORM = dict(type='GN', num_groups=32)  # which the other heads have; without, it diverges
FAMILIES = {
    'GFL': Family('mmdet::gfl/gfl_r50_fpn_1x_coco.py', ('ld_full', *_DENSE), seeds=(0, 1, 2)),
    'RetinaNet': Family(
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        ('ld_retina', *_DENSE),
        dict(type='DistributionRetinaHead', loss_bbox=_GIOU, norm_cfg=_GROUP_NORM),
    ),
    'FCOS': Family(
        'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
        ('ld_point', *_DENSE),
        dict(type='DistributionFCOSHead'),
    ),
    'ATSS': Family(
        'mmdet::atss/atss_r50_fpn_1x_coco.py',
        ('ld_point', *_DENSE),
        dict(type='DistributionATSSHead'),
    ),
    'Faster R-CNN': Family(
        'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        ('defeat_two_stage', 'bckd', 'rm_pfi', 'pkd'),
        detector='DistilledTwoStageDetector',
        low_precision='fp32',  # as measured; RoI pooling is in fp32 in any case
    ),
}


@dataclasses.dataclass(frozen=True)
class Run(bccd.Job):
    """One training of a family; ``config`` is the family's key.

    Attributes:
        method: ``'teacher'``, ``'alone'``, or as :func:`distillers_of` reads it.
    """

    method: str = 'alone'

    def read_config(self) -> Config:
        cfg = Config.fromfile(BASE_CONFIG)
        is_teacher = self.method == 'teacher'
        cfg.model = small_model(self.config, base_channels=64 if is_teacher else 32)
        epochs = TEACHER_EPOCHS if is_teacher else STUDENT_EPOCHS
        cfg.train_cfg.max_epochs = epochs
        cfg.param_scheduler[1].update(end=epochs, milestones=[epochs * 2 // 3, epochs * 11 // 12])
        if self.teacher_checkpoint is not None:
            self._distil(cfg.model)
        return cfg

    def _distil(self, model: ConfigDict) -> None:
        """Turn the student's ``model`` into a distilled one."""
        distillers = distillers_of(self.method)
        if 'crosskd' in distillers:  # published: behind three of four convolutions
            distillers.crosskd.layer = STACKED_CONVS - 1
        family = FAMILIES[self.config]
        model.type = family.detector
        model.teacher = dict(
            config=dict(model=small_model(self.config, base_channels=64).to_dict()),
            checkpoint=str(self.teacher_checkpoint),
            precision=family.low_precision if self.bf16 else 'fp32',
        )
        model.distillers = distillers


def distillers_of(method: str) -> ConfigDict:
    """The distillers of one recipe, or of several together.

    Args:
        method: Names of recipes between plus signs, each with a dot and one of its losses where it
            is that loss alone; a colon and a number after them multiply the weights.

    Raises:
        ValueError: A name or a number is none, or two recipes have a loss of the same name.
    """
    distillers = ConfigDict()
    for term in method.split('+'):
        names, colon, factor = term.partition(':')
        name, dot, loss = names.partition('.')
        recipe = RECIPES.get(name)
        if recipe is None:
            raise ValueError(f'found {name!r}, expected the name of a recipe of ld_plugin.recipes')
        if dot:
            if loss not in recipe:
                raise ValueError(f'found {names!r}, expected one of the losses {list(recipe)}')
            recipe = {loss: recipe[loss]}
        both = distillers.keys() & recipe.keys()
        if both:
            raise ValueError(f'more than one recipe has {sorted(both)}')
        for key, distiller in recipe.items():
            distillers[key] = distiller
            if colon:
                distillers[key].schedule = dict(type='ConstantSchedule', value=float(factor))
    return distillers


def small_model(family: str, base_channels: int) -> ConfigDict:
    """The family's stock ``model`` with a narrow R-18, from random weights."""
    model = get_config(FAMILIES[family].config).model
    model.data_preprocessor = Config.fromfile(BASE_CONFIG).model.data_preprocessor
    model.backbone.update(
        depth=18,
        base_channels=base_channels,
        style='pytorch',
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        frozen_stages=-1,
        init_cfg=None,
    )
    model.neck.update(
        in_channels=[base_channels * 2**stage for stage in range(4)], out_channels=CHANNELS
    )
    dense = model.get('bbox_head') or model.rpn_head
    dense.update(in_channels=CHANNELS, feat_channels=CHANNELS, **FAMILIES[family].head)
    if 'roi_head' in model:
        model.roi_head.bbox_roi_extractor.out_channels = CHANNELS
        model.roi_head.bbox_head.update(in_channels=CHANNELS, fc_out_channels=256, num_classes=3)
        # proposals as many as small images need
        model.train_cfg.rpn_proposal.update(nms_pre=500, max_per_img=250)
        model.train_cfg.rcnn.sampler.num = 128
    else:
        dense.update(num_classes=3, stacked_convs=STACKED_CONVS)
    return model


def main() -> int:
    args = parse_args()
    os.environ['BCCD_ROOT'] = str(args.data)  # the config reads it
    rows = {}
    for family in args.families:
        rows |= rows_of(args, family)
    bccd.run_all([run for row in rows.values() for run in row], args.jobs)
    print(bccd.table(rows))
    return 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--families', nargs='+', default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument(
        '--methods',
        nargs='+',
        metavar='METHOD',
        help="recipes and losses of them, as in 'ld_full', 'bckd:0.25', 'pkd+ld_full.ld' "
        "(default: the papers' that fit)",
    )
    args = bccd.parse_common_args(parser, work_dir='work_dirs/methods', seeds=None)
    for family in args.families if args.methods else ():
        for method in args.methods:
            try:
                check_method(family, method)
            except ValueError as error:
                parser.error(f'--methods: {family}, {method}: {error}')
    return args


def check_method(family: str, method: str) -> None:
    """Build the family's distilled student, but with a teacher of random weights.

    Raises:
        ValueError: ``method`` is none, or none for this family's heads.
    """
    import ld_plugin  # noqa: F401  registers the detectors

    model = Run(family, 0, '', Path(), Path(), 1, method=method).read_config().model
    model.teacher.checkpoint = None
    with DefaultScope.overwrite_default_scope('mmdet'), warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='model.teacher.checkpoint is None')
        MODELS.build(model)


def rows_of(args: argparse.Namespace, family: str) -> dict[str, list[Run]]:
    """A family's rows of the table, each the same training with every seed."""

    def row(method: str, checkpoint: Path | None, seeds: Sequence[int]) -> list[Run]:
        return [
            Run.from_args(
                args,
                family,
                args.work_dir / family.replace(' ', '-').lower() / f'{method}_seed{seed}',
                seed,
                teacher_checkpoint=checkpoint,
                method=method,
            )
            for seed in seeds
        ]

    (teacher,) = teachers = row('teacher', None, seeds=[0])
    checkpoint = teacher.work_dir / f'epoch_{TEACHER_EPOCHS}.pth'
    methods = args.methods or FAMILIES[family].methods
    seeds = args.seeds or FAMILIES[family].seeds
    rows = {'teacher': teachers, 'alone': row('alone', None, seeds)}
    rows |= {method: row(method, checkpoint, seeds) for method in methods}
    return {f'{family}, {name}': group for name, group in rows.items()}


if __name__ == '__main__':
    sys.exit(main())
