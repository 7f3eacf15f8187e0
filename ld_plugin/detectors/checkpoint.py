"""Read a checkpoint safely, and load it completely or not at all."""

import hashlib
import os
import pickle
import re
import shlex
import struct
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.dist import barrier, get_rank
from mmengine.logging.history_buffer import HistoryBuffer
from torch import Tensor, nn

from ..errors import ConfigError
from .model_config import OWN_PACKAGE

_KEY = 'model.teacher.checkpoint'
ADAPTER_PREFIX = 'distillers.'
_NUMPY_CORES = ('core', '_core')  # before NumPy 2, and since


def load_checkpoint_file(
    checkpoint: str | os.PathLike, trained_by: Any = None, key: str = _KEY
) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Nothing but tensors and plain values is unpickled where the file allows; otherwise a warning
    says so, because such a file can run code.

    Args:
        checkpoint: A path, or a URL, which is downloaded once into torch's hub folder.
        trained_by: The config that trains it, for the message when the file is missing.
        key: Where the user named it, for messages.

    Raises:
        ConfigError: The file is missing, cannot be read, or is not a checkpoint.
    """
    is_url = '://' in str(checkpoint)
    path = Path(_download(str(checkpoint), key) if is_url else checkpoint).expanduser()
    if path.is_dir():
        raise ConfigError(
            f'{key}: {str(path)!r} is a folder, expected a file, such as one of those in it: '
            f'{_listed(path) or "none"}.'
        )
    if not path.is_file():
        others = _listed(path.parent)
        there = f'; in its folder there are {others}' if others else ''
        raise ConfigError(
            f'{key}: there is no file {str(path)!r} (looked in {Path.cwd()}){there}. '
            f'{_how_to_get(trained_by)}'
        )
    try:
        loaded = _load(path, key)
    except ImportError as error:
        raise ConfigError(
            f'{key}: {str(path)!r} holds objects of a package that is not installed ({error}). '
            'Install it, or save the weights alone.'
        ) from error
    except PermissionError as error:
        raise ConfigError(f'{key}: {str(path)!r} cannot be read ({error}).') from error
    except (
        RuntimeError,
        EOFError,
        pickle.UnpicklingError,
        OSError,
        AttributeError,
        LookupError,  # and what else random bytes make of the old format
        ValueError,
        TypeError,
        struct.error,
    ) as error:
        raise ConfigError(
            f'{key}: {str(path)!r} cannot be read; it is truncated or not a checkpoint ({error}). '
            'Download or copy it again.'
        ) from error
    if not isinstance(loaded, Mapping):
        raise ConfigError(f'{key}: {str(path)!r} holds a {type(loaded).__name__}, expected a dict.')
    if not isinstance(state := loaded.get('state_dict', loaded), Mapping):
        raise ConfigError(
            f'{key}: state_dict in {str(path)!r} is a {type(state).__name__}, expected a dict from '
            "names to weights, as the model's state_dict() gives it."
        )
    return dict(loaded)


def weights_of(checkpoint: Mapping[str, Any]) -> OrderedDict[str, Tensor]:
    """A checkpoint's weights, without trainable parts of distillers.

    Under the names of the bare model, not of a parallel wrapper, and with the versions of its
    modules, without which some take their weights for those of an old version.
    """
    state = checkpoint.get('state_dict', checkpoint)
    weights = OrderedDict(
        (name, value)
        for name, value in ((_bare(key), value) for key, value in state.items())
        if not name.startswith(ADAPTER_PREFIX)
    )
    versions = getattr(state, '_metadata', {})
    weights._metadata = OrderedDict((_bare(key), value) for key, value in versions.items())
    return weights


def _bare(key: Any) -> str:
    """The name, in the bare model, of what a wrapper's checkpoint calls ``key``."""
    return re.sub(r'^module(\.|$)', '', str(key))


