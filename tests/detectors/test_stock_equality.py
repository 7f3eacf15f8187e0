"""The student is the stock detector: same losses, same predictions, same checkpoint."""

from collections import Counter
from collections.abc import Callable
from functools import wraps
from typing import Any

import pytest
import torch
from torch import nn

from ld_plugin.recipes import imitation_inside_gt, ld_full
from tests.models import batch, build, losses, tiny_distilled, tiny_gfl

SHAPES = ((128, 160), (96, 128))


@pytest.fixture
def pair() -> tuple[nn.Module, nn.Module]:
    """A stock detector, and a distilled one with the same weights."""
    stock = build(tiny_gfl(), seed=1)
    distilled = build(tiny_distilled(), seed=2)
    distilled.load_state_dict(stock.state_dict(), strict=True)
    return stock, distilled


def test_stock_losses_are_bit_identical(pair: tuple[nn.Module, nn.Module]) -> None:
    stock, distilled = (losses(model, batch(SHAPES, (5, 3))) for model in pair)

    assert set(distilled) == {*stock, 'loss_ld', 'loss_ld_vlr', 'loss_kd'}
    for name, levels in stock.items():
        assert len(levels) == 5
        for expected, found in zip(levels, distilled[name], strict=True):
            assert torch.equal(expected, found), name
    assert all(distilled[name] > 0 for name in ('loss_ld', 'loss_ld_vlr', 'loss_kd'))


def test_gradients_of_the_stock_losses_are_bit_identical(pair: tuple[nn.Module, nn.Module]) -> None:
    gradients = []
    for model in pair:
        found = losses(model, batch(SHAPES, (5, 3)))
        sum(sum(found[name]) for name in ('loss_cls', 'loss_bbox', 'loss_dfl')).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        if expected is None:  # a frozen stage
            assert gradients[1][name] is None
        else:
            assert torch.equal(expected, gradients[1][name]), name


def test_predictions_are_bit_identical(pair: tuple[nn.Module, nn.Module]) -> None:
    results = []
    for model in pair:
        data = model.data_preprocessor(batch(SHAPES, (2, 1)), training=False)
        with torch.no_grad():
            results.append(model.eval()(**data, mode='predict'))
    for stock, distilled in zip(*results, strict=True):
        assert len(stock.pred_instances) > 0
        for name in ('bboxes', 'scores', 'labels'):
            assert torch.equal(stock.pred_instances[name], distilled.pred_instances[name])


def test_checkpoint_of_a_student_without_adapters_is_the_stock_one() -> None:
    stock, distilled = build(tiny_gfl()), build(tiny_distilled(distillers=ld_full))
    assert list(distilled.state_dict()) == list(stock.state_dict())
    stock.load_state_dict(distilled.state_dict(), strict=True)


def test_adapters_are_the_only_other_keys() -> None:
    wide_teacher = dict(config=dict(model=tiny_gfl(channels=64)), checkpoint=None)
    distilled = build(tiny_distilled(wide_teacher, imitation_inside_gt))
    extra = set(distilled.state_dict()) - set(build(tiny_gfl()).state_dict())
    assert extra == {'distillers.im.adapter.weight', 'distillers.im.adapter.bias'}


def count_calls(
    monkeypatch: pytest.MonkeyPatch, calls: Counter, names: dict[nn.Module, str], *methods: str
) -> None:
    """Count calls of methods of a class, by the name of the instance."""
    (cls,) = {type(module) for module in names}

    def counted(method: str, original: Callable) -> Callable:
        @wraps(original)
        def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            calls[f'{names[self]}.{method}'] += 1
            return original(self, *args, **kwargs)

        return call

    for method in methods:
        monkeypatch.setattr(cls, method, counted(method, getattr(cls, method)))


def test_student_runs_once_and_the_teacher_never_assigns(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = build(tiny_distilled()), Counter()
    teacher = model.teacher._model
    for part, methods in dict(
        backbone=['forward'],
        neck=['forward'],
        bbox_head=['forward', 'get_targets', 'loss', 'loss_by_feat', 'get_anchors', 'predict'],
    ).items():
        names = {getattr(model, part): f'student.{part}', getattr(teacher, part): f'teacher.{part}'}
        count_calls(monkeypatch, calls, names, *methods)
    assigners = {m.bbox_head.assigner: n for m, n in ((model, 'student'), (teacher, 'teacher'))}
    count_calls(monkeypatch, calls, assigners, 'assign')

    losses(model, batch(objects=(2, 1)))

    assert calls == {
        'student.backbone.forward': 1,
        'student.neck.forward': 1,
        'student.bbox_head.forward': 1,
        'student.bbox_head.loss': 1,
        'student.bbox_head.loss_by_feat': 1,
        'student.bbox_head.get_anchors': 1,
        'student.bbox_head.get_targets': 1,
        'student.assign': 2,  # once per image
        'teacher.backbone.forward': 1,
        'teacher.neck.forward': 1,
        'teacher.bbox_head.forward': 1,
    }


def test_nothing_is_left_on_the_head_after_a_step() -> None:
    model = build(tiny_distilled())
    before = dict(vars(model.bbox_head))
    losses(model, batch())
    assert vars(model.bbox_head).keys() == before.keys()
    assert len(model.bbox_head._forward_hooks) == 0


def test_head_is_clean_after_a_step_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(tiny_distilled())
    before = set(vars(model.bbox_head))

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError('out of memory')

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match='out of memory'):
        patch.setattr(model.bbox_head.assigner, 'assign', fail)
        losses(model, batch())
    assert set(vars(model.bbox_head)) == before
    assert len(model.bbox_head._forward_hooks) == 0
    assert torch.isfinite(losses(model, batch())['loss_ld'])


def test_student_trains_and_the_teacher_does_not() -> None:
    model = build(tiny_distilled())
    teacher = {k: v.clone() for k, v in model.teacher._model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    history = []
    for _ in range(8):
        loss, _ = model.parse_losses(losses(model, batch()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.8 * history[0]
    for name, value in model.teacher._model.state_dict().items():
        assert torch.equal(value, teacher[name])
