"""Record what passes through a stock head while it computes its stock loss."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from inspect import signature
from operator import attrgetter
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .kept_inputs import kept_inputs


class HeadRecorder:
    """Context manager around a head's ``loss()``; afterwards the head is as it was before.

    Nothing stays on the head between steps: a copy of the model (mmengine's EMA hook makes one), a
    pickle of it or an inference run never meets a wrapper.

    Args:
        head: The student's head.
        methods: Names of the methods whose calls are wanted; ``'sampler.sample'`` is one of the
            head's sampler.
        watched: By a name, activations inside the head whose inputs are wanted. They do not
            overwrite them, but of large levels autograd keeps nothing of what leaves them, which is
            computed again in the backward pass: to watch takes little memory.
        keep: What is kept of those inputs instead, computed when they enter.

    Attributes:
        inputs: The feature levels that the head was called with, each (N, F, H, W).
        outs: What its forward returned.
        returned: Per method, the list of its return values.
        arguments: Per method, the list of its calls' arguments by name. Heads change some of them
            in place, lists of anchors for example.
        entered: By the watched modules' name, what is kept of what entered them, in the order of
            calls.

    Raises:
        ConfigError: What enters a watched module has no gradient, though one is wanted.
    """

    def __init__(
        self,
        head: nn.Module,
        methods: tuple[str, ...] = (),
        watched: Mapping[Hashable, Sequence[nn.Module]] | None = None,
        keep: Callable[[Tensor], Any] | None = None,
    ) -> None:
        self.head = head
        self.methods = methods
        self.watched = watched or {}
        self.keep = keep
        self.inputs: tuple = ()
        self.outs: tuple = ()
        self.returned: dict[str, list[Any]] = defaultdict(list)
        self.arguments: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.entered: dict[Hashable, list[Any]] = defaultdict(list)

    def __enter__(self) -> 'HeadRecorder':
        self._expects_gradients = torch.is_grad_enabled()
        with ExitStack() as stack:
            hook = self.head.register_forward_hook(self._record_forward)
            stack.callback(hook.remove)
            for name, modules in self.watched.items():
                for module in modules:
                    hook = module.register_forward_pre_hook(partial(self._record_input, name))
                    stack.callback(hook.remove)
            if self.keep is None:
                watched = [module for modules in self.watched.values() for module in modules]
                stack.enter_context(kept_inputs(self.head, watched))
            for name in self.methods:
                owner, method = self._locate(name)
                if method in vars(owner):  # somebody else's wrapper
                    stack.callback(setattr, owner, method, vars(owner)[method])
                else:  # uncovers the class's own method again
                    stack.callback(delattr, owner, method)
                setattr(owner, method, self._wrap(name, owner, method))
            self._on_exit = stack.pop_all()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._on_exit.close()

    def _locate(self, name: str) -> tuple[Any, str]:
        path, _, method = name.rpartition('.')
        return (attrgetter(path)(self.head) if path else self.head), method

    def _record_forward(self, head: nn.Module, args: tuple, outs: tuple) -> None:
        self.inputs, self.outs = args[0], outs

    def _record_input(self, name: Hashable, module: nn.Module, args: tuple) -> None:
        if self._expects_gradients and not torch.is_grad_enabled():
            raise ConfigError(
                'activation_checkpointing: found a module inside the head whose features a '
                'distiller reads. They have no gradient there, as mmengine computes what it names '
                'without one at first. Leave it out.'
            )
        self.entered[name].append(self.kept(args[0]))

    def kept(self, entered: Tensor) -> Any:
        """What is kept of an input."""
        return entered if self.keep is None else self.keep(entered)

    def _wrap(self, name: str, owner: Any, method: str) -> Any:
        call = getattr(owner, method)
        names = signature(getattr(type(owner), method))  # whatever else wraps the instance's

        def recorded(*args: Any, **kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            self.returned[name].append(result)
            self.arguments[name].append(names.bind(owner, *args, **kwargs).arguments)
            return result

        return recorded
