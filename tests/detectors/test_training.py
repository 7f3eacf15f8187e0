"""Distillation under what mmengine's runner does around a model."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import MessageHub
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.runner._flexible_runner import FlexibleRunner
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from torch import nn

from ld_plugin.dense import kept_inputs
from ld_plugin.distillers import crosshead
from ld_plugin.distillers.schedules import (
    ConstantSchedule,
    LinearDecaySchedule,
    LinearWarmupSchedule,
)
from ld_plugin.errors import ConfigError
from ld_plugin.recipes import crosskd, defeat, fitnet, imitation_inside_gt, ld_full, ld_main, rm_pfi
from ld_plugin.runner import DistillationRunner, EvaluationRunner
from tests import needs
from tests.families import tiny
from tests.models import (
    TinyDataset,
    batch,
    build,
    distillation_loss,
    losses,
    tiny_distilled,
    tiny_gfl,
    tiny_runner,
)

WIDE_TEACHER = dict(config=dict(model=tiny_gfl(channels=64)), checkpoint=None)
EVERYTHING = dict(
    ld_full,
    im=dict(imitation_inside_gt['im'], schedule=dict(type='LinearDecaySchedule')),
)
# smaller images have a level of one cell before the last; there PyTorch's own convolution (2.10 on
# CPU, bfloat16, 3 x 3, stride 2) reads uninitialised memory in its backward pass
LARGE = [(128, 128), (128, 160)]
KEYS = [f'loss_{name}' for name in EVERYTHING]
CROSS = dict(crosskd=crosskd['crosskd'] | dict(layer=1))


def distilled(seed: int = 0, **schedules: dict) -> nn.Module:
    """A student with every kind of distiller, one of them with an adapter and a schedule."""
    distillers = {
        k: dict(v, **({'schedule': schedules[k]} if k in schedules else {}))
        for k, v in EVERYTHING.items()
    }
    return build(tiny_distilled(WIDE_TEACHER, distillers), seed)


class Recorder(Hook):
    """Keeps what every iteration reported."""

    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        self.losses.append({name: value.item() for name, value in outputs.items()})


def fake_progress() -> None:
    hub = MessageHub.get_current_instance()
    hub.update_info('iter', 0)
    hub.update_info('max_iters', 4)


@needs.pytorch('2.4', 'no question for the autocast of a processor')
def test_distillation_losses_are_computed_in_float32_under_autocast() -> None:
    fake_progress()
    model = distilled()
    dtypes = []
    for distiller in model.distillers.values():
        distiller.register_forward_hook(
            lambda module, args, out: dtypes.append((out.dtype, torch.is_autocast_enabled('cpu')))
        )
    expected = losses(model, batch(LARGE))
    with torch.autocast('cpu', torch.bfloat16):
        found = losses(model, batch(LARGE))

    assert found['loss_cls'][0].dtype == torch.float32
    assert dtypes == [(torch.float32, False)] * 2 * len(EVERYTHING)
    for name in KEYS:
        assert not torch.equal(found[name], expected[name]), 'the student ran in bfloat16'
        torch.testing.assert_close(found[name], expected[name], rtol=0.1, atol=1e-3)


def wide_retinanet() -> ConfigDict:
    """Whose features a student of the usual width compares behind adapters."""
    model = tiny('retinanet')
    model.neck.out_channels = 64
    model.bbox_head.update(in_channels=64, feat_channels=64)
    return model


@pytest.mark.parametrize(
    'dtype',
    [torch.bfloat16, pytest.param(torch.float16, marks=needs.half_on_processors), torch.float64],
)
@pytest.mark.parametrize(
    'distillers',
    [fitnet, rm_pfi, defeat, dict(crosskd=crosskd['crosskd'] | dict(layer=1))],
    ids=['fitnet', 'rm_pfi', 'defeat', 'crosskd'],
)
def test_student_that_is_converted_learns_the_same(distillers: dict, dtype: torch.dtype) -> None:
    """Without autocast, and with its adapters; the teacher keeps its precision."""
    teacher = dict(config=dict(model=wide_retinanet()), checkpoint=None)
    model = build(tiny_distilled(teacher, distillers, tiny('retinanet')))
    data = model.data_preprocessor(batch(LARGE), training=True)
    expected = model(**data, mode='loss')
    found = model.to(dtype)(data['inputs'].to(dtype), data['data_samples'], mode='loss')
    names = [f'loss_{name}' for name in distillers]
    sum(found[name] for name in names).backward()
    for name in names:
        torch.testing.assert_close(found[name].float(), expected[name], rtol=0.05, atol=1e-3)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert {g.dtype for g in gradients} == {dtype}
    assert all(p.grad.any() for p in model.distillers.parameters())


def test_amp_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # mmengine asks for a GPU, though all that this precision needs works without
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    recorder = Recorder()
    optim_wrapper = dict(
        type='AmpOptimWrapper',
        dtype='bfloat16',
        optimizer=dict(type='SGD', lr=0.01),
        clip_grad=dict(max_norm=35),
    )
    runner = tiny_runner(
        distilled(),
        tmp_path,
        optim_wrapper=optim_wrapper,
        custom_hooks=[recorder],
        epochs=3,
        size=128,
    )
    runner.train()
    assert isinstance(runner.optim_wrapper, AmpOptimWrapper)
    assert len(recorder.losses) == 6
    assert all(torch.tensor(list(step.values())).isfinite().all() for step in recorder.losses)
    assert recorder.losses[-1]['loss'] < recorder.losses[0]['loss']
    assert {p.dtype for p in runner.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ('distillers', 'modules', 'message'),
    [
        (CROSS, ['bbox_head.cls_convs.0'], 'found a module inside the head whose features'),
        (fitnet, ['bbox_head'], 'what GFLHead predicts has no gradient'),
    ],
)
def test_modules_that_cannot_be_checkpointed(
    distillers: dict, modules: list[str], message: str
) -> None:
    """As mmengine does it, they pass no gradient on, without which CrossKD taught nothing."""
    model = build(tiny_distilled(distillers=distillers))
    turn_on_activation_checkpointing(model, modules)
    with pytest.raises(ConfigError, match=rf'^activation_checkpointing: {message}'):
        losses(model, batch(LARGE))
    with torch.no_grad():
        losses(model, batch(LARGE))


def test_a_head_that_is_not_trained_may_be_checkpointed() -> None:
    model = build(tiny_distilled(distillers=fitnet))
    model.bbox_head.requires_grad_(False)
    turn_on_activation_checkpointing(model, ['bbox_head'])
    losses(model, batch(LARGE))['loss_im'].backward()
    assert any(p.grad is not None and p.grad.any() for p in model.neck.parameters())


def test_checkpointed_stages_give_the_same_gradients() -> None:
    gradients = []
    for modules in ([], ['backbone.layer3', 'neck.fpn_convs.0.conv']):
        model = build(tiny_distilled(distillers=CROSS | ld_full))
        turn_on_activation_checkpointing(model, modules)
        sum(losses(model, batch(LARGE))[f'loss_{name}'] for name in CROSS | ld_full).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for pair in zip(*gradients, strict=True):
        torch.testing.assert_close(*pair)


def test_ema_hook_shares_the_teacher_and_averages_the_student(tmp_path: Path) -> None:
    ema = EMAHook(momentum=0.5)
    runner = tiny_runner(distilled(), tmp_path, custom_hooks=[ema])
    runner.train()

    student, average = runner.model, ema.ema_model.module
    assert average is not student
    assert average.teacher is student.teacher
    differing = [
        name
        for name, value in average.state_dict().items()
        if not torch.equal(value, student.state_dict()[name])
    ]
    assert 'bbox_head.gfl_reg.weight' in differing
    assert 'distillers.im.adapter.weight' in differing
    data = average.data_preprocessor(batch(), training=False)
    with torch.no_grad():
        predictions = average.eval()(**data, mode='predict')
    assert all(torch.isfinite(p.pred_instances.scores).all() for p in predictions)

    # the hook puts the averaged weights into the checkpoint's state_dict
    saved = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)
    assert not any(
        'teacher' in key for part in ('state_dict', 'ema_state_dict') for key in saved[part]
    )
    for name, value in average.state_dict().items():
        assert torch.equal(saved['state_dict'][name], value), name


def test_resumed_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    def run(folder: Path, epochs: int, seed: int, **options: Any) -> dict[str, torch.Tensor]:
        # shuffling follows the epoch's number, so it is the same after an interruption; the rest of
        # a training step has no randomness
        runner = tiny_runner(
            distilled(seed),
            folder,
            epochs,
            param_scheduler=dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=4),
            **options,
        )
        # what a schedule sees is the length of the whole training, also in the first part
        runner._train_loop = runner.build_train_loop(runner._train_loop)
        runner.train_loop._max_iters = 2 * len(TinyDataset()) // 2
        runner.train()
        return runner.model.state_dict()

    whole = run(tmp_path / 'whole', 2, seed=1)
    interrupted = run(tmp_path / 'parts', 1, seed=1)
    resumed = run(tmp_path / 'parts', 2, seed=1, resume=True)

    assert any('adapter' in name for name in whole)
    assert any(not torch.equal(whole[name], interrupted[name]) for name in whole)
    for name in whole:
        assert torch.equal(whole[name], resumed[name]), name


def test_training_resumed_in_the_middle_of_an_epoch_ends_with_the_same_weights(
    tmp_path: Path,
) -> None:
    """By iterations: then mmengine draws the shuffled images again up to the checkpoint's.

    By epochs it would begin the interrupted epoch anew. An epoch has two iterations here, the
    checkpoint is of the third, and the power goes after the fourth.
    """

    class PowerCut(Hook):
        def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
            if batch_idx == 4:
                raise KeyboardInterrupt

    def runner(folder: Path, **options: Any) -> Any:
        return tiny_runner(
            distilled(seed=1),
            folder,
            train_dataloader=dict(
                dataset=TinyDataset(),
                batch_size=2,
                num_workers=0,
                sampler=dict(type='InfiniteSampler', shuffle=True),
                collate_fn=dict(type='pseudo_collate'),
            ),
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=6),
            param_scheduler=dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=6),
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=3, by_epoch=False)),
            **options,
        )

    recorder, rest = Recorder(), Recorder()
    runner(tmp_path / 'whole', custom_hooks=[recorder]).train()
    with pytest.raises(KeyboardInterrupt):
        runner(tmp_path / 'parts', custom_hooks=[PowerCut()]).train()
    assert [path.name for path in (tmp_path / 'parts').glob('*.pth')] == ['iter_3.pth']
    runner(tmp_path / 'parts', custom_hooks=[rest], resume=True).train()

    assert len(recorder.losses) == 6
    assert rest.losses == recorder.losses[3:]  # the same images, too, and the same schedules
    whole, resumed, before = (
        torch.load(tmp_path / name, weights_only=False)['state_dict']
        for name in ('whole/iter_6.pth', 'parts/iter_6.pth', 'parts/iter_3.pth')
    )
    assert any('adapter' in name for name in whole)
    assert any(not torch.equal(whole[name], before[name]) for name in whole)
    for name in whole:
        assert torch.equal(whole[name], resumed[name]), name


def test_flexible_runner_trains_and_resumes_to_the_same_weights(tmp_path: Path) -> None:
    def train(name: str, **options: Any) -> dict[str, torch.Tensor]:
        tiny_runner(distilled(), tmp_path / name, **options).train()
        return torch.load(tmp_path / name / 'epoch_2.pth', weights_only=False)['state_dict']

    flexible = dict(runner=FlexibleRunner, strategy=dict(type='SingleDeviceStrategy'))
    expected = train('plain')
    whole, second_epoch = Recorder(), Recorder()
    halfway = str(tmp_path / 'plain' / 'epoch_1.pth')
    weights = [
        train('whole', custom_hooks=[whole], **flexible),
        train('resumed', custom_hooks=[second_epoch], resume=halfway, **flexible),
    ]
    assert len(whole.losses) == 4
    assert second_epoch.losses == whole.losses[2:]
    for found in weights:
        assert found.keys() == expected.keys()
        for name in expected:
            assert torch.equal(found[name], expected[name]), name


def test_accumulated_gradients_of_localization_distillation_equal_those_of_the_whole_batch() -> (
    None
):
    # 64 channels, as group norm cannot train on one value per group: one image, one cell
    model = build(
        tiny_distilled(
            WIDE_TEACHER,
            distillers=dict(ld=ld_full['ld'], ld_vlr=ld_full['ld_vlr']),
            student=tiny_gfl(channels=64),
        )
    )
    wrapper = OptimWrapper(
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01),
        accumulative_counts=4,
    )
    wrapper.initialize_count_status(model, 0, 8)
    whole = batch([(64, 64)] * 4, [3, 0, 1, 2])
    distillation_loss(model, whole).backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    for image in range(4):
        part = {key: values[image : image + 1] for key, values in whole.items()}
        with wrapper.optim_context(model):
            wrapper.backward(wrapper.scale_loss(distillation_loss(model, part)))

    assert 'bbox_head.gfl_reg.weight' in expected
    for name, parameter in model.named_parameters():
        if name in expected:
            error = (parameter.grad - expected[name]).norm() / expected[name].norm().clamp(
                min=1e-12
            )
            assert error < 1e-4, name


def test_weight_schedules_follow_the_runner(tmp_path: Path) -> None:
    """Frozen weights, so that only the schedule changes a loss between two epochs."""
    schedules = dict(
        ld=dict(type='LinearWarmupSchedule', iters=4, start=0.2),
        ld_vlr=dict(type='ConstantSchedule', value=0.5),
        kd=dict(type='LinearDecaySchedule', start=1.0, end=0.2),
    )
    factors: dict[str, list[float]] = {}

    class Factors(Recorder):
        def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
            for name, distiller in runner.model.distillers.items():
                factors.setdefault(name, []).append(distiller.schedule.factor())
            super().after_train_iter(runner, *args, **kwargs)

    recorder = Factors()
    optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.0))
    tiny_runner(
        distilled(**schedules),
        tmp_path,
        epochs=4,
        optim_wrapper=optim_wrapper,
        custom_hooks=[recorder],
        shuffle=False,
    ).train()

    assert factors['ld'] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1])
    assert factors['ld_vlr'] == [0.5] * 8
    assert factors['kd'] == pytest.approx([1 - 0.1 * i for i in range(8)])
    assert factors['im'] == pytest.approx([1 - i / 8 for i in range(8)])
    for name, values in factors.items():
        reported = [step[f'loss_{name}'] for step in recorder.losses]
        for first in (0, 1):  # the two batches of an epoch
            unscaled = [r / v for r, v in zip(reported[first::2], values[first::2], strict=True)]
            assert unscaled == pytest.approx([unscaled[0]] * 4, rel=1e-4)


def test_schedules_reach_their_ends_by_default() -> None:
    schedules = LinearWarmupSchedule(iters=2), LinearDecaySchedule(), ConstantSchedule()
    hub = MessageHub.get_current_instance()
    hub.update_info('max_iters', 4)
    factors = []
    for iteration in (0, 1, 2, 4):
        hub.update_info('iter', iteration)
        factors.append([schedule.factor() for schedule in schedules])
    assert factors == [[0, 1, 1], [0.5, 0.75, 1], [1, 0.5, 1], [1, 0, 1]]


def test_second_runner_may_have_other_classes(tmp_path: Path) -> None:
    """One student is trained twice; each data set's names pair its classes with the teacher's."""
    teacher = dict(tiny_distilled().teacher, classes=('star', 'circle', 'square'))
    model = build(tiny_distilled(teacher))
    found = []
    for classes in (('circle', 'square', 'star'), ('square', 'star', 'circle'), teacher['classes']):
        runner = tiny_runner(model, tmp_path / classes[0], epochs=1)
        runner.train_dataloader.dataset.metainfo = dict(classes=classes)
        runner.train()
        match = model._match.classes
        found.append(match and match.teacher)
    assert found == [(1, 2, 0), (2, 0, 1), None]


def test_names_are_read_in_the_first_step_after_a_change_of_the_mode() -> None:
    hub, found = MessageHub.get_current_instance(), []
    model = build(tiny_distilled(dict(tiny_distilled().teacher, classes=('a', 'b', 'c'))))
    for names, changes in ((('c', 'a', 'b'), False), (('b', 'c', 'a'), False), (None, True)):
        hub.update_info('dataset_meta', dict(classes=names or ('b', 'c', 'a')))
        if changes:
            model.train()
        losses(model, batch())
        found.append(model._match.classes.teacher)
    assert found == [(2, 0, 1), (2, 0, 1), (1, 2, 0)]


def test_runner_that_is_not_the_last_one_made(tmp_path: Path) -> None:
    """mmengine tells what the last one does, so neither progress nor class names are known."""
    named = dict(tiny_distilled().teacher, classes=('star', 'circle', 'square'))
    students = build(tiny_distilled(named)), distilled()
    first, second, _ = (
        tiny_runner(model, tmp_path, epochs=1) for model in (*students, build(tiny_gfl()))
    )
    with pytest.warns(UserWarning, match=r"student's classes are not known.*\('star', 'circle'"):
        first.train()
    with pytest.raises(RuntimeError, match='made last; there is none, or it is not training'):
        second.train()


def test_schedule_without_a_runner_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r'progress of the mmengine Runner.*Constant'):
        losses(distilled(), batch())


@pytest.mark.parametrize(
    ('kind', 'file'), [(DistillationRunner, 'config.py'), (EvaluationRunner, 'test_config.py')]
)
@pytest.mark.parametrize('rank', [0, 1])
def test_one_process_writes_the_config(
    rank: int, kind: type, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('mmengine.dist.utils.get_rank', lambda group=None: rank)
    runner = kind.__new__(kind)
    vars(runner).update(cfg=Config(dict(one=1)), _work_dir=str(tmp_path))
    runner.dump_config()
    assert [path.name for path in tmp_path.iterdir()] == ([] if rank else [file])


def test_a_file_that_somebody_else_wrote_is_left_alone(tmp_path: Path) -> None:
    base, mine = tmp_path / 'config.py', tmp_path / 'mine.py'
    base.write_text('one = 1  # as its author wrote it')
    mine.write_text("_base_ = 'config.py'")
    runner = DistillationRunner.__new__(DistillationRunner)
    vars(runner).update(cfg=Config.fromfile(mine), _work_dir=str(tmp_path))
    runner.dump_config()
    assert base.read_text() == 'one = 1  # as its author wrote it'
    assert Config.fromfile(tmp_path / 'mine_config.py').one == 1
    runner.cfg = Config(dict(one=4))  # which no file has
    runner.dump_config()
    assert Config.fromfile(tmp_path / 'run_config.py').one == 4
    base.unlink()
    for one in (2, 3):  # its own it writes anew
        runner.cfg.one = one
        runner.dump_config()
        assert Config.fromfile(base).one == one


def test_hooks_of_an_evaluation_see_no_distillers() -> None:
    """As EMA's, which may load strictly."""
    seen = []

    class Look(Hook):
        def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
            seen.append({key: list(state) for key, state in checkpoint.items()})

    runner = EvaluationRunner.__new__(EvaluationRunner)
    vars(runner).update(_hooks=[Look()])
    checkpoint = dict(
        state_dict={'neck.weight': 1, 'distillers.pfi.adapter.weight': 2},
        ema_state_dict={
            'steps': 0,
            'module.neck.weight': 1,
            'module.distillers.pfi.adapter.bias': 2,
        },
    )
    runner.call_hook('after_load_checkpoint', checkpoint=checkpoint)
    assert seen == [
        dict(state_dict=['neck.weight'], ema_state_dict=['steps', 'module.neck.weight'])
    ]


