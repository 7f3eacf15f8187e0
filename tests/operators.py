"""Count what a piece of code asks the device for."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_WAITING = torch.ops.aten.nonzero.default, torch.ops.aten._local_scalar_dense.default


class Operators(TorchDispatchMode):
    """Counts the operators that run within it.

    Attributes:
        number: Those that are more than a view. A GPU is started for each, however small it is.
        waits: Those that wait for the device, as the size or the host needs their result.
    """

    def __init__(self) -> None:
        super().__init__()
        self.number = self.waits = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        self.number += not func.is_view
        self.waits += func in _WAITING
        return func(*args, **(kwargs or {}))