def drop_distillers(checkpoint: Mapping[str, Any]) -> None:
    """Take trainable parts of distillers out of a checkpoint's weights, their averages included."""
    for state in (checkpoint.get('state_dict', {}), checkpoint.get('ema_state_dict', {})):
        for key in [k for k in state if k.removeprefix('module.').startswith(ADAPTER_PREFIX)]:
            del state[key]


def first_of(names: Collection[object], number: int = 5) -> str:
    """The first of some names, for messages that would be long with all."""
    return (
        ', '.join([*map(str, islice(names, number)), *['...'] * (len(names) > number)]) or 'nothing'
    )


def load_weights(model: nn.Module, checkpoint: Mapping[str, Any], name: str) -> None:
    """Load a checkpoint's weights into ``model``, all of them.

    Trainable parts of distillers, which a distilled student's checkpoint may hold, are left out.

    Raises:
        ConfigError: Weights are missing, have other shapes, are of a deeper model, or are not
            finite; all are listed.
    """
    state = weights_of(checkpoint)
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except (RuntimeError, AttributeError) as error:  # which says nothing of what is missing
        missing = [weight for weight in model.state_dict() if weight not in state]
        raise _does_not_fit(name, f'{error}\n', missing) from error
    if missing and not any(weight in state for weight in model.state_dict()):
        reason = f'it has none of {len(missing)} weights; found {first_of(state)}. '
        raise _does_not_fit(name, reason, [])
    if missing:
        raise _does_not_fit(name, '', missing)
    if deeper := [key for key in unexpected if _is_deeper(model, key)]:
        reason = f'it is of a deeper model, with {len(deeper)} more weights: {first_of(deeper)}. '
        raise _does_not_fit(name, reason, [])
    # not every step shows them: a processor's kernels clip NaN at 0 with the rest
    weights = [*model.named_parameters(), *model.named_buffers()]
    if broken := [key for key, value in weights if not value.isfinite().all()]:
        raise ConfigError(
            f'{_KEY}: {name!r} holds NaN or infinity: {", ".join(broken)}. Expected the weights of '
            'a training that went well; choose an earlier checkpoint.'
        )
    if unexpected:
        warnings.warn(
            f'{_KEY}: {name!r} holds weights that the teacher does not have: '
            f'{", ".join(unexpected)}.',
            stacklevel=2,
        )


def _is_deeper(model: nn.Module, key: str) -> bool:
    """Whether a weight is of one more layer in a sequence of layers that the model has, too.

    So it is when R-34's weights are loaded into R-18, which has a part of them. Further levels, of
    which each has a layer or a scale of its own, change nothing in the others.
    """
    if key.startswith('neck.') or '.scales.' in key:
        return False
    modules = dict(model.named_modules())
    for number in re.finditer(r'\.(\d+)\.', key):
        layers = modules.get(key[: number.start()])
        if isinstance(layers, nn.Sequential | nn.ModuleList) and len(layers) <= int(number[1]):
            return True
    return False


def class_names(checkpoint: Mapping[str, Any]) -> Sequence[str] | None:
    """Class names in a checkpoint of MMDetection 3 or 2; None where it has none."""
    meta = checkpoint.get('meta')
    if not isinstance(meta, Mapping):
        return None
    names = classes_of(meta.get('dataset_meta')) or meta.get('CLASSES')
    return (names,) if isinstance(names, str) else names  # a tuple of one without its comma


def classes_of(dataset_meta: Any) -> Sequence[str] | None:
    """Class names in what a data set says of itself; None where it has none.

    MMDetection's ``ConcatDataset`` says a list of what its parts do, where they differ in anything;
    labels go by the first.
    """
    if isinstance(dataset_meta, list | tuple):
        dataset_meta = next(iter(dataset_meta), None)
    if not isinstance(dataset_meta, Mapping):
        return None
    return dataset_meta.get('classes') or dataset_meta.get('CLASSES')


