"""What a config says about its data, before anything is built from it.

Without this, a missing folder shows up minutes later (after the teacher was loaded, or only at the
first validation) as a `FileNotFoundError` that names neither the config key nor what to change.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet.registry import DATASETS
from mmengine.fileio import list_from_file

from .errors import ConfigError

TRAINING = ('train_dataloader', 'val_dataloader', 'val_evaluator')
TESTING = ('test_dataloader', 'test_evaluator')


def check_data_folders(cfg: Mapping[str, Any], sections: Sequence[str] = TRAINING) -> None:
    """Raise if a folder or file that the config's data sets and metrics read does not exist.

    Args:
        cfg: A whole config, as `mmengine.Config` or dict.
        sections: The top-level keys to look at: `TRAINING` or `TESTING`.

    Raises:
        FileNotFoundError: Lists everything that is missing, each with its config key, the place
            where it was looked for and the option that changes it.
    """
    complaints = [
        complaint for section in sections for complaint in _section(cfg.get(section), section)
    ]
    if complaints:
        raise FileNotFoundError('\n'.join(['the data of this config is not there:', *complaints]))


def check_submission_folders(cfg: Mapping[str, Any]) -> None:
    """Raise if MMRotate's metric is to merge patches into a folder that is there already.

    It would refuse to, but only when the whole test has run.

    Raises:
        FileExistsError: Names the folder, and the option that changes it.
    """
    for key, evaluator in _plain_evaluators(cfg.get('test_evaluator'), 'test_evaluator'):
        folder = evaluator.get('outfile_prefix')
        if evaluator.get('merge_patches') and folder and Path(folder).exists():
            raise FileExistsError(
                f'{key}.outfile_prefix: {folder!r} is there already, and submissions are not '
                f'written over; delete it, or choose another: --cfg-options {key}.outfile_prefix='
                'PATH'
            )


def _plain_evaluators(value: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """An evaluator, or those of a list or inside of another, with their keys."""
    if isinstance(value, Mapping):
        yield key, value
        yield from _plain_evaluators(value.get('metrics'), f'{key}.metrics')
    for index, item in enumerate(value if isinstance(value, list | tuple) else ()):
        yield from _plain_evaluators(item, f'{key}.{index}')


def _section(value: Any, key: str) -> Iterator[str]:
    """Complaints about a data loader, an evaluator, or a list of either."""
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _section(item, f'{key}.{index}')
    elif isinstance(value, Mapping):
        if key.split('.')[0].endswith('_dataloader'):
            yield from _dataset(value.get('dataset'), f'{key}.dataset')
        else:
            yield from _evaluator(value, key)


def _dataset(dataset: Any, key: str) -> Iterator[str]:
    """Complaints about one data set, or those in a wrapper."""
    for name, plain in plain_datasets(dataset, key):
        yield from missing_files(plain, name)


def plain_datasets(dataset: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The data sets inside of wrappers (repeated, concatenated, mixed, ...), with their keys.

    Args:
        dataset: Of a data loader. One that is built already has opened its files by now, and gives
            nothing.
        key: Its key in the config.
    """
    if not isinstance(dataset, Mapping):
        return
    if 'dataset' in dataset:
        yield from plain_datasets(dataset['dataset'], f'{key}.dataset')
    elif 'datasets' in dataset:
        for index, part in enumerate(dataset['datasets']):
            yield from plain_datasets(part, f'{key}.datasets.{index}')
    else:
        yield key, dataset


def dataset_class(key: str, dataset: Mapping[str, Any], scope: str | None) -> type:
    """The class of a data set.

    Args:
        key: Of the data set in the config.
        dataset: Its config.
        scope: The config's ``default_scope``; MMDetection's if None.

    Raises:
        ConfigError: It is missing, or not registered.
    """
    kind = dataset.get('type')
    if kind is None:
        raise ConfigError(
            f"{key}.type: missing, expected the class of a data set, for example 'CocoDataset'."
        )
    if isinstance(kind, type):
        return kind
    scope = dataset.get('_scope_') or scope or 'mmdet'
    # by its full name, for MMDetection's registry does not look into MMRotate's otherwise
    cls = DATASETS.get(kind if '.' in kind else f'{scope}.{kind}') or DATASETS.get(kind)
    if cls is None:
        raise ConfigError(
            f'{key}.type: {kind!r} is not a registered data set. Correct the name, or name the '
            'module that has it in custom_imports.'
        )
    return cls


