"""Activations whose inputs are kept for the backward pass: equal gradients, one map less."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from ld_plugin.dense.kept_inputs import kept_inputs

ACTIVATIONS = [nn.ReLU(inplace=True), nn.ReLU(), nn.SiLU(inplace=True), nn.GELU(), nn.PReLU()]
every_activation = pytest.mark.parametrize('activation', ACTIVATIONS, ids=str)


@pytest.fixture(autouse=True)
def every_level_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('ld_plugin.dense.kept_inputs.is_large', lambda level: True)


class Head(nn.Module):
    """A convolution and an activation, and then something, on one level after the other."""

    def __init__(self, activation: nn.Module, rest: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 4, 3)
        self.activation = activation
        self.rest = rest

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        return [self.rest(self.activation(self.first(level))) for level in levels]


def hooks_are_left() -> bool:
    top = '_top_saved_tensors_default_hooks'  # which older versions of PyTorch lack
    return hasattr(torch._C._autograd, top) and getattr(torch._C._autograd, top)(True) is not None


def head(activation: nn.Module) -> Head:
    torch.manual_seed(1)
    return Head(activation, nn.Sequential(nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 3)))


def loss(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    levels = [torch.randn(2, 3, size, size, generator=generator) for size in (12, 9, 7)]
    return sum(level.square().sum() for level in model(levels))


def gradients(model: nn.Module, value: Tensor) -> list[Tensor]:
    return torch.autograd.grad(value, list(model.parameters()))


@every_activation
def test_gradients_are_the_same_to_the_last_bit(activation: nn.Module) -> None:
    model = head(activation)
    expected = gradients(model, loss(model))
    overwrites = getattr(activation, 'inplace', None)
    with kept_inputs(model, [activation, activation]):  # of two branches that share it
        value = loss(model)
        # what a loss saves is autograd's own again
        assert not hooks_are_left()
    assert getattr(activation, 'inplace', None) == overwrites
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for pair in zip(gradients(model, value), expected, strict=True):
        assert torch.equal(*pair)


def test_what_left_is_computed_once_a_backward_pass() -> None:
    """Though the activation asks for it, and the layer behind it."""
    model, passes = head(nn.ReLU()), []
    hook = model.activation.register_forward_hook(lambda *args: passes.append(args))
    with kept_inputs(model, [model.activation]):
        value = loss(model)
    assert len(passes) == 3  # one for each level
    found = [torch.autograd.grad(value, list(model.parameters()), retain_graph=True)]
    assert len(passes) == 3 + 3
    found.append(gradients(model, value))  # for which nothing was held
    assert len(passes) > 3 + 3
    hook.remove()
    for pair in zip(*found, strict=True):
        assert torch.equal(*pair)


def test_small_levels_keep_what_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('ld_plugin.dense.kept_inputs.is_large', lambda level: False)
    model, entered = head(nn.ReLU(inplace=True)), []
    expected = gradients(model, loss(model))
    hook = model.activation.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    with (
        storages(model.activation, 'output') as outputs,
        kept_inputs(model, [model.activation]),
    ):
        value = loss(model)
    hook.remove()
    assert all((x < 0).any() for x in entered)
    assert not any(output.expired() for output in outputs)
    for pair in zip(gradients(model, value), expected, strict=True):
        assert torch.equal(*pair)


def test_random_slopes_are_not_drawn_twice() -> None:
    model, found = head(nn.RReLU(inplace=True)), []
    for activations in ([], [model.activation]):
        torch.manual_seed(0)
        with kept_inputs(model, activations):
            value = loss(model)
        found.append(gradients(model, value))
    for pair in zip(*found, strict=True):
        assert torch.equal(*pair)


@contextmanager
def storages(module: nn.Module, at: str) -> Iterator[list[StorageWeakRef]]:
    """Of what enters or leaves a module, whether somebody still holds them or not."""
    found = []

    def look(x: Tensor) -> None:
        found.append(StorageWeakRef(x.untyped_storage()))

    if at == 'input':
        hook = module.register_forward_pre_hook(lambda _, args: look(args[0]))
    else:
        hook = module.register_forward_hook(lambda _, args, output: look(output))
    yield found
    hook.remove()


@every_activation
def test_what_leaves_is_not_kept(activation: nn.Module) -> None:
    model = head(activation)
    with storages(activation, 'output') as outputs, storages(activation, 'input') as inputs:
        with kept_inputs(model, [activation]):
            value = loss(model)
        assert all(output.expired() for output in outputs)
        assert not any(entered.expired() for entered in inputs)
        gradients(model, value)
        assert all(entered.expired() for entered in inputs)


def test_one_large_level_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('ld_plugin.dense.kept_inputs.is_large', lambda level: level.shape[-1] > 9)
    model = head(nn.ReLU())
    with storages(model.activation, 'output') as outputs, kept_inputs(model, [model.activation]):
        value = loss(model)
    assert value.requires_grad
    assert all(output.expired() for output in outputs)


def test_without_it_what_leaves_is_kept() -> None:
    model = head(nn.ReLU())
    with storages(model.activation, 'output') as outputs:
        value = loss(model)
        assert not any(output.expired() for output in outputs)
        gradients(model, value)


def test_what_others_save_stays_theirs() -> None:
    model = Head(nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 3), nn.Sigmoid()))
    expected = gradients(model, loss(model))
    with kept_inputs(model, [model.activation]):
        value = loss(model)
    for pair in zip(gradients(model, value), expected, strict=True):
        assert torch.equal(*pair)


def test_an_input_that_was_modified_is_refused() -> None:
    model, entered = head(nn.ReLU()), []
    hook = model.activation.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    with kept_inputs(model, [model.activation]):
        value = loss(model)
    hook.remove()
    entered[0].detach().mul_(2)
    with pytest.raises(RuntimeError, match=r'entered ReLU have been modified in place'):
        gradients(model, value)


def test_what_others_save_and_was_modified_is_refused() -> None:
    def rest(x: Tensor) -> Tensor:
        rated = x.sigmoid()
        doubled = rated * 2
        rated.mul_(3)
        return doubled

    model = Head(nn.ReLU(), rest)
    with kept_inputs(model, [model.activation]):
        value = loss(model)
    with pytest.raises(RuntimeError, match='inside a head have been modified in place'):
        value.backward()


@every_activation
def test_nothing_stays_where_no_backward_pass_comes(activation: nn.Module) -> None:
    model = head(activation)
    made = []
    model.first.register_forward_hook(
        lambda _, args, output: made.append(StorageWeakRef(output.untyped_storage()))
    )
    with kept_inputs(model, [activation]):
        value = loss(model)
    assert not any(storage.expired() for storage in made)
    del value
    assert len(made) == 3
    assert all(storage.expired() for storage in made)


def test_activations_overwrite_their_inputs_again_after_an_error() -> None:
    model = head(nn.ReLU(inplace=True))
    with pytest.raises(RuntimeError), kept_inputs(model, [model.activation]):
        model([torch.zeros(1, 5, 4, 4)])
    assert model.activation.inplace
    assert not (model.activation._forward_hooks or model.activation._forward_pre_hooks)
    assert not hooks_are_left()


@pytest.mark.parametrize(
    'rest',
    [lambda left: left[:, :1].square() * left[:, 1:], lambda left: left.mT.square() * left],
    ids=['part', 'transposed'],
)
def test_a_view_of_what_leaves_is_kept_as_it_is(rest: Callable[[Tensor], Tensor]) -> None:
    """It begins with the same number, but is another tensor."""
    model = Head(nn.ReLU(), rest)
    expected = gradients(model, loss(model))
    with kept_inputs(model, [model.activation]):
        kept = loss(model)
    for pair in zip(gradients(model, kept), expected, strict=True):
        assert torch.equal(*pair)


@pytest.mark.parametrize('activation', [nn.SiLU(), nn.LeakyReLU(0.1), nn.GELU()], ids=repr)
def test_what_is_changed_after_it_left_is_kept_as_it_is(activation: nn.Module) -> None:
    # which stock autograd allows where the activation keeps its input
    model = Head(activation, lambda left: left.mul_(3).square())
    expected = gradients(model, loss(model))
    with kept_inputs(model, [activation]):
        kept = loss(model)
    for pair in zip(gradients(model, kept), expected, strict=True):
        assert torch.equal(*pair)


def test_nothing_is_kept_where_there_is_no_gradient() -> None:
    model, entered = head(nn.ReLU(inplace=True)), []
    model.activation.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    with torch.inference_mode(), kept_inputs(model, [model.activation]):
        loss(model)
    assert all((x < 0).any() for x in entered)  # but not overwritten either
