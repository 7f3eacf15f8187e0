"""Print which recipes work with which detection heads, as Markdown.

    python tools/list_methods.py
    python tools/list_methods.py --reasons
    python tools/list_methods.py --update README.md

In the first table a row is a head that the plugin reads, and the columns hold the recipes of
``ld_plugin.recipes``; those that work with the same heads share one. Every cell is tried: the
recipe's distillers are built between two heads of that kind, as when a model is built. ``yes``
stands where they can be, a dash where the head lacks what one of them needs; ``--reasons`` says
what. The second table says of every distiller what it reads, and where and how by default.

``--update`` writes the tables between the comments ``<!-- list_methods -->`` and
``<!-- end of list_methods -->`` of a file. Heads of packages that are not installed are left out.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for a checkout without installation

from mmdet.registry import MODELS
from mmengine.registry import DefaultScope
from recipe_names import RECIPES

from ld_plugin import ConfigError
from ld_plugin.dense import HeadSpec, get_reader, registered_heads
from ld_plugin.dense.rois import RoIReader
from ld_plugin.detectors.model_config import read_config
from ld_plugin.distillers import build_distillers
from ld_plugin.packages import is_installed
from ld_plugin.registry import DISTILLERS

#: a config in which each head stands, or could stand; FSAF's has no reader, as other heads
CONFIGS = {
    'GFLHead': 'mmdet::gfl/gfl_r50_fpn_1x_coco.py',
    'GFLV2Head': 'ld_plugin::ld/gflv2_r50_fpn_1x_coco.py',
    'RetinaHead': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'RetinaSepBNHead': 'mmdet::nas_fpn/retinanet_r50_fpn_crop640-50e_coco.py',
    'DistributionRetinaHead': 'ld_plugin::ld/dist-retinanet_r50_fpn_1x_coco.py',
    'FCOSHead': 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'DistributionFCOSHead': 'ld_plugin::ld/dist-fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'ATSSHead': 'mmdet::atss/atss_r50_fpn_1x_coco.py',
    'DistributionATSSHead': 'ld_plugin::ld/dist-atss_r50_fpn_1x_coco.py',
    'PAAHead': 'mmdet::paa/paa_r50_fpn_1x_coco.py',
    'TOODHead': 'mmdet::tood/tood_r50_fpn_1x_coco.py',
    'VFNetHead': 'mmdet::vfnet/vfnet_r50_fpn_1x_coco.py',
    'RTMDetHead': 'mmdet::rtmdet/rtmdet_l_8xb32-300e_coco.py',
    'YOLOXHead': 'mmdet::yolox/yolox_s_8xb8-300e_coco.py',
    'RPNHead': 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'FSAFHead': 'mmdet::fsaf/fsaf_r50_fpn_1x_coco.py',
    'AngleBranchRetinaHead': (
        'mmrotate::psc/rotated-retinanet-rbox-le90_r50_fpn_psc-dual_amp-1x_dota.py'
    ),
    'RotatedFCOSHead': 'mmrotate::rotated_fcos/rotated-fcos-le90_r50_fpn_1x_dota.py',
    'RotatedRTMDetHead': 'mmrotate::rotated_rtmdet/rotated_rtmdet_l-3x-dota.py',
    'DistributionRotatedRetinaHead': (
        'mmrotate::rotated_retinanet/rotated-retinanet-rbox-le90_r50_fpn_1x_dota.py'
    ),
    'DistributionRotatedFCOSHead': 'mmrotate::rotated_fcos/rotated-fcos-le90_r50_fpn_1x_dota.py',
    'OrientedRPNHead': 'mmrotate::oriented_rcnn/oriented-rcnn-le90_r50_fpn_1x_dota.py',
}
#: heads of the plugin's that replace the one in their config
REPLACING = ('DistributionRotatedRetinaHead', 'DistributionRotatedFCOSHead')
BEGIN, END = '<!-- list_methods -->', '<!-- end of list_methods -->'
Refusals = dict[str, dict[str, str]]
"""By head and recipe why it cannot be built; an empty text where it can."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--reasons', action='store_true', help='say what stands behind each dash')
    parser.add_argument('--update', type=Path, metavar='FILE', help='write the tables into FILE')
    args = parser.parse_args(arguments)
    if args.update and not args.update.is_file():
        parser.error(f'--update: there is no file {args.update}')
    specs = read_specs()
    refusals = try_all(specs)
    tables = f'{head_table(refusals)}\n{distiller_table(list(specs.values()))}'
    if args.update:
        args.update.write_text(with_tables(args.update.read_text(), tables))
        return
    sys.stdout.reconfigure(errors='backslashreplace')  # the terminal may have no letter for a dash
    print(tables)
    if args.reasons:
        print(list_reasons(refusals))


