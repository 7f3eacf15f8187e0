"""Losses do not depend on how images are batched, repeated or spread over processes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ld_plugin.detectors import FrozenTeacher
from ld_plugin.recipes import (
    bckd,
    defeat,
    imitation_decoupled,
    imitation_fine_grained,
    imitation_gi,
    ld_full,
    rm_pfi,
)
from ld_plugin.regions import ValuableLocalizationRegion
from tests.models import batch, build, losses, tiny_distilled, tiny_gfl

VLR = dict(type='ValuableLocalizationRegion')
EVERYTHING = dict(
    **ld_full,
    kd_vlr=dict(type='ClassificationDistiller', region=VLR),
    im_all=dict(type='FeatureDistiller'),
    im_main=dict(type='FeatureDistiller', region=dict(type='MainRegion')),
    im_fine=imitation_fine_grained['im'],
    im_gi=imitation_gi['im'],
    **imitation_decoupled,
    **bckd,
    **rm_pfi,
    **defeat,
)
SHAPES = [(128, 128), (96, 128), (64, 128), (128, 96)]


def everything(seed: int = 0) -> nn.Module:
    """A student with every kind of distiller, with adapters (64 channels: see group norm)."""
    teacher = dict(config=dict(model=tiny_gfl(channels=96)), checkpoint=None)
    return build(tiny_distilled(teacher, EVERYTHING, tiny_gfl(channels=64)), seed)


def values(model: nn.Module, data: dict) -> dict[str, float]:
    found = losses(model, data)
    return {name: found[f'loss_{name}'].item() for name in model.distillers}


def part(data: dict, images: Sequence[int]) -> dict:
    return {key: [items[i] for i in images] for key, items in data.items()}


@pytest.mark.parametrize('images', [[0, 1, 2, 3, 0, 1, 2, 3], [3, 1, 0, 2]])
def test_repeated_and_reordered_images_give_the_same_losses(images: list[int]) -> None:
    model = everything()
    data = batch(SHAPES, [3, 0, 1, 5])
    expected = values(model, data)
    assert all(value > 0 for value in expected.values())
    assert values(model, part(data, images)) == pytest.approx(expected, rel=1e-4)


def test_equal_regions_are_computed_once_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    weights = ValuableLocalizationRegion.weights

    def counted(self: Any, context: Any) -> Tensor:
        calls.append(self)
        return weights(self, context)

    monkeypatch.setattr(ValuableLocalizationRegion, 'weights', counted)
    distillers = dict(
        ld=dict(type='LocalizationDistiller', region=VLR),
        kd=dict(type='ClassificationDistiller', region=VLR),
        im=dict(type='FeatureDistiller', region=VLR),
        other=dict(type='FeatureDistiller', region=dict(VLR, alpha=0.5)),
    )
    model = build(tiny_distilled(distillers=distillers))
    assert model.distillers.ld.region is model.distillers.kd.region is model.distillers.im.region
    assert model.distillers.other.region is not model.distillers.ld.region
    losses(model, batch())
    assert len(calls) == 2
    losses(model, batch(seed=1))
    assert len(calls) == 4


def test_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    # general instances are where models differ; an adapter of DeFeat is never the identity
    distillers = {k: v for k, v in EVERYTHING.items() if k not in ('im_gi', 'defeat_neck')}
    model = build(tiny_distilled(distillers=distillers))
    stock = build(tiny_gfl(), seed=9)
    model.load_state_dict(stock.state_dict(), strict=True)
    other = values(model, batch(objects=(3, 2)))
    model.teacher = FrozenTeacher(stock)

    assert all(value > 2e-6 for value in other.values())  # ranks of overlaps hardly differ
    for name, value in values(model, batch(objects=(3, 2))).items():
        assert value == pytest.approx(0, abs=1e-6), name


# images of the two processes, and objects of every image: one process has fewer, and no object
SPLITS = [([0, 1], [2, 3], [3, 0, 1, 5]), ([0], [1, 2, 3], [0, 2, 4, 1])]


class DistillationLosses(nn.Module):
    """A student's distillation losses as a forward pass, as data parallelism wants it."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, data: dict) -> dict[str, Tensor]:
        found = losses(self.student, data)
        stock = sum(sum(found[key]) for key in ('loss_cls', 'loss_bbox', 'loss_dfl'))
        # so that every parameter takes part in every loss
        return {name: found[f'loss_{name}'] + 0 * stock for name in self.student.distillers}