def _listed(folder: Path) -> str:
    """The checkpoints in a folder, by name."""
    return ', '.join(sorted(path.name for path in folder.glob('*.pth')))


def _how_to_get(trained_by: Any) -> str:
    """What to do where the checkpoint of a teacher's config is missing."""
    name = trained_by if isinstance(trained_by, str) else ''
    package, _, config = name.rpartition('::')
    if package not in ('', OWN_PACKAGE):
        return f"Correct the path, or set it to 'auto' for the one that {package} publishes."
    if config:
        return f'Train it: mim train mmdet-ld-plugin {shlex.quote(config)}'
    return 'Correct the path.'


def _does_not_fit(name: str, reason: str, missing: Sequence[str]) -> ConfigError:
    lacks = f'it lacks {len(missing)} weights: {", ".join(missing)}. ' if missing else ''
    return ConfigError(
        f'{_KEY}: {name!r} does not fit model.teacher.config: {reason}{lacks}'
        'Choose the config that the checkpoint was trained with.'
    )


def _load(path: Path, key: str) -> Any:
    # older versions of torch cannot be told what else is safe; they warn below
    allow = getattr(torch.serialization, 'safe_globals', nullcontext)
    try:
        with allow(_runner_globals()):
            return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        if 'Unsupported operand' in str(error):  # not even a pickle
            raise pickle.UnpicklingError('no checkpoint of torch.save') from None
        warnings.warn(
            f'{key}: {str(path)!r} holds more than weights, so reading it can run code from it. '
            'Use checkpoints from sources you trust.',
            stacklevel=3,
        )
        return torch.load(path, map_location='cpu', weights_only=False)


def _runner_globals() -> list[Callable]:
    """What mmengine's runner pickles beside the weights: its log history, made of arrays."""
    reconstruct, scalar = np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]
    numbers = np.typecodes['AllInteger'] + np.typecodes['Float'] + '?'
    return [
        HistoryBuffer,
        _named('builtins', 'getattr', _history_method),
        np.ndarray,
        np.dtype,
        *{type(np.dtype(code)) for code in numbers},
        *(_named(f'numpy.{core}.multiarray', '_reconstruct', reconstruct) for core in _NUMPY_CORES),
        *(_named(f'numpy.{core}.multiarray', 'scalar', scalar) for core in _NUMPY_CORES),
    ]


def _history_method(owner: Any, name: str) -> Any:
    """The one use of `getattr` in a runner's checkpoint; anything else could be an attack."""
    if owner is not HistoryBuffer:
        raise pickle.UnpicklingError(f'getattr of {owner}')
    return getattr(owner, name)


def _named(module: str, name: str, function: Callable) -> Callable:
    """``function`` under the name by which pickles know it."""

    def named(*args: Any) -> Any:
        return function(*args)

    named.__module__, named.__name__, named.__qualname__ = module, name, name
    return named


def _download(url: str, key: str) -> str:
    path = os.path.join(torch.hub.get_dir(), 'checkpoints', _name_of(url))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    # the first process alone, then those of other machines, whose folder may be another one
    for turn in (get_rank() == 0, get_rank() != 0):
        if turn and not os.path.isfile(path):
            _fetch(url, path, key)
        barrier()
    return path


def _name_of(url: str) -> str:
    """Of the copy: as published where that ends with a hash, else with one of the URL.

    Every training has its epoch_12.pth.
    """
    name = Path(urlparse(url).path)
    if re.search(r'-[0-9a-f]{8,}$', name.stem):
        return name.name
    return f'{name.stem}-{hashlib.sha256(url.encode()).hexdigest()[:8]}{name.suffix}'


def _fetch(url: str, path: str, key: str) -> None:
    try:
        torch.hub.download_url_to_file(url, path)
    except OSError as error:
        raise ConfigError(
            f'{key}: {url} cannot be downloaded ({error}). Check the address and the connection, '
            'or give the path of a copy.'
        ) from error
