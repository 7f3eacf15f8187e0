"""The recipes' weights and temperatures are the published ones."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from ld_plugin import recipes

#: loss weight and temperature of every loss that has them, in the order of the recipe
PUBLISHED = dict(
    ld_main=[(0.25, 10)],
    ld_kd=[(0.25, 10), (10, 2)],
    ld_full=[(0.25, 10), (0.25, 10), (10, 2)],
    ld_voc=[(0.25, 10), (0.25, 10), (10, 2)],
    ld_retina=[(5, 10), (0.15, 10), (10, 8)],
    ld_point=[(0.25, 10), (0.0625, 10), (10, 2)],
    rotated_ld_gwd=[(10, 5), (20, 5)],
    rotated_ld_kld=[(15, 5), (15, 5)],
    imitation_everywhere=[(2, None)],
    fitnet=[(2, None)],
    imitation_inside_gt=[(2, None)],
    imitation_main=[(2, None)],
    imitation_fine_grained=[(2, None)],
    imitation_decoupled=[(2, None), (4, None)],
    imitation_gi=[(2, None)],
    bckd=[(1, None), (4, None)],
    rm_pfi=[(4, None), (4, None), (1.5, None)],
    pkd=[(6, None)],
    # whose weights are the distillers' own, or their defaults: tests/distillers/test_defaults.py
    defeat=[],
    defeat_two_stage=[],
    crosskd=[],
)


MAIN, VALUABLE, EVERYWHERE = 'MainRegion', 'ValuableLocalizationRegion', 'EverywhereRegion'
#: the region of every loss, in the order of the recipe
REGIONS = dict(
    ld_main=[MAIN],
    ld_kd=[MAIN, MAIN],
    ld_full=[MAIN, VALUABLE, MAIN],
    ld_voc=[MAIN, VALUABLE, VALUABLE],
    ld_retina=[MAIN, VALUABLE, MAIN],
    ld_point=[MAIN, VALUABLE, MAIN],
    rotated_ld_gwd=['OverlapRegion', 'OverlapRegion'],
    rotated_ld_kld=['OverlapRegion', 'OverlapRegion'],
    imitation_everywhere=[EVERYWHERE],
    fitnet=[EVERYWHERE],
    imitation_inside_gt=['InsideGTRegion'],
    imitation_main=[MAIN],
    imitation_fine_grained=['FineGrainedRegion'],
    imitation_decoupled=['InsideGTRegion', 'BackgroundRegion'],
    imitation_gi=['GIRegion'],
    bckd=[EVERYWHERE, EVERYWHERE],
    rm_pfi=[None, None, EVERYWHERE],
    pkd=[EVERYWHERE],
    defeat=['GTCellsRegion', None],
    defeat_two_stage=['GTCellsRegion', None],
    crosskd=[None],
)


def weights_in(part: Any) -> Iterator[tuple[float, float | None]]:
    if isinstance(part, Mapping):
        if 'loss_weight' in part:
            yield part['loss_weight'], part.get('temperature')
        for value in part.values():
            yield from weights_in(value)


def test_no_recipe_is_left_out() -> None:
    names = {name for name, value in vars(recipes).items() if isinstance(value, dict)}
    public = {name for name in names if not name.startswith('_')}
    assert public == PUBLISHED.keys() == REGIONS.keys()


@pytest.mark.parametrize('name', PUBLISHED)
def test_weights_and_temperatures(name: str) -> None:
    assert list(weights_in(getattr(recipes, name))) == PUBLISHED[name]


@pytest.mark.parametrize('name', REGIONS)
def test_regions(name: str) -> None:
    recipe = getattr(recipes, name).values()
    assert [distiller.get('region', {}).get('type') for distiller in recipe] == REGIONS[name]


def test_retinanets_region_is_without_positives() -> None:
    assert recipes.ld_retina['ld_vlr']['region']['exclude_positives'] is True


def test_what_bckd_is_divided_and_modulated_by() -> None:
    classes = recipes.bckd['bckd_cls']
    assert (classes['normalizer'], classes['loss']['beta']) == ('positives', 1)


def test_ranks_are_of_classes_and_of_boxes() -> None:
    assert [recipes.rm_pfi[key]['on'] for key in ('rm', 'rm_box')] == ['score', 'iou']


@pytest.mark.parametrize('name', ['defeat', 'defeat_two_stage'])
def test_weights_of_objects_and_background(name: str) -> None:
    neck = getattr(recipes, name)['defeat_neck']
    assert (neck['object_weight'], neck['background_weight']) == (3, 12)


def test_layer_of_cross_head_distillation() -> None:
    assert recipes.crosskd['crosskd']['layer'] == 3
