"""Registries of distillers, regions, losses and weight schedules, and the way to build from them.

The detectors themselves are registered in MMDetection's ``MODELS``, because a config names them in
``model.type``. What stands inside ``model.distillers`` is looked up here, whatever the config's
``default_scope`` is: the same recipe works in MMDetection and MMRotate configs.
"""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from mmengine.registry import DefaultScope, Registry

from .errors import ConfigError

DISTILLERS = Registry('distiller', scope='ld_plugin')
REGIONS = Registry('region', scope='ld_plugin')
LOSSES = Registry('distillation loss', scope='ld_plugin')
SCHEDULES = Registry('weight schedule', scope='ld_plugin')

#: mmengine merges a part into the inherited one even where their types differ
_INHERITED = (
    " If it is left of an inherited part of another type, set _delete_=True beside the new 'type'."
)
#: mmengine takes the word out of what replaces an inherited part, and of nothing else
_NOT_INHERITED = ' Nothing is inherited in its place: leave _delete_ out.'


def build(
    registry: Registry, cfg: Mapping[str, Any], key: str, base: type | None = None, **built: Any
) -> Any:
    """Build the object that ``cfg`` describes.

    Args:
        registry: Where ``cfg['type']`` is looked up.
        cfg: ``type`` and the arguments of its constructor.
        key: Where ``cfg`` stands in the config, for messages: ``model.distillers.ld.region``.
        base: What its class has to be derived from, if from anything.
        built: Further constructor arguments, already objects.

    Raises:
        ConfigError: Unknown type, one of another kind, unknown or missing argument, or a value the
            class refuses.
    """
    if not isinstance(cfg, Mapping) or 'type' not in cfg:
        raise ConfigError(f"{key}: expected a dict with a 'type', found {cfg!r}.")
    cls = _lookup(registry, cfg['type'], key)
    if base is not None and not issubclass(cls, base):
        fitting = (name for name, known in registry.module_dict.items() if issubclass(known, base))
        raise ConfigError(
            f'{key}: found {cls.__name__}, expected a {registry.name} derived from '
            f'{base.__name__}: {", ".join(sorted(fitting))}.'
        )
    kwargs = {name: value for name, value in cfg.items() if name != 'type'} | built
    try:
        inspect.signature(cls).bind(**kwargs)
    except TypeError as error:
        accepted = ', '.join(inspect.signature(cls).parameters)
        inherited = _INHERITED if 'unexpected keyword' in str(error) else ''
        advice = _NOT_INHERITED if '_delete_' in kwargs else inherited
        raise ConfigError(
            f'{key}: {cls.__name__} cannot be built: {error}. It accepts: {accepted}.{advice}'
        ) from error
    try:
        return cls(**kwargs)
    except ConfigError as error:
        raise ConfigError(f'{key}.{error}') from error
    # a text where a number belongs; the stock losses assert what they accept
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(
            f'{key}: {cls.__name__} cannot be built from {cfg!r}: {error}.'
        ) from error


def type_name(kind: str | type) -> str:
    """Name of the class that a config's ``type`` means, without scope or module."""
    return kind.__name__ if isinstance(kind, type) else str(kind).rpartition('.')[2]


def _in_default_scope(registry: Registry, name: str) -> type | None:
    """A class of the package whose configs name theirs without it, as MMRotate's name GDLoss."""
    scope = DefaultScope.get_current_instance()
    if scope is None or '.' in name or registry.scope == 'ld_plugin':
        return None
    return registry.get(f'{scope.scope_name}.{name}')


def _lookup(registry: Registry, name: str | type, key: str) -> type:
    if isinstance(name, type):
        return name
    if not isinstance(name, str):
        raise ConfigError(f'{key}.type: found {name!r}, expected a name or a class.')
    cls = registry.get(name) or _in_default_scope(registry, name)
    if cls is None:
        known = sorted(registry.module_dict)
        close = difflib.get_close_matches(name, known, n=1)
        hint = f' Did you mean {close[0]!r}?' if close else ''
        # MMDetection's registry of models holds hundreds of names
        listed = f' Registered: {", ".join(known)}.' if registry.scope == 'ld_plugin' else ''
        raise ConfigError(
            f'{key}.type: {name!r} is not a registered {registry.name}.{hint}{listed} '
            'One of your own must be imported, for example by custom_imports = '
            "dict(imports=['my_module'])."
        )
    return cls
