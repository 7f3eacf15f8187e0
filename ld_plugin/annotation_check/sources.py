"""What there is to check: the data sets of a config, or what lies in a folder."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.fileio import list_from_file

from ..data_check import (
    class_names,
    dataset_class,
    is_local,
    is_remote,
    missing_files,
    plain_datasets,
)
from .coco import check_coco
from .dota import check_dota, check_dota_images
from .report import Problem, Report
from .xml_files import check_hrsc, check_voc

#: keys of a data set; those that differ in other ones alone read the same
_WHAT_IS_READ = (
    'type', 'data_root', 'ann_file', 'data_prefix', 'ann_subdir', 'img_subdir', 'img_suffix',
    'metainfo', 'classwise', 'backend_args',
)  # fmt: skip
_SHIP = '1000000'  # that HRSC2016's ids of classes begin with, and MMRotate's do not


@dataclass(frozen=True)
class Source:
    """Annotations, and how to check them.

    Attributes:
        name: The annotations' path, and the config's key where there is one.
        check: Reads them and says what is wrong.
    """

    name: str
    check: Callable[[], Report]


# --- of a config ----------------------------------------------------------------------------------


def config_sources(cfg: Mapping[str, Any], sections: Sequence[str]) -> list[Source]:
    """The data sets of a config's data loaders, also inside of wrappers; each once.

    Args:
        cfg: A whole config whose ``custom_imports`` have been imported.
        sections: Keys of data loaders.

    Raises:
        ConfigError: The type of a data set is not registered.
    """
    found: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for section in sections:
        loader = cfg.get(section) or {}
        for key, dataset in plain_datasets(loader.get('dataset'), f'{section}.dataset'):
            files = [dataset.get(name) for name in _WHAT_IS_READ]
            found.setdefault(repr(files), []).append((key, dataset))
    scope = cfg.get('default_scope')
    return [
        # of those that read the same, the one that leaves most out
        _of_dataset(', '.join(keys), max(datasets, key=_min_sizes), scope)
        for keys, datasets in (zip(*same, strict=True) for same in found.values())
    ]


def _of_dataset(key: str, dataset: Mapping[str, Any], scope: str | None) -> Source:
    cls = dataset_class(key, dataset, scope)
    files = dataset.get('ann_file') or _prefix(dataset, 'img_path')
    name = f'{_path(dataset, files)} ({key})'
    if missing := list(missing_files(dataset, key.split(',')[0])):
        return Source(name, lambda: Report([Problem(*text.split(': ', 1)) for text in missing]))
    if not is_local(dataset) or any(map(is_remote, (dataset.get('data_prefix') or {}).values())):
        return _unchecked(name, 'it is on a storage server')
    # a data set that reads its files in its own way is not one of those below
    readers = (c.__name__ for c in cls.__mro__ if 'load_data_list' in vars(c))
    reader = next(readers, cls.__name__)
    if reader not in _DATASETS:
        return _unchecked(name, f'there is no check for what {reader} reads')
    if missing := _missing_key(dataset, cls, reader):
        problem = Problem(f'{key}.{missing[0]}', f'missing, {missing[1]}')
        return Source(name, lambda: Report([problem]))
    return Source(name, lambda: _DATASETS[reader](dataset, cls))


def _missing_key(dataset: Mapping[str, Any], cls: type, reader: str) -> tuple[str, str] | None:
    """A key without which the files are not found, and what stands there."""
    if reader != 'DOTADataset' and not dataset.get('ann_file'):
        return 'ann_file', 'expected the file of annotations or names'
    prefixes = dataset.get('data_prefix')
    if prefixes is None:
        if cls.__module__.split('.')[0] not in ('mmdet', 'mmrotate'):
            return None  # a class of one's own may have defaults of its own
        prefixes = {}
    needed = dict(CocoDataset='img', DOTADataset='img_path').get(reader)
    if needed and needed not in prefixes and (prefixes or needed == 'img'):
        return f'data_prefix.{needed}', 'expected the folder of the images'
    at_root = dataset.get('data_root') and 'sub_data_root' not in prefixes
    if reader in ('XMLDataset', 'HRSCDataset') and at_root:
        return (
            'data_prefix.sub_data_root',
            'so its folders count from the current one, not from data_root. Expected a folder '
            "below data_root, or '' for data_root itself",
        )
    return None


def _unchecked(name: str, why: str) -> Source:
    problem = Problem(name, f'not checked: {why}', is_error=False)
    return Source(name, lambda: Report([problem]))


def _path(dataset: Mapping[str, Any], relative: str) -> Path:
    return Path(dataset.get('data_root') or '', relative)


def _prefix(dataset: Mapping[str, Any], name: str) -> str:
    return (dataset.get('data_prefix') or {}).get(name, '')


def _dota_dataset(dataset: Mapping[str, Any], cls: type) -> Report:
    images = _path(dataset, _prefix(dataset, 'img_path'))
    suffix = dataset.get('img_suffix', 'png')
    if not dataset.get('ann_file'):
        return check_dota_images(images, suffix)
    return check_dota(
        _path(dataset, dataset['ann_file']), images, class_names(dataset, cls), suffix
    )


def _coco_dataset(dataset: Mapping[str, Any], cls: type) -> Report:
    images = _path(dataset, _prefix(dataset, 'img'))
    file, classes = _path(dataset, dataset['ann_file']), class_names(dataset, cls)
    return check_coco(file, images, classes, _min_sizes(dataset)[0])


def _voc_dataset(dataset: Mapping[str, Any], cls: type) -> Report:
    folders = _xml_and_images(dataset, 'JPEGImages')
    classes = class_names(dataset, cls)
    return check_voc(*folders, _listed(dataset), classes, *_min_sizes(dataset))


def _hrsc_dataset(dataset: Mapping[str, Any], cls: type) -> Report:
    ids = None
    if dataset.get('classwise'):
        metainfo = cls.METAINFO | (dataset.get('metainfo') or {})
        ids = {_SHIP + number for number in metainfo['classes_id']}
    folders = _xml_and_images(dataset, 'AllImages')
    return check_hrsc(*folders, _listed(dataset), ids, *_min_sizes(dataset))


def _min_sizes(dataset: Mapping[str, Any]) -> tuple[float, float]:
    """Of images and of boxes, in pixels, below which training does without them."""
    filters = {} if dataset.get('test_mode') else dataset.get('filter_cfg') or {}
    return filters.get('min_size') or 0, filters.get('bbox_min_size') or 0


def _listed(dataset: Mapping[str, Any]) -> list[str]:
    return list_from_file(_path(dataset, dataset['ann_file']))


def _xml_and_images(dataset: Mapping[str, Any], images: str) -> tuple[Path, Path]:
    root = _path(dataset, _prefix(dataset, 'sub_data_root'))
    annotations = dataset.get('ann_subdir', 'Annotations')
    return root / annotations, root / dataset.get('img_subdir', images)


#: by the class that reads the files: DOTAv15Dataset is a DOTADataset with other classes
_DATASETS = dict(
    DOTADataset=_dota_dataset,
    CocoDataset=_coco_dataset,
    XMLDataset=_voc_dataset,
    HRSCDataset=_hrsc_dataset,
)


# --- in a folder ----------------------------------------------------------------------------------


def folder_sources(folder: Path, classes: Sequence[str] | None = None) -> list[Source]:
    """What lies in a folder, or below it, in one of the known forms.

    - DOTA: ``*.txt`` in ``annfiles`` (for data sets) or ``labelTxt...`` (for the splitting tool),
      beside ``images``;
    - COCO: ``*.json``, with the images anywhere in its folder or the one above;
    - VOC and HRSC2016: ``Annotations/*.xml``, beside ``JPEGImages`` or ``AllImages``.

    Args:
        folder: Where to look.
        classes: Class names that may occur; None lets every name pass. HRSC2016 has ids instead.
    """
    found = []
    for path in [folder, *sorted(p for p in folder.rglob('*') if p.is_dir())]:
        if path.name == 'Annotations' and (files := sorted(path.glob('*.xml'))):
            found.append(_of_xml_folder(files, classes))
        if (named := _text_folder(path, folder)) and next(path.glob('*.txt'), None):
            found.append(_of_text_folder(path, named, classes))
        found += [_of_json(f, classes) for f in sorted(path.glob('*.json')) if _looks_like_coco(f)]
    return found


def _text_folder(path: Path, top: Path) -> Path | None:
    """The folder of DOTA's text files, by its name, that a path is or lies in."""
    between = [p for p in (path, *path.parents) if p == top or top in p.parents]
    named = [p for p in between if p.name == 'annfiles' or p.name.startswith('labelTxt')]
    return named[-1] if named else None


def _of_text_folder(path: Path, named: Path, classes: Sequence[str] | None) -> Source:
    raw, images = named.name != 'annfiles', named.parent / 'images'
    # of what has a text, so not of a file that some other program left there
    suffixes = Counter(p.suffix for p in images.glob('*') if (path / f'{p.stem}.txt').is_file())
    (usual, _), *_ = suffixes.most_common(1) or [('.png', 0)]
    suffix = 'png' if '.png' in suffixes else usual.removeprefix('.')
    return Source(str(path), lambda: check_dota(path, images, classes, suffix, raw))


def _of_xml_folder(files: Sequence[Path], classes: Sequence[str] | None) -> Source:
    folder, names = files[0].parent, [file.stem for file in files]
    if (folder.parent / 'AllImages').is_dir():
        return Source(str(folder), lambda: check_hrsc(folder, folder.parent / 'AllImages', names))
    images = folder.parent / 'JPEGImages'
    return Source(str(folder), lambda: check_voc(folder, images, names, classes))


def _looks_like_coco(file: Path) -> bool:
    """By the names of its tables, so that a broken file is one, too."""
    text = file.read_bytes()
    # COCO has captions and segments in files of their own
    others = b'"segments_info"' in text or (b'"caption"' in text and b'"bbox"' not in text)
    return b'"images"' in text and b'"annotations"' in text and not others


def _of_json(file: Path, classes: Sequence[str] | None) -> Source:
    return Source(str(file), lambda: check_coco(file, classes=classes))