def with_tables(text: str, tables: str) -> str:
    """``text`` with the tables between the two comments."""
    try:
        before, rest = text.split(BEGIN)
        _, after = rest.split(END)
    except ValueError:
        raise SystemExit(f'--update: expected {BEGIN} and {END} in the file, once each.') from None
    return f'{before}{BEGIN}\n\n{tables}\n{END}{after}'


def read_specs() -> dict[str, HeadSpec]:
    """What every head predicts that is registered or has a config here, if it is installed."""
    unknown = set(registered_heads()) - set(CONFIGS)
    if unknown:
        raise SystemExit(f'CONFIGS: add a config that shows {", ".join(sorted(unknown))}.')
    return {
        head: read_spec(config, dict(type=f'mmdet.{head}') if head in REPLACING else {})
        for head, config in CONFIGS.items()
        if is_installed(config.split('::')[0])
    }


def read_spec(name: str, changes: Mapping[str, Any]) -> HeadSpec:
    """Of the dense head in a config, with changes to it, and of the second stage behind it."""
    config = read_config(name)
    model = config.model
    key = 'bbox_head' if 'bbox_head' in model else 'rpn_head'
    settings = {
        part: model[part].get('rpn', model[part]) if model.get(part) else None
        for part in ('train_cfg', 'test_cfg')
    }
    with DefaultScope.overwrite_default_scope(config.default_scope):
        spec = get_reader(MODELS.build({**model[key], **changes, **settings})).spec
        if 'roi_head' not in model:
            return spec
        rois = RoIReader.find(MODELS.build(model.roi_head))
    return replace(spec, rois=rois.spec if rois else None)


def try_all(specs: Mapping[str, HeadSpec]) -> Refusals:
    return {
        head: {name: refusal(recipe, spec) for name, recipe in RECIPES.items()}
        for head, spec in specs.items()
    }


def refusal(recipe: Mapping[str, Any], spec: HeadSpec) -> str:
    """Why a recipe cannot be built between two heads of a kind; empty if it can."""
    try:
        build_distillers(recipe, spec, spec)
    except ConfigError as error:
        return str(error)
    return ''


def head_table(refusals: Refusals) -> str:
    columns: dict[tuple[bool, ...], list[str]] = {}
    for name in RECIPES:
        works = tuple(not of_head[name] for of_head in refusals.values())
        columns.setdefault(works, []).append(name)
    header = ['head', *(', '.join(f'`{name}`' for name in names) for names in columns.values())]
    rows = [
        [f'`{head}`', *('yes' if column[index] else '–' for column in columns)]
        for index, head in enumerate(refusals)
    ]
    return markdown(header, rows)


def list_reasons(refusals: Refusals) -> str:
    """A line for every head and reason, with the recipes that it concerns."""
    lines = []
    for head, of_head in refusals.items():
        for reason in dict.fromkeys(filter(None, of_head.values())):
            names = ', '.join(f'`{name}`' for name, found in of_head.items() if found == reason)
            lines.append(f'- `{head}`, {names}: {reason}')
    return '\n'.join(lines) + '\n'


def distiller_table(specs: Sequence[HeadSpec]) -> str:
    """Of every registered distiller, built between two heads of the first kind that it accepts."""
    rows = []
    for name in sorted(DISTILLERS.module_dict):
        recipe = {'it': dict(type=name)}
        spec = next(spec for spec in specs if not refusal(recipe, spec))
        distiller = build_distillers(recipe, spec, spec)['it']
        reads = sorted(distiller.reads_of_teacher | distiller.reads_of_student)
        parts = (distiller.region, distiller.loss)
        names = [f'`{type(part).__name__}`' if part is not None else '–' for part in parts]
        rows.append([f'`{name}`', ', '.join(read.replace('_', ' ') for read in reads), *names])
    return markdown(['distiller', 'reads', 'region by default', 'loss by default'], rows)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines) + '\n'


if __name__ == '__main__':
    main()
