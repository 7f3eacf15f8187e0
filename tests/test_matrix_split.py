"""Every pair of the matrix with its batch split over two processes: their mean is the whole's loss.

Both processes are played in this one: what each asks to be averaged over the GPUs is noted first,
and answered with the average the second time.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ld_plugin.dense import DistillationContext, context, positions
from ld_plugin.dense.rois import RoIStage
from ld_plugin.distillers import Distiller
from tests.contexts import take_images
from tests.test_matrix import PAIRS, build_recipe, in_training, step_of  # noqa: F401  (a fixture)

#: standardise features with the statistics of each process's own images
OF_ONE_PROCESS = {'pkd', 'crosskd', 'bckd + pkd'}
#: what averages over GPUs
AVERAGING = context, positions


def rows_of(stage: RoIStage, image: int) -> RoIStage:
    here = stage.rois[:, 0] == image
    names = 'rois', 'student', 'teacher', 'labels', 'label_weights'
    return replace(stage, **{name: getattr(stage, name)[here] for name in names})


def process(family: str, image: int) -> DistillationContext:
    """What the process that has this image alone sees."""
    whole = step_of(family).context
    rois = [rows_of(stage, image) for stage in whole.rois]
    return replace(take_images(whole, [image]), rois=rois)


@contextmanager
def averages(asked: list[Tensor], answers: Sequence[Tensor] | None) -> Iterator[None]:
    """Note what is to be averaged; it is returned as it is if there are no answers."""
    answers = iter(answers) if answers is not None else None

    def reduce_mean(value: Tensor) -> Tensor:
        assert value.is_floating_point(), 'the sum over processes is divided in place'
        asked.append(value)
        return value if answers is None else next(answers)

    with pytest.MonkeyPatch.context() as patch:
        for module in AVERAGING:
            patch.setattr(module, 'reduce_mean', reduce_mean)
        yield


def loss_of_processes(distiller: Distiller, family: str) -> Tensor:
    asked: list[list[Tensor]] = [[], []]
    for image in (0, 1):
        with averages(asked[image], None):
            distiller(process(family, image))
    shapes = [[value.shape for value in values] for values in asked]
    assert shapes[0] == shapes[1], 'both processes must ask for the same'
    means = [sum(values) / 2 for values in zip(*asked, strict=True)]
    losses = []
    for image in (0, 1):
        with averages([], means):
            losses.append(distiller(process(family, image)))
    return sum(losses) / 2


@pytest.mark.parametrize(('family', 'name'), [p for p in PAIRS if p[1] not in OF_ONE_PROCESS])
def test_two_processes_have_the_loss_of_one(family: str, name: str) -> None:
    for distiller in build_recipe(family, name).values():
        whole = distiller(step_of(family).context)
        torch.testing.assert_close(
            loss_of_processes(distiller, family), whole, rtol=1e-3, atol=1e-6
        )
