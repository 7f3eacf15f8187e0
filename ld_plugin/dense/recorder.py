"""Record what passes through a stock head while it computes its stock loss."""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from inspect import signature
from operator import attrgetter
from types import TracebackType
from typing import Any

from torch import Tensor, nn


class HeadRecorder:
    """Context manager around a head's ``loss()``; afterwards the head is as it was before.

    Nothing stays on the head between steps: a copy of the model (mmengine's EMA hook makes one), a
    pickle of it or an inference run never meets a wrapper.

    Args:
        head: The student's head.
        methods: Names of the methods whose calls are wanted; ``'sampler.sample'`` is one of the
            head's sampler.
        watched: By a name, modules inside the head whose inputs are wanted. Activations that
            overwrite theirs (``inplace``) do not while they are watched.

    Attributes:
        inputs: The feature levels that the head was called with, each (N, F, H, W).
        outs: What its forward returned.
        returned: Per method, the list of its return values.
        arguments: Per method, the list of its calls' arguments by name. Heads change some of them
            in place, lists of anchors for example.
        entered: By the watched modules' name, what entered them, in the order of calls.
    """

    def __init__(
        self,
        head: nn.Module,
        methods: tuple[str, ...] = (),
        watched: Mapping[Hashable, Sequence[nn.Module]] | None = None,
    ) -> None:
        self.head = head
        self.methods = methods
        self.watched = watched or {}
        self.inputs: tuple = ()
        self.outs: tuple = ()
        self.returned: dict[str, list[Any]] = defaultdict(list)
        self.arguments: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.entered: dict[Hashable, list[Tensor]] = defaultdict(list)

    def __enter__(self) -> 'HeadRecorder':
        self._hooks = [self.head.register_forward_hook(self._record_forward)]
        for name, modules in self.watched.items():
            hook = self._record_input(name)
            self._hooks += [module.register_forward_pre_hook(hook) for module in modules]
        self._overwriting = {m for ms in self.watched.values() for m in ms if _overwrites(m)}
        for module in self._overwriting:
            module.inplace = False
        for name in self.methods:
            owner, method = self._locate(name)
            setattr(owner, method, self._wrap(name, owner, method))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        for module in self._overwriting:
            module.inplace = True
        for name in self.methods:
            delattr(*self._locate(name))  # uncovers the class's own method again

    def _locate(self, name: str) -> tuple[Any, str]:
        path, _, method = name.rpartition('.')
        return (attrgetter(path)(self.head) if path else self.head), method

    def _record_forward(self, head: nn.Module, args: tuple, outs: tuple) -> None:
        self.inputs, self.outs = args[0], outs

    def _record_input(self, name: Hashable) -> Any:
        def record(module: nn.Module, args: tuple) -> None:
            self.entered[name].append(args[0])

        return record

    def _wrap(self, name: str, owner: Any, method: str) -> Any:
        call = getattr(owner, method)
        names = signature(getattr(type(owner), method))  # whatever else wraps the instance's

        def recorded(*args: Any, **kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            self.returned[name].append(result)
            self.arguments[name].append(names.bind(owner, *args, **kwargs).arguments)
            return result

        return recorded


def _overwrites(module: nn.Module) -> bool:
    """Whether it is an activation that writes its output where its input is."""
    return getattr(module, 'inplace', False)
