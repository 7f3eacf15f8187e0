"""Read a checkpoint safely, and load it completely or not at all."""

import os
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.dist import barrier, get_rank
from mmengine.logging.history_buffer import HistoryBuffer
from torch import nn

from ..errors import ConfigError

_KEY = 'model.teacher.checkpoint'
ADAPTER_PREFIX = 'distillers.'


def load_checkpoint_file(checkpoint: str | os.PathLike, trained_by: Any = None) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Nothing but tensors and plain values is unpickled where the file allows; otherwise a warning says
    so, because such a file can run code.

    Args:
        checkpoint: A path, or a URL, which is downloaded once into torch's hub folder.
        trained_by: The config that trains it, for the message when the file is missing.

    Raises:
        ConfigError: The file is missing, truncated, or not a checkpoint.
    """
    path = Path(_download(str(checkpoint)) if '://' in str(checkpoint) else checkpoint)
    if not path.is_file():
        hint = (
            f' Train it: mim train mmdet-ld-plugin {trained_by.split("::")[-1]}'
            if isinstance(trained_by, str)
            else ''
        )
        raise ConfigError(f'{_KEY}: there is no file {str(path)!r} (looked in {Path.cwd()}).{hint}')
    try:
        loaded = _load(path)
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError) as error:
        raise ConfigError(
            f'{_KEY}: {str(path)!r} cannot be read; it is truncated or not a checkpoint ({error}). '
            'Download or copy it again.'
        ) from error
    if not isinstance(loaded, Mapping):
        raise ConfigError(f'{_KEY}: {str(path)!r} holds a {type(loaded).__name__}, expected a dict.')
    return dict(loaded)


def load_weights(model: nn.Module, checkpoint: Mapping[str, Any], name: str) -> None:
    """Load a checkpoint's weights into ``model``, all of them.

    Trainable parts of distillers, which a distilled student's checkpoint may hold, are left out.

    Raises:
        ConfigError: Weights are missing or have other shapes; all are listed.
    """
    state = checkpoint.get('state_dict', checkpoint)
    state = {re.sub(r'^module\.', '', key): value for key, value in state.items()}
    state = {key: value for key, value in state.items() if not key.startswith(ADAPTER_PREFIX)}
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except (RuntimeError, AttributeError) as error:
        raise ConfigError(
            f'{_KEY}: {name!r} does not fit model.teacher.config: {error}'
        ) from error
    if missing:
        raise ConfigError(
            f'{_KEY}: {name!r} does not fit model.teacher.config: it lacks {len(missing)} weights: '
            f'{", ".join(missing)}. Choose the config that the checkpoint was trained with.'
        )
    if unexpected:
        warnings.warn(
            f'{_KEY}: {name!r} holds weights that the teacher does not have: '
            f'{", ".join(unexpected)}.',
            stacklevel=2,
        )


def class_names(checkpoint: Mapping[str, Any]) -> Sequence[str] | None:
    """Class names in a checkpoint of MMDetection 3 or 2; None where it has none."""
    meta = checkpoint.get('meta', {})
    return meta.get('dataset_meta', {}).get('classes') or meta.get('CLASSES')


def _load(path: Path) -> Any:
    # what mmengine's runner stores beside the weights
    safe = [HistoryBuffer, np.ndarray, np.dtype, np.core.multiarray._reconstruct]
    try:
        with torch.serialization.safe_globals(safe):
            return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        if 'weights_only' not in str(error):
            raise
        warnings.warn(
            f'{_KEY}: {str(path)!r} holds more than weights, so reading it can run code from it. '
            'Use checkpoints from sources you trust.',
            stacklevel=2,
        )
        return torch.load(path, map_location='cpu', weights_only=False)


def _download(url: str) -> str:
    path = os.path.join(torch.hub.get_dir(), 'checkpoints', os.path.basename(urlparse(url).path))
    if get_rank() == 0 and not os.path.isfile(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        torch.hub.download_url_to_file(url, path)
    barrier()
    return path