@pytest.mark.parametrize('distillers', [ld_main, ld_main | defeat], ids=['', 'with an adapter'])
def test_a_seed_gives_the_students_weights_of_the_stock_detector(distillers: dict) -> None:
    """Whatever the teacher and the distillers draw."""
    models = []
    for cfg in (tiny_gfl(), tiny_distilled(distillers=distillers)):
        cfg.backbone.init_cfg = dict(type='Kaiming', layer='Conv2d')
        torch.manual_seed(3)
        models.append(MODELS.build(cfg))
        models[-1].init_weights()
    stock, student = (model.state_dict() for model in models)
    assert all(torch.equal(value, student[key]) for key, value in stock.items())


def test_shapes_of_a_copy_leave_the_teacher_alone() -> None:
    model = build(tiny_distilled(distillers=ld_main))
    expected = losses(model, batch())['loss_ld']
    assert next(deepcopy(model).to('meta').parameters()).is_meta
    torch.testing.assert_close(losses(model, batch())['loss_ld'], expected)


@needs.pytorch('2.4', "mmengine's data preprocessor cannot be compiled")
@pytest.mark.parametrize('is_large', [False, True])
def test_compiled_steps_learn_the_same(monkeypatch: pytest.MonkeyPatch, is_large: bool) -> None:
    """As mmengine's ``compile`` makes them; CrossKD's gradient is computed within the step."""
    for module in (kept_inputs, crosshead):  # whose large levels go other ways
        monkeypatch.setattr(module, 'is_large', lambda level_map: is_large)
    distillers = dict(cross=dict(type='CrossHeadDistiller', layer=1))
    plain, compiled = (build(tiny_distilled(distillers=distillers)) for _ in range(2))
    compiled.train_step = torch.compile(compiled.train_step, backend='aot_eager')
    for model in (plain, compiled):
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        clip = dict(max_norm=1.0)  # the steps are the gradients, up to a factor
        model.train_step(batch(), OptimWrapper(optimizer, clip_grad=clip))
    weights = ({name: p.detach() for name, p in x.named_parameters()} for x in (plain, compiled))
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)
