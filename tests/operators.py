"""Count what a piece of code asks the device for."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_WAITING = torch.ops.aten.nonzero.default, torch.ops.aten._local_scalar_dense.default


class Operators(TorchDispatchMode):
    """Counts the operators that run within it.

    Attributes:
        names: Of those that are more than a view. A GPU is started for each, however small it is.
        waits: Those that wait for the device, as the size or the host needs their result.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.waits = 0

    @property
    def number(self) -> int:
        """How many are more than a view."""
        return len(self.names)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if not func.is_view:
            self.names.append(str(func))
        self.waits += func in _WAITING
        return func(*args, **(kwargs or {}))
