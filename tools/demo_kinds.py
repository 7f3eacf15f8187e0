"""What the demos differ in: stages, configs, data, metrics. Nothing here loads a framework."""

import contextlib
import importlib.util
import multiprocessing.dummy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).resolve().parents[1] / 'configs' / 'demo'


@contextlib.contextmanager
def dota_metric_in_threads() -> Iterator[None]:
    """Within it, MMRotate's metric computes in threads.

    Of itself it starts four processes for every IoU threshold, and each of them loads all
    frameworks: minutes, for what takes seconds on a small data set.
    """
    from mmrotate.evaluation.functional import mean_ap

    stock = mean_ap.get_context
    mean_ap.get_context = lambda method: multiprocessing.dummy
    try:
        yield
    finally:
        mean_ap.get_context = stock


@dataclass(frozen=True)
class Stage:
    """One training, with its test.

    Attributes:
        name: Its row in the table and its folder.
        model: What is trained, for the table.
        config: Name of a config in ``configs/demo``.
        cost: Of an iteration, in iterations of the student alone.
    """

    name: str
    model: str
    config: str
    cost: float

    @property
    def config_file(self) -> Path:
        return CONFIGS / f'{self.config}.py'


@dataclass(frozen=True)
class Kind:
    """A demo: three trainings on digits, and how they are scored.

    Attributes:
        teacher: The first training.
        alone: The student by itself.
        distilled: The student with the teacher.
        defaults: Of the options of the command line.
        digits: Arguments of ``make_digits``; heights of digits are shares of the image's shorter
            side.
        metrics: For every score its name in the metric. The first three are shown with the models,
            the others in a table of their own.
        needs: What it takes to use the distilled checkpoint.
        evaluating: Gives a context for tests.
        is_rotated: Whether MMRotate must be installed.
    """

    teacher: Stage
    alone: Stage
    distilled: Stage
    defaults: Mapping[str, Any]
    digits: Mapping[str, float]
    metrics: Mapping[str, str]
    needs: str
    evaluating: Callable[[], AbstractContextManager] = contextlib.nullcontext
    is_rotated: bool = False

    @property
    def missing(self) -> str | None:
        """What to install first; None if nothing."""
        if not self.is_rotated or importlib.util.find_spec('mmrotate'):
            return None
        from ld_plugin.packages import how_to_install_mmrotate  # loads frameworks

        return f'there is no mmrotate here, which this needs: {how_to_install_mmrotate(".")}'

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self.teacher, self.alone, self.distilled

    def digits_of(self, size: tuple[int, int]) -> dict[str, Any]:
        """Arguments of ``make_digits`` for images of a width and height in pixels."""
        return {
            name: round(value * min(size)) if name.endswith('height') else value
            for name, value in self.digits.items()
        }


HORIZONTAL = Kind(
    teacher=Stage('teacher', 'GFL R-18', 'gfl_r18_fpn_8e_digits', 2.0),
    alone=Stage('alone', 'GFL R-18, half width', 'gfl_r18-half_fpn_6e_digits', 1.0),
    distilled=Stage('distilled', 'GFL R-18, half width', 'ld_r18-half-gfl-r18_fpn_6e_digits', 1.5),
    defaults=dict(
        work_dir=Path('work_dirs/demo'),
        epochs=6,
        teacher_epochs=8,
        train_images=600,
        test_images=200,
        size=(192, 128),
    ),
    digits=dict(min_digits=3, max_digits=6, min_height=0.22, max_angle=20, distractors=1),
    metrics=dict(AP='coco/bbox_mAP', AP50='coco/bbox_mAP_50', AP75='coco/bbox_mAP_75'),
    needs='nothing of the plugin is needed to use it',
)

THRESHOLDS = range(50, 100, 5)
ROTATED = Kind(
    teacher=Stage('teacher', 'RetinaNet R-18', 'dist-rotated-retinanet_r18_fpn_kld_8e_digits', 2.0),
    alone=Stage(
        'alone',
        'RetinaNet R-18, half width',
        'dist-rotated-retinanet_r18-half_fpn_kld_6e_digits',
        1.0,
    ),
    distilled=Stage(
        'distilled',
        'RetinaNet R-18, half width',
        'rotated-ld_r18-half-dist-rotated-retinanet-r18_fpn_kld_6e_digits',
        1.5,
    ),
    defaults=dict(
        work_dir=Path('work_dirs/demo-rotated'),
        epochs=6,
        teacher_epochs=8,
        train_images=600,
        test_images=200,
        size=(192, 128),
    ),
    digits=dict(
        min_digits=2, max_digits=5, min_height=0.28, max_height=0.56, max_angle=40, distractors=1
    ),
    metrics=dict(
        AP='dota/mAP',
        AP50='dota/AP50',
        AP75='dota/AP75',
        **{f'AP{t}': f'dota/AP{t}' for t in THRESHOLDS if t not in (50, 75)},
    ),
    needs='neither teacher nor distillers are needed to use it, only the head with distributions',
    evaluating=dota_metric_in_threads,
    is_rotated=True,
)
