"""How a distiller's weight changes over training, as a factor of it."""

from abc import ABC, abstractmethod

from mmengine.logging import MessageHub

from ..checks import check_count, check_not_negative
from ..registry import SCHEDULES


class Schedule(ABC):
    """A factor for a distillation loss, read from the runner's progress at every step."""

    @abstractmethod
    def factor(self) -> float:
        """The factor now.

        Raises:
            RuntimeError: It depends on the progress of a training, and no runner is training.
        """


@SCHEDULES.register_module()
class ConstantSchedule(Schedule):
    """Always the same: ``dict(type='ConstantSchedule')``, the default.

    Args:
        value: The factor, at least 0.

    Raises:
        ConfigError: ``value`` is out of its range.
    """

    def __init__(self, value: float = 1.0) -> None:
        check_not_negative(value=value)
        self.value = value

    def factor(self) -> float:
        return self.value


@SCHEDULES.register_module()
class LinearDecaySchedule(Schedule):
    """A straight line over the whole training: ``dict(type='LinearDecaySchedule', end=0.0)``.

    Args:
        start: Factor at the first iteration, at least 0.
        end: Factor that the line reaches after the last iteration, at least 0.

    Raises:
        ConfigError: A factor is out of its range.
    """

    def __init__(self, start: float = 1.0, end: float = 0.0) -> None:
        check_not_negative(start=start, end=end)
        self.start = start
        self.end = end

    def factor(self) -> float:
        return self.start + (self.end - self.start) * _progress('iter') / _progress('max_iters')


@SCHEDULES.register_module()
class LinearWarmupSchedule(Schedule):
    """From ``start`` up to 1 at first: ``dict(type='LinearWarmupSchedule', iters=500)``.

    Args:
        iters: Iterations until the factor is 1, at least 1.
        start: Factor at the first iteration, at least 0.

    Raises:
        ConfigError: A value out of its range.
    """

    def __init__(self, iters: int, start: float = 0.0) -> None:
        check_count(1, iters=iters)
        check_not_negative(start=start)
        self.iters = iters
        self.start = start

    def factor(self) -> float:
        done = min(_progress('iter') / self.iters, 1.0)
        return self.start + (1 - self.start) * done


def _progress(name: str) -> int:
    """What mmengine's runner publishes at every iteration; it survives a resumed training."""
    value = MessageHub.get_current_instance().get_info(name)
    if value is None:
        raise RuntimeError(
            'A weight schedule follows the progress of the mmengine Runner that was made last; '
            'there is none, or it is not training. Train with a Runner that is made right before '
            "its train(), or use dict(type='ConstantSchedule')."
        )
    return value
