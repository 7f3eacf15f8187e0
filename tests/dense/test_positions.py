import pytest
import torch

from ld_plugin.dense import Positions
from ld_plugin.dense.outputs import level_rows
from ld_plugin.dense.positions import mean_counts

SIZES = [(3, 4), (2, 3), (1, 1)]
IMAGES = 2


@pytest.fixture(params=[1, 3, 9])
def anchors(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def shapes(anchors):
    return [(h, w, anchors) for h, w in SIZES]


@pytest.fixture
def maps(anchors):
    return [torch.randn(IMAGES, anchors * 5, h, w, requires_grad=True) for h, w in SIZES]


@pytest.fixture
def mask(anchors):
    return torch.rand(IMAGES, sum(h * w * anchors for h, w in SIZES)) < 0.3


def read_one_by_one(maps, mask, anchors):
    """(K, D) by level, image, row, column, anchor: channels a * D to (a + 1) * D at each place."""
    rows, start = [], 0
    for level in maps:
        _, channels, height, width = level.shape
        depth = channels // anchors
        for image in range(IMAGES):
            prior = start
            for row in range(height):
                for column in range(width):
                    for anchor in range(anchors):
                        if mask[image, prior]:
                            here = slice(anchor * depth, (anchor + 1) * depth)
                            rows.append(level[image, here, row, column])
                        prior += 1
        start = prior
    return torch.stack(rows)


def test_gather_reads_the_selected_priors(maps, mask, shapes, anchors):
    at = Positions.from_mask(mask, shapes)
    assert torch.equal(at.gather(maps), read_one_by_one(maps, mask, anchors))


def test_gather_agrees_with_flattened_maps(maps, mask, shapes, anchors):
    at = Positions.from_mask(mask, shapes)
    rows = torch.cat([level_rows(m, anchors) for m in maps], dim=1)
    assert torch.equal(at.gather(maps), at.take(rows))


def test_take_reads_values_of_every_prior(mask, shapes):
    at = Positions.from_mask(mask, shapes)
    numbers = torch.arange(mask.numel()).view(mask.shape)
    assert torch.equal(at.take(numbers).sort().values, numbers[mask])
    assert torch.equal(at.take(numbers) % mask.shape[1], at.prior_index)


def test_gradients_reach_the_selected_priors_only(maps, mask, shapes, anchors):
    Positions.from_mask(mask, shapes).gather(maps).sum().backward()
    touched = torch.cat([level_rows(m.grad, anchors) for m in maps], dim=1)
    assert torch.equal(touched, mask[..., None].expand_as(touched).float())


def test_counts_and_the_mean_of_every_level(mask, shapes):
    at = Positions.from_mask(mask, shapes)
    parts = mask.split([h * w * a for h, w, a in shapes], dim=1)
    assert at.counts.tolist() == [float(part.sum()) for part in parts]
    # the weights of one level's positions sum to 1
    weights = (1 / at.mean_level_count).split([len(index) for index in at.indices])
    for part, found in zip(weights, at.counts, strict=True):
        assert part.sum().item() == pytest.approx(1.0 if found else 0.0)


def test_means_of_levels_are_over_all_processes(mask, shapes, monkeypatch):
    # of which there are two, and the other one holds nothing
    monkeypatch.setattr(
        'ld_plugin.dense.positions.reduce_mean', lambda counts: counts.clone().div_(2)
    )
    at = Positions.from_mask(mask, shapes)
    assert at.mean_level_counts.tolist() == [count / 2 for count in at.counts.tolist()]
    assert torch.equal(at.mean_level_count.unique(), at.mean_level_counts.unique())


def test_cells_of_priors(mask, shapes, anchors):
    cells = Positions.cells_from_mask(mask, shapes)
    features = [torch.randn(IMAGES, 2, h, w) for h, w in SIZES]
    any_prior = mask.unflatten(1, (-1, anchors)).any(-1)
    assert torch.equal(cells.gather(features), read_one_by_one(features, any_prior, 1))


def test_an_empty_selection_still_carries_a_gradient(maps, mask, shapes):
    at = Positions.from_mask(torch.zeros_like(mask), shapes)
    rows = at.gather(maps)
    assert rows.shape == (0, 5)
    assert at.mean_level_count.shape == (0,)
    rows.sum().backward()
    assert not any(level.grad.any() for level in maps)


def test_mean_counts_below_1_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    # one of them, on one of two processes
    monkeypatch.setattr(
        'ld_plugin.dense.positions.reduce_mean', lambda counts: counts.clone().div_(2)
    )
    masks = [torch.tensor([True, False]), torch.tensor([True] * 4), torch.tensor([False])]
    assert mean_counts(masks).tolist() == [0.5, 2, 1]
