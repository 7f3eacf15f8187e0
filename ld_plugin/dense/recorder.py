"""Record what passes through a stock head while it computes its stock loss."""

from collections import defaultdict
from inspect import signature
from operator import attrgetter
from types import TracebackType
from typing import Any

from torch import nn


class HeadRecorder:
    """Context manager around a head's ``loss()``; afterwards the head is as it was before.

    Nothing stays on the head between steps: a copy of the model (mmengine's EMA hook makes one), a
    pickle of it or an inference run never meets a wrapper.

    Args:
        head: The student's head.
        methods: Names of the methods whose calls are wanted; ``'sampler.sample'`` is one of the
            head's sampler.

    Attributes:
        inputs: The feature levels that the head was called with, each (N, F, H, W).
        outs: What its forward returned.
        returned: Per method, the list of its return values.
        arguments: Per method, the list of its calls' arguments by name. Heads change some of them
            in place, lists of anchors for example.
    """

    def __init__(self, head: nn.Module, methods: tuple[str, ...]) -> None:
        self.head = head
        self.methods = methods
        self.inputs: tuple = ()
        self.outs: tuple = ()
        self.returned: dict[str, list[Any]] = defaultdict(list)
        self.arguments: dict[str, list[dict[str, Any]]] = defaultdict(list)

    def __enter__(self) -> 'HeadRecorder':
        self._hook = self.head.register_forward_hook(self._record_forward)
        for name in self.methods:
            owner, method = self._locate(name)
            setattr(owner, method, self._wrap(name, getattr(owner, method)))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._hook.remove()
        for name in self.methods:
            delattr(*self._locate(name))  # uncovers the class's own method again

    def _locate(self, name: str) -> tuple[Any, str]:
        path, _, method = name.rpartition('.')
        return (attrgetter(path)(self.head) if path else self.head), method

    def _record_forward(self, head: nn.Module, args: tuple, outs: tuple) -> None:
        self.inputs, self.outs = args[0], outs

    def _wrap(self, name: str, method: Any) -> Any:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            self.returned[name].append(result)
            self.arguments[name].append(signature(method).bind(*args, **kwargs).arguments)
            return result

        return recorded
