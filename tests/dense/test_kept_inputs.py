"""Activations whose inputs are kept for the backward pass: equal gradients, one map less."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from ld_plugin.dense.kept_inputs import kept_inputs

ACTIVATIONS = [nn.ReLU(inplace=True), nn.ReLU(), nn.SiLU(inplace=True), nn.GELU(), nn.PReLU()]
every_activation = pytest.mark.parametrize('activation', ACTIVATIONS, ids=str)


def tower(activation: nn.Module) -> nn.Sequential:
    """Its second layer is the activation."""
    torch.manual_seed(0)
    convolutions = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)
    return nn.Sequential(convolutions[0], activation, nn.GroupNorm(2, 4), convolutions[1])


def levels() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, size, size, generator=generator) for size in (12, 9, 7)]


def loss(model: nn.Module) -> Tensor:
    """As of a head: the same layers on one level after the other."""
    return sum(model(level).square().sum() for level in levels())


def gradients(model: nn.Module, value: Tensor) -> list[Tensor]:
    return torch.autograd.grad(value, list(model.parameters()))


@every_activation
def test_gradients_are_the_same_to_the_last_bit(activation: nn.Module) -> None:
    model = tower(activation)
    expected = gradients(model, loss(model))
    overwrites = getattr(activation, 'inplace', None)
    with kept_inputs([activation]):
        value = loss(model)
    assert getattr(activation, 'inplace', None) == overwrites
    assert not (activation._forward_hooks or activation._forward_pre_hooks)
    for pair in zip(gradients(model, value), expected, strict=True):
        assert torch.equal(*pair)


def test_random_slopes_are_not_drawn_twice() -> None:
    model, found = tower(nn.RReLU(inplace=True)), []
    for activations in ([], [model[1]]):
        torch.manual_seed(0)
        with kept_inputs(activations):
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
    model = tower(activation)
    with storages(activation, 'output') as outputs, storages(activation, 'input') as inputs:
        with kept_inputs([activation]):
            value = loss(model)
        assert all(output.expired() for output in outputs)
        assert not any(entered.expired() for entered in inputs)
        gradients(model, value)
        assert all(entered.expired() for entered in inputs)


def test_without_it_what_leaves_is_kept() -> None:
    model = tower(nn.ReLU())
    with storages(model[1], 'output') as outputs:
        value = loss(model)
        assert not any(output.expired() for output in outputs)
        gradients(model, value)


def test_what_others_save_stays_theirs() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Sigmoid())
    expected = gradients(model, loss(model))
    with kept_inputs([model[1]]):
        value = loss(model)
    for pair in zip(gradients(model, value), expected, strict=True):
        assert torch.equal(*pair)


def test_an_input_that_was_modified_is_refused() -> None:
    model, entered = tower(nn.ReLU()), []
    hook = model[1].register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    with kept_inputs([model[1]]):
        value = loss(model)
    hook.remove()
    entered[0].detach().mul_(2)
    with pytest.raises(RuntimeError, match=r'entered ReLU have been modified in place'):
        gradients(model, value)


def test_activations_overwrite_their_inputs_again_after_an_error() -> None:
    model = tower(nn.ReLU(inplace=True))
    with pytest.raises(RuntimeError), kept_inputs([model[1]]):
        model(torch.zeros(1, 5, 4, 4))
    assert model[1].inplace
    assert not (model[1]._forward_hooks or model[1]._forward_pre_hooks)
    assert not torch._C._autograd._top_saved_tensors_default_hooks(True)


def test_a_part_of_what_leaves_is_kept_as_it_is() -> None:
    """It begins with the same number, but is another tensor."""
    first, activation = nn.Conv2d(3, 4, 3), nn.ReLU()
    last = nn.Parameter(torch.randn(2, 36, generator=torch.Generator().manual_seed(0)))

    def value() -> Tensor:
        left = activation(first(torch.ones(2, 3, 8, 8)))[:, :1].flatten(1)
        return (left * last).square().sum()

    expected = torch.autograd.grad(value(), [last, first.weight])
    with kept_inputs([activation]):
        kept = value()
    for pair in zip(torch.autograd.grad(kept, [last, first.weight]), expected, strict=True):
        assert torch.equal(*pair)


@pytest.mark.parametrize('activation', [nn.SiLU(), nn.LeakyReLU(0.1), nn.GELU()], ids=repr)
def test_what_is_changed_after_it_left_is_kept_as_it_is(activation: nn.Module) -> None:
    torch.manual_seed(0)
    first, last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

    def value() -> Tensor:
        left = activation(first(levels()[0]))
        left.mul_(3)  # which stock autograd allows where the activation keeps its input
        return last(left).square().sum()

    expected = torch.autograd.grad(value(), [first.weight, last.weight])
    with kept_inputs([activation]):
        kept = value()
    for pair in zip(torch.autograd.grad(kept, [first.weight, last.weight]), expected, strict=True):
        assert torch.equal(*pair)


def test_nothing_is_kept_where_there_is_no_gradient() -> None:
    model, entered = tower(nn.ReLU(inplace=True)), []
    model[1].register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    with torch.inference_mode(), kept_inputs([model[1]]):
        loss(model)
    assert all((x < 0).any() for x in entered)  # but not overwritten either