def gradients(student: nn.Module, data: dict) -> dict[str, list[Tensor]]:
    """Of every loss by itself, in every trained parameter."""
    found = DistillationLosses(student)(data)
    trained = [p for p in student.parameters() if p.requires_grad]
    return {
        name: list(torch.autograd.grad(loss, trained, retain_graph=True, materialize_grads=True))
        for name, loss in found.items()
    }


def one_process(rank: int, folder: str) -> None:
    """Half of every batch."""
    torch.set_num_threads(1)
    init_default_scope('mmdet')
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    for number, (*halves, objects) in enumerate(SPLITS):
        found = averaged_gradients(part(batch(SHAPES, objects), halves[rank]))
        torch.save(found, f'{folder}/split{number}_rank{rank}.pth')
    torch.save(trained(rank), f'{folder}/trained_rank{rank}.pth')
    dist.barrier()
    dist.destroy_process_group()


def averaged_gradients(data: dict) -> dict[str, list[Tensor]]:
    """By hand, then by DistributedDataParallel."""
    student = everything()
    found = gradients(student, data)
    for values in found.values():
        for value in values:
            dist.all_reduce(value)
            value.detach().div_(2)
    parallel = DistributedDataParallel(DistillationLosses(student))
    sum(parallel(data).values()).backward()
    found['sum'] = [p.grad for p in student.parameters() if p.requires_grad]
    return found


def trained(rank: int) -> dict[str, Any]:
    """What is left of two steps with all that mmengine's runner puts around a model."""
    student = everything()
    frozen = student.teacher._model
    teacher = {name: value.clone() for name, value in frozen.state_dict().items()}
    parallel = MMDistributedDataParallel(student, broadcast_buffers=False)
    optimizer = dict(type='SGD', lr=0.01, momentum=0.9)
    cfg = dict(type='OptimWrapper', optimizer=optimizer, clip_grad=dict(max_norm=35))
    wrapper = build_optim_wrapper(parallel, cfg)
    reported = [  # a parameter without a gradient would stop the second step
        parallel.train_step(part(batch(SHAPES, objects), halves[rank]), wrapper)
        for *halves, objects in SPLITS
    ]
    optimized = [p for group in wrapper.param_groups for p in group['params']]
    return dict(
        student=student.state_dict(),
        teacher_before=teacher,
        teacher_after=frozen.state_dict(),
        reported=reported,
        shared={id(p) for p in (*parallel.parameters(), *optimized)}
        & {id(p) for p in frozen.parameters()},
    )


@pytest.fixture(scope='module')
def of_two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what two processes have saved."""
    folder = tmp_path_factory.mktemp('two_processes')
    mp.spawn(one_process, (str(folder),), nprocs=2)
    return folder


def test_two_processes_give_the_gradients_of_one(of_two_processes: Path) -> None:
    for number, (first, second, objects) in enumerate(SPLITS):
        whole = gradients(everything(), part(batch(SHAPES, objects), first + second))
        whole['sum'] = [sum(values) for values in zip(*whole.values(), strict=True)]
        for rank in range(2):
            found = torch.load(of_two_processes / f'split{number}_rank{rank}.pth')
            for name, expected in whole.items():
                assert relative_difference(found[name], expected) < 1e-5, (number, rank, name)


def test_two_processes_train_one_student_and_no_teacher(of_two_processes: Path) -> None:
    ranks = [torch.load(of_two_processes / f'trained_rank{rank}.pth') for rank in range(2)]
    first, second = (found['student'] for found in ranks)
    initial = everything()
    learning = {name for name, value in initial.named_parameters() if value.requires_grad}
    assert learning
    for name, value in initial.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        assert torch.equal(first[name], value) == (name not in learning), name
    assert ranks[0]['reported'] != ranks[1]['reported']  # each saw images of its own
    for found in ranks:
        assert {f'loss_{name}' for name in EVERYTHING} < found['reported'][0].keys()
        assert found['shared'] == set()
        assert found['teacher_before'].keys() == found['teacher_after'].keys() != set()
        for name, value in found['teacher_before'].items():
            assert torch.equal(value, found['teacher_after'][name]), name


def relative_difference(found: list[Tensor], expected: list[Tensor]) -> float:
    found, expected = (torch.cat([v.flatten() for v in values]) for values in (found, expected))
    assert expected.norm() > 0
    return ((found - expected).norm() / expected.norm()).item()