def class_names(dataset: Mapping[str, Any], cls: type) -> Sequence[str]:
    """What a data set will call its classes; nothing if only reading its files tells.

    Args:
        dataset: Its config. A file of names that is not there is :func:`missing_files`' to say.
        cls: As :func:`dataset_class` finds it.
    """
    if cls.__name__ == 'HRSCDataset' and not dataset.get('classwise'):
        return ('ship',)  # set when it is built, whatever its METAINFO says
    metainfo = dict(getattr(cls, 'METAINFO', {}), **dataset.get('metainfo') or {})
    classes = metainfo.get('classes', ())
    if not isinstance(classes, str):
        return classes
    return () if _is_no_list(classes) else list_from_file(classes)


def training_classes(cfg: Mapping[str, Any]) -> Sequence[str] | None:
    """Class names of the data set that a config trains on; None if it does not tell.

    Raises:
        ConfigError: The type of the data set is missing, or not registered.
    """
    loader = cfg.get('train_dataloader') or {}
    found = next(plain_datasets(loader.get('dataset'), 'train_dataloader.dataset'), None)
    if found is None:
        return None
    key, dataset = found  # the first, by whose names several data sets together go
    cls = dataset_class(key, dataset, cfg.get('default_scope'))
    return class_names(dataset, cls) or None


def missing_files(dataset: Mapping[str, Any], key: str) -> Iterator[str]:
    """Complaints about what a data set names and does not find.

    Args:
        dataset: No wrapper.
        key: Its key in the config.
    """
    classes = (dataset.get('metainfo') or {}).get('classes')
    if isinstance(classes, str) and _is_no_list(classes):
        yield (
            f'{key}.metainfo.classes: found the text {classes!r}, which is no file (looked for at '
            f'{Path(classes).absolute()}), expected a file with a name in each line, or a tuple of '
            f'names, in which one alone takes a comma: ({classes!r},)'
        )
    if not is_local(dataset):
        return
    root = dataset.get('data_root') or ''
    if root and not Path(root).is_dir():
        # What is below it is missing too; one line says enough.
        yield _complaint(f'{key}.data_root', 'folder', root, '')
        return
    ann_file = dataset.get('ann_file')
    if ann_file and not _below(root, ann_file).exists():
        yield _complaint(f'{key}.ann_file', 'file', ann_file, root)
    for name, prefix in (dataset.get('data_prefix') or {}).items():
        if prefix and not is_remote(prefix) and not _below(root, prefix).is_dir():
            yield _complaint(f'{key}.data_prefix.{name}', 'folder', prefix, root)


def _is_no_list(classes: str) -> bool:
    """Whether a text in place of class names is no file, which MMDetection takes for the names.

    It looks for the file here, wherever the rest of the data set is.
    """
    return not is_remote(classes) and not Path(classes).is_file()


def _evaluator(evaluator: Mapping[str, Any], key: str) -> Iterator[str]:
    if 'metrics' in evaluator:
        yield from _section(evaluator['metrics'], f'{key}.metrics')
    ann_file = evaluator.get('ann_file')
    if ann_file and is_local(evaluator) and not Path(ann_file).exists():
        yield _complaint(f'{key}.ann_file', 'file', ann_file, '')


def is_local(section: Mapping[str, Any]) -> bool:
    """Whether its paths are on a file system; a storage server's content is not looked up."""
    backend = (section.get('backend_args') or {}).get('backend', 'local')
    paths = (section.get('data_root'), section.get('ann_file'))
    return backend == 'local' and not any(map(is_remote, paths))


def is_remote(path: str | None) -> bool:
    """Whether a path is one of a server."""
    return bool(path) and '://' in path


def _below(root: str, path: str) -> Path:
    """The path as the data set completes it: a relative one starts at the root."""
    return Path(root, path)


def _complaint(key: str, kind: str, found: str, root: str) -> str:
    return (
        f"{key}: {kind} '{found}' not found (expected at {_below(root, found).absolute()}); put "
        f'the data there, or say where it is: --cfg-options {key}=PATH'
    )
