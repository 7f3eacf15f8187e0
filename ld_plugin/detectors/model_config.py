"""Find a detector's config, and its published weights, by name, path or dict."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine import Config, ConfigDict
from mmengine.config.utils import ConfigParsingError
from mmengine.hub import get_config
from mmengine.utils import import_modules_from_strings
from yaml import YAMLError

from ..errors import ConfigError
from ..packages import how_to_install_mmrotate, is_installed

_KEY = 'model.teacher.config'
#: of what a config or the modules that it imports compute; a KeyError of two bases alike, too
OF_CODE = (NameError, KeyError, TypeError, AttributeError)
OWN_PACKAGE = 'ld_plugin'
#: the package that this one can do without
_OPTIONAL = 'mmrotate'


def read_config(config: str | Path | Mapping[str, Any]) -> Config:
    """Read a whole config.

    Args:
        config: ``'mmdet::gfl/...'`` (a config installed with its package), one of this package
            (``'ld_plugin::bccd/...'``), a path, or a dict with a ``model``.

    Raises:
        ConfigError: It is not found, or has no ``model``.
    """
    if isinstance(config, Mapping):
        loaded = Config(dict(config))
        if loaded.get('custom_imports'):  # which mmengine imports for files alone
            _import_modules(loaded.custom_imports)
        _check_scope(loaded, f'{_KEY}.default_scope')
    elif '::' in str(config):
        loaded = _read_packaged(str(config))
    else:
        path = Path(config).expanduser()
        if not path.is_file():
            raise ConfigError(
                f'{_KEY}: found {str(config)!r}, but there is no such file (looked in '
                f'{Path.cwd()}). Give a path, a dict, or a stock config, for example '
                "'mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py'."
            )
        try:
            loaded = read_file(path)
        except ConfigError as error:
            raise ConfigError(f'{_KEY}: {error}') from error
    if not isinstance(loaded.get('model'), Mapping):
        found = f'the keys {", ".join(loaded)}' if isinstance(config, Mapping) else repr(config)
        raise ConfigError(
            f"{_KEY}: found {found} without a 'model', expected a whole detector config. What "
            'describes a model alone becomes one by dict(model=...).'
        )
    return loaded


def read_file(path: str | Path) -> Config:
    """Read a config file.

    Raises:
        ConfigError: It, or its ``_base_``, cannot be read, or is a config of a package that is not
            installed.
    """
    try:
        config = Config.fromfile(path)
    except ImportError as error:
        if str(error).startswith(f'{_OPTIONAL} is not installed'):
            raise ConfigError(
                f'_base_ of {path}: found a config of {_OPTIONAL}, which is not installed. '
                f'Install it ({how_to_install_mmrotate()}).'
            ) from error
        raise _missing_import(path, error) from error
    except ConfigParsingError as error:
        raise ConfigError(
            f'{str(path)!r}, or its _base_, cannot be read as a config: {error} _base_ must stand '
            'before all imports.'
        ) from error
    # ValueError: of JSON and of other text than UTF-8, too
    except (OSError, SyntaxError, YAMLError, ValueError, *OF_CODE) as error:
        raise ConfigError(
            f'{str(path)!r}, or its _base_, cannot be read as a config: {error}. Correct it, or '
            'give another.'
        ) from error
    _check_scope(config, f'default_scope of {path}')
    return config


def _check_scope(config: Config, where: str) -> None:
    """Stop where a config without ``_base_``, such as a dumped one, is of a missing package."""
    scope = config.get('default_scope')
    if scope == _OPTIONAL and not is_installed(scope):
        raise ConfigError(
            f'{where}: found {scope!r}, which is not installed. '
            f'Install it ({how_to_install_mmrotate()}).'
        )


def _import_modules(custom_imports: Mapping[str, Any]) -> None:
    try:
        import_modules_from_strings(**custom_imports)
    except ImportError as error:
        raise ConfigError(f'{_KEY}: {_missing_import("custom_imports", error)}') from error


def _missing_import(config: str | Path, error: ImportError) -> ConfigError:
    return ConfigError(
        f'{str(config)!r} needs what cannot be imported: {error}. Install it, or give another.'
    )


def student_model(config: Config) -> ConfigDict:
    """The ``model`` of a config without distillation: a distilled student can teach in its turn.

    So can one of MMDetection's own distillation (``KnowledgeDistillationSingleStageDetector``,
    ``LAD``), whose head predicts as the one that it is derived from.
    """
    model = config.model.copy()
    if config.get('data_preprocessor') is not None:  # as mmengine's runner takes it
        model.setdefault('data_preprocessor', config.data_preprocessor)
    if 'distillers' in model:
        model.pop('distillers')
        model.pop('teacher')
        # by their full name, for the config's default scope may be MMRotate's
        kinds = dict(
            roi_head='mmdet.TwoStageDetector',
            bbox_head_init='mmrotate.RefineSingleStageDetector',
        )
        found = (kind for part, kind in kinds.items() if part in model)
        model['type'] = next(found, 'mmdet.SingleStageDetector')
    elif others := [key for key in model if key.startswith('teacher_')]:
        for key in (*others, 'eval_teacher'):
            model.pop(key, None)
        model['type'] = 'mmdet.SingleStageDetector'
    return model


def published_checkpoint(config: Any) -> str:
    """URL of the checkpoint that a package publishes for one of its configs.

    Raises:
        ConfigError: ``config`` is no stock name, or has no published checkpoint.
    """
    key = 'model.teacher.checkpoint'
    if not isinstance(config, str) or '::' not in config or config.startswith(OWN_PACKAGE):
        raise ConfigError(
            f"{key}: found 'auto', which needs a stock name such as 'mmdet::gfl/...' in {_KEY}; "
            f'found {config if isinstance(config, str) else type(config).__name__!r}. Give the '
            'path or URL of a checkpoint.'
        )
    _check_installed(config)
    try:
        return get_config(config, pretrained=True).model_path
    except (RuntimeError, ValueError, KeyError, AttributeError, AssertionError) as error:
        raise ConfigError(
            f"{key}: found 'auto', but no checkpoint is published for {config!r} ({error}). Give "
            'the path or URL of one.'
        ) from error


def own_config_root() -> Path:
    """The folder of this package's configs: installed, or beside the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / '.mim' / 'configs'
    return installed if installed.is_dir() else package.parent / 'configs'


def _read_packaged(name: str) -> Config:
    package, relative = name.split('::', 1)
    if package == OWN_PACKAGE:
        path = own_config_root() / relative
        if path.is_file():
            return read_file(path)
        raise ConfigError(
            f'{_KEY}: found {name!r}, but {path} does not exist. Correct the name: FOLDER/FILE.py '
            f'below {own_config_root()}.'
        )
    _check_installed(name)
    try:
        return get_config(name)
    except ImportError as error:
        raise ConfigError(f'{_KEY}: {_missing_import(name, error)}') from error
    except (FileNotFoundError, KeyError, AssertionError, ValueError) as error:
        raise ConfigError(
            f'{_KEY}: found {name!r}, which mmengine does not find among the configs of the '
            f'installed {package}: {error}. Correct the name, or give a path.'
        ) from error


def _check_installed(name: str) -> None:
    """Stop where the package of ``'package::...'`` is missing: mmengine would pip-install it."""
    package = name.split('::', 1)[0]
    if not package.isidentifier() or not is_installed(package):
        how = f' ({how_to_install_mmrotate()})' if package == _OPTIONAL else ''
        raise ConfigError(
            f'{_KEY}: found {name!r}, but no package {package!r} is installed. Install it{how}, '
            "correct the name (the part before '::'), or give a path."
        )
