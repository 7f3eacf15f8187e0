"""Make a small detection data set out of handwritten digits and photographs.

    python tools/make_digits.py OUT [--train 400 --val 100 --test 200] [--size 320x240] [--seed 0]

The digits are the 1797 scans of scikit-learn's ``load_digits`` (10 classes); they are pasted in
varying size, proportion, colour, contrast and angle, overlapping at times, on crops of
scikit-learn's two sample photographs. The splits share neither scans nor background: every scan
belongs to one split, and each photograph is cut into one strip per split, out of which a scene's
crop is taken before anything else (flip, scaling) happens to it.

The same scenes are written in three formats, and the images are stored once::

    OUT/digits.json                               options, counts, scans and background per split
    OUT/JPEGImages/{split}_{index:06}.jpg         all images
    OUT/annotations/{train,val,test}.json         COCO
    OUT/Annotations/*.xml, ImageSets/Main/*.txt   PASCAL VOC
    OUT/dota/{train,val,test}/{images,annfiles}   DOTA (images are hard links, else copies)

Every format is read by the stock data sets; `dataset_configs` gives the same options in Python::

    dict(type='CocoDataset', data_root='OUT', ann_file='annotations/train.json',
         data_prefix=dict(img='JPEGImages/'), metainfo=dict(classes=('zero', ..., 'nine')))
    dict(type='XMLDataset', data_root='OUT', ann_file='ImageSets/Main/train.txt',
         data_prefix=dict(sub_data_root=''), metainfo=dict(classes=('zero', ..., 'nine')))
    dict(type='mmrotate.DOTADataset', data_root='OUT', ann_file='dota/train/annfiles/',
         data_prefix=dict(img_path='dota/train/images/'), img_suffix='jpg',
         metainfo=dict(classes=('zero', ..., 'nine')))

(JPEG because `XMLDataset` looks for ``.jpg`` only.)

Coordinates are in pixels, pixel i reaching from i to i + 1. The axis-aligned box is the extent of
the digit's ink as pasted, cut at the image border; what other digits hide still counts. The
quadrilateral is the rectangle around the ink of the upright digit, turned with it (clockwise from
the digit's own top left corner) and not cut, so it may reach out of the image a little. The COCO
files have it as `segmentation`. VOC counts pixels from 1 and includes the last one, which stock
`XMLDataset` reads as a box that ends one pixel early at the right and at the bottom, as it does
for every VOC data set.
No digit is placed that would hide more of an earlier one than `--max-hidden`, so that nothing is
annotated which cannot be recognised, and `difficult` is always 0.

The same options give the same bytes (with the same versions of numpy, OpenCV and scikit-learn).
Each scene has its own stream of random numbers, so the counts of one split change nothing in
another one, and a longer split begins with the scenes of a shorter one.
The folder appears under its name only when it is complete.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import socket
import sys
import xml.etree.ElementTree as ET
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import sklearn
from command_line import image_size
from rich.progress import track
from sklearn.datasets import load_digits, load_sample_images

CLASSES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
SPLITS = ('train', 'val', 'test')
DEFAULT_COUNTS = {'train': 400, 'val': 100, 'test': 200}
MARKER = 'digits.json'
FORMAT = 1  # goes up whenever the same options would give other files
LAYOUT = (MARKER, 'JPEGImages', 'annotations', 'Annotations', 'ImageSets', 'dota')

# The shares are fixed, not derived from the counts: another count must not move a scan or a strip.
SCAN_SHARES = {'train': 0.6, 'val': 0.15, 'test': 0.25}
# Fractions of a photograph's width. Mirrored, so that no split has only sky or only petals.
STRIPS = {
    'china.jpg': {'train': (0.0, 0.47), 'val': (0.47, 0.70), 'test': (0.70, 1.0)},
    'flower.jpg': {'test': (0.0, 0.30), 'val': (0.30, 0.53), 'train': (0.53, 1.0)},
}
STRIP_MARGIN = 4  # px left out on each side of a cut: JPEG blocks mix neighbouring pixels

FINE = 16  # samples per scan pixel of the smooth digit
MIN_SIDE, MAX_SIDE = 96, 4096  # px
MIN_DIGIT = 8  # px, the height of a scan: below it even the scan's own detail is lost
MIN_INSIDE = 0.85  # least share of a digit's ink inside the image
MIN_ALPHA = 0.1  # paler than this is no ink
TRIES = 25  # placements tried per digit
MIN_CONTRAST = 38.0  # CIE76 colour difference that four fifths of the ink have to reach


class DigitsError(ValueError):
    """Options or a folder that cannot be used; the message is meant for the user."""


class FolderError(DigitsError):
    """A folder that cannot be used."""


@dataclass(frozen=True)
class Options:
    """Everything that decides what is written. Lengths in px, angles in degrees."""

    counts: dict[str, int] = field(default_factory=lambda: dict(DEFAULT_COUNTS))
    width: int = 320
    height: int = 240
    seed: int = 0
    min_digits: int = 1
    max_digits: int = 8
    min_height: int | None = None
    max_height: int | None = None
    max_angle: float = 45.0
    max_hidden: float = 0.4
    distractors: int = 3
    quality: int = 92

    def __post_init__(self) -> None:
        unknown = set(self.counts) - set(SPLITS)
        if unknown:
            raise DigitsError(f'unknown split {sorted(unknown)[0]!r}; there are train, val, test')
        # Digits follow the image size unless asked otherwise, so that any size is usable as it is.
        side = min(self.width, self.height)
        low, high = max(12, round(side * 0.1)), round(side * 0.46)
        if self.min_height is None:
            given = self.max_height if self.max_height is not None else low
            object.__setattr__(self, 'min_height', max(MIN_DIGIT, min(low, given)))
        if self.max_height is None:
            object.__setattr__(self, 'max_height', max(high, self.min_height))
        object.__setattr__(self, 'counts', {s: self.counts.get(s, 0) for s in SPLITS})
        # So that 45 and 45.0 are written the same.
        object.__setattr__(self, 'max_angle', float(self.max_angle))
        object.__setattr__(self, 'max_hidden', float(self.max_hidden))
        _check_options(self)


def _check_options(options: Options) -> None:
    """Raises `DigitsError` for the first option that cannot be met."""
    o, side = options, min(options.width, options.height)
    whole = {f'--{split}': count for split, count in o.counts.items()}
    names = (
        'width',
        'height',
        'seed',
        'min_digits',
        'max_digits',
        'min_height',
        'max_height',
        'distractors',
        'quality',
    )
    whole.update({'--' + name.replace('_', '-'): getattr(o, name) for name in names})
    for name, value in whole.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise DigitsError(f'{name} must be a whole number, not {value!r}')
        if value < 0:
            raise DigitsError(f'{name} must not be negative, but is {value}')
    rules = [
        (any(o.counts.values()), 'nothing to make: --train, --val and --test are all 0'),
        (max(o.counts.values()) <= 999_999, 'at most 999999 images per split'),
        (
            side >= MIN_SIDE and max(o.width, o.height) <= MAX_SIDE,
            f'--size {o.width}x{o.height}: both sides must be from {MIN_SIDE} to {MAX_SIDE} px',
        ),
        (1 <= o.max_digits <= 100, f'--max-digits must be from 1 to 100, but is {o.max_digits}'),
        (
            o.min_digits <= o.max_digits,
            f'--min-digits {o.min_digits} is more than --max-digits {o.max_digits}',
        ),
        (
            o.min_height >= MIN_DIGIT,
            f'--min-height {o.min_height}: digits lower than {MIN_DIGIT} px cannot be read',
        ),
        (
            o.min_height <= o.max_height,
            f'--min-height {o.min_height} is more than --max-height {o.max_height}',
        ),
        (
            o.max_height <= 0.6 * side,
            f'--max-height {o.max_height} is too much for images of {o.width}x{o.height}: at most '
            f'{int(0.6 * side)} (0.6 of the shorter side), so that turned digits fit',
        ),
        (0 <= o.max_angle <= 180, f'--max-angle must be from 0 to 180, but is {o.max_angle}'),
        (0 <= o.max_hidden <= 0.9, f'--max-hidden must be from 0 to 0.9, but is {o.max_hidden}'),
        (o.distractors <= 100, f'--distractors must be at most 100, but is {o.distractors}'),
        (10 <= o.quality <= 100, f'--quality must be from 10 to 100, but is {o.quality}'),
    ]
    for holds, message in rules:
        if not holds:
            raise DigitsError(message)


@dataclass
class Digit:
    """A pasted digit.

    Attributes:
        label: class index, equal to the digit.
        scan: index of the scan in `load_digits`.
        angle: clockwise rotation in degrees.
        quad: (4, 2) float, corners of the turned rectangle of its ink, x y in px.
        box: x0, y0, x1, y1 of its ink inside the image in whole px, x1 and y1 exclusive.
        corner: x, y of the pixel at the top left of `alpha`; `alpha` lies inside the image.
        alpha: (h, w) float32, opacity of the ink, 0 where there is none.
        colour: (3,) float32, BGR from 0 to 255.
        truncated: whether ink is cut off by the image border.
        visible: share of its ink inside the image that no later digit hides.
    """

    label: int
    scan: int
    angle: float
    quad: np.ndarray
    box: tuple[int, int, int, int]
    corner: tuple[int, int]
    alpha: np.ndarray
    colour: np.ndarray
    truncated: bool
    visible: float = 1.0

    @property
    def window(self) -> tuple[slice, slice]:
        """The rows and columns of the image that `alpha` covers."""
        (x, y), (h, w) = self.corner, self.alpha.shape
        return slice(y, y + h), slice(x, x + w)

    def mask(self, height: int, width: int) -> np.ndarray:
        """(height, width) bool: where this digit has ink, hidden by a later one or not."""
        mask = np.zeros((height, width), dtype=bool)
        mask[self.window] = self.alpha > 0
        return mask


@dataclass
class Scene:
    """What one image shows, before it is rendered.

    Attributes:
        background: (h, w, 3) float32, BGR from 0 to 255.
        digits: in the order in which they are painted.
        noise: (h, w, 1) float32, added at the end.
        photo: file name of the photograph behind.
        crop: x0, y0, x1, y1 in the photograph in px, x1 and y1 exclusive.
        flip: whether the crop is mirrored left to right.
    """

    background: np.ndarray
    noise: np.ndarray
    photo: str
    crop: tuple[int, int, int, int]
    flip: bool
    digits: list[Digit] = field(default_factory=list)


# --- sources and how the splits share them ---------------------------------------------------


@lru_cache(maxsize=1)
def load_scans() -> tuple[np.ndarray, np.ndarray]:
    """The scans, (n, 8, 8) float32 from 0 (paper) to 1 (ink), and their digits, (n,) int."""
    digits = load_digits()
    return (digits.images / 16.0).astype(np.float32), digits.target


@lru_cache(maxsize=1)
def load_photos() -> dict[str, np.ndarray]:
    """The sample photographs by file name, (h, w, 3) uint8 BGR."""
    bunch = load_sample_images()
    return {
        Path(name).name: np.ascontiguousarray(image[..., ::-1])
        for name, image in zip(bunch.filenames, bunch.images, strict=True)
    }


@lru_cache(maxsize=4)
def split_scans(seed: int) -> dict[str, list[list[int]]]:
    """The scans of each split, a list per class; each class is divided by `SCAN_SHARES`."""
    rng = np.random.default_rng(np.random.SeedSequence((seed, len(SPLITS))))
    parts: dict[str, list[list[int]]] = {split: [] for split in SPLITS}
    bounds = np.cumsum([SCAN_SHARES[split] for split in SPLITS])[:-1]
    for label in range(len(CLASSES)):
        scans = rng.permutation(np.flatnonzero(load_scans()[1] == label))
        cuts = np.round(bounds * len(scans)).astype(int)
        for split, part in zip(SPLITS, np.split(scans, cuts), strict=True):
            parts[split].append(sorted(part.tolist()))
    return parts


def split_regions(split: str) -> dict[str, tuple[int, int, int, int]]:
    """The part of each photograph a split may show: x0, y0, x1, y1 in px, x1, y1 exclusive."""
    regions = {}
    for name, photo in load_photos().items():
        height, width = photo.shape[:2]
        start, stop = STRIPS[name][split]
        x0 = math.ceil(start * width) + (STRIP_MARGIN if start > 0 else 0)
        x1 = math.floor(stop * width) - (STRIP_MARGIN if stop < 1 else 0)
        regions[name] = (x0, 0, x1, height)
    return regions


# --- one scene ---------------------------------------------------------------------------------


def make_scene(options: Options, split: str, index: int) -> Scene:
    """Composes scene `index` of a split; depends on nothing but its arguments."""
    rng = np.random.default_rng(np.random.SeedSequence((options.seed, SPLITS.index(split), index)))
    scene = _make_background(rng, options, split)
    canvas = scene.background.copy()
    # For each pixel the digit on top, to know how much every digit still shows.
    owner = np.full(canvas.shape[:2], -1, dtype=np.int16)
    scans = split_scans(options.seed)[split]
    for _ in range(rng.integers(options.min_digits, options.max_digits + 1)):
        label = int(rng.integers(len(CLASSES)))
        scan = int(rng.choice(scans[label]))
        digit = _place_digit(rng, options, label, scan, owner, scene.digits)
        if digit is None:
            continue
        _choose_ink(rng, digit, canvas)
        owner[digit.window][digit.alpha > 0] = len(scene.digits)
        scene.digits.append(digit)
        paint(canvas, digit)
    for number, digit in enumerate(scene.digits):
        digit.visible = float((owner == number).sum() / (digit.alpha > 0).sum())
    return scene


def render(scene: Scene) -> np.ndarray:
    """The image of a scene, (h, w, 3) uint8 BGR."""
    canvas = scene.background.copy()
    for digit in scene.digits:
        paint(canvas, digit)
    return np.clip(np.rint(canvas + scene.noise), 0, 255).astype(np.uint8)


def paint(canvas: np.ndarray, digit: Digit) -> None:
    """Paints a digit on a canvas, (h, w, 3) float32 BGR, in place."""
    under = canvas[digit.window]
    under += digit.alpha[..., None] * (digit.colour - under)


def _make_background(rng: np.random.Generator, options: Options, split: str) -> Scene:
    """A crop of the split's part of a photograph with changed light, and strokes on it."""
    photos, regions = load_photos(), split_regions(split)
    name = str(rng.choice(sorted(photos)))
    x0, y0, x1, y1 = regions[name]
    size = np.array([options.width, options.height])
    most = min((x1 - x0) / size[0], (y1 - y0) / size[1])  # px of the photograph per px of the image
    crop_w, crop_h = np.maximum(np.floor(size * most * rng.uniform(0.55, 1.0)), 1).astype(int)
    left = int(rng.integers(x0, x1 - crop_w + 1))
    top = int(rng.integers(y0, y1 - crop_h + 1))
    crop = (left, top, left + int(crop_w), top + int(crop_h))
    image = photos[name][crop[1] : crop[3], crop[0] : crop[2]]
    flip = bool(rng.random() < 0.5)
    if flip:
        image = image[:, ::-1]
    shrinks = crop_w > options.width
    image = cv2.resize(
        np.ascontiguousarray(image),
        (options.width, options.height),
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC,
    )
    canvas = image.astype(np.float32)
    gain = rng.uniform(0.65, 1.15) * rng.uniform(0.92, 1.08, 3)
    middle = canvas.mean(axis=(0, 1))
    canvas = (canvas - middle) * rng.uniform(0.7, 1.2) + middle * gain
    canvas = np.clip(canvas, 0, 255).astype(np.float32)
    _draw_distractors(rng, options, canvas)
    noise = rng.standard_normal((options.height, options.width, 1), dtype=np.float32)
    noise *= np.float32(rng.uniform(0, 6))
    return Scene(canvas, noise, name, crop, flip)


def _draw_distractors(rng: np.random.Generator, options: Options, canvas: np.ndarray) -> None:
    """Draws thin curved strokes on a canvas, (h, w, 3) float32, in place.

    They have a digit's colours but are much thinner than one of their length would be, so that
    a colour alone finds no digit and no stroke can be taken for a one.
    """
    side = min(options.width, options.height)
    t = np.linspace(0, 1, 24)[:, None]
    for _ in range(rng.integers(options.distractors + 1)):
        start = rng.uniform(0, 1, 2) * (options.width, options.height)
        bend, stop = start + rng.uniform(-0.4, 0.4, (2, 2)) * side
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * stop
        colour = rng.uniform(0, 255, 3).tolist()
        thickness = max(1, round(side / 240 * rng.uniform(0.6, 2.4)))
        cv2.polylines(
            canvas,
            [np.rint(curve * 8).astype(np.int32)],
            False,
            colour,
            thickness,
            cv2.LINE_AA,
            shift=3,
        )


def _place_digit(
    rng: np.random.Generator,
    options: Options,
    label: int,
    scan: int,
    owner: np.ndarray,
    others: list[Digit],
) -> Digit | None:
    """Looks for a place that hides no earlier digit too much and is inside the image.

    Args:
        owner: (h, w) int, index of the digit on top of each pixel, -1 for none.
        others: the digits placed before.

    Returns:
        The digit, still without a colour, or None if there is no place for it.
    """
    most = options.max_height
    for _ in range(TRIES):
        # Heights are even on a logarithmic scale: each level of a feature pyramid gets its share.
        height = math.exp(rng.uniform(math.log(options.min_height), math.log(most)))
        digit = _stamp(rng, options, label, scan, height)
        if digit is not None and _leaves_visible(digit, owner, others, options.max_hidden):
            return digit
        most = max(height, options.min_height)  # a smaller one finds a place more easily
    return None


def _leaves_visible(digit: Digit, owner: np.ndarray, others: list[Digit], limit: float) -> bool:
    """Whether at most the share `limit` of every earlier digit's ink would be hidden."""
    below = owner[digit.window][digit.alpha > 0]
    covered = np.bincount(below[below >= 0], minlength=len(others))
    for number in np.flatnonzero(covered):
        area = int((others[number].alpha > 0).sum())
        shown = int((owner == number).sum()) - int(covered[number])
        if shown < (1 - limit) * area:
            return False
    return True


def _stamp(
    rng: np.random.Generator, options: Options, label: int, scan: int, height: float
) -> Digit | None:
    """Turns a scan into a digit somewhere in the image; None if too much of it is cut off.

    Args:
        height: of the upright digit's ink in px.
    """
    angle = float(rng.uniform(-options.max_angle, options.max_angle))
    stretch = rng.uniform(0.8, 1.2)  # of the width
    level = rng.uniform(0.38, 0.52)  # scan intensity at the edge of the ink: the stroke's thickness
    fine = smooth_scan(scan)
    rows = np.flatnonzero((fine > level).any(1))
    scale = height / (rows[-1] + 1 - rows[0])  # px per sample
    # The edge is as soft as one pixel: an edge climbs about one intensity step per scan pixel.
    soft = float(np.clip(0.5 / (scale * FINE), 0.03, 0.2))
    ink = fine > level - soft * (1 - 2 * MIN_ALPHA)
    rows, cols = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    half = np.array([(cols[-1] + 1 - cols[0]) * stretch, rows[-1] + 1 - rows[0]]) * scale / 2
    turn = _rotation(angle)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half @ turn.T
    reach = corners.max(0)  # half the size of the turned rectangle's bounding box
    room = np.array([options.width, options.height]) - 0.9 * reach
    centre = rng.uniform(np.minimum(0.9 * reach, room), np.maximum(0.9 * reach, room))
    middle = np.array([cols[0] + cols[-1] + 1, rows[0] + rows[-1] + 1]) / 2
    linear = turn @ np.diag([stretch * scale, scale])
    start = np.floor(centre - reach).astype(int) - 1
    size = np.ceil(centre + reach).astype(int) + 1 - start
    value = _warp(fine, linear, centre - linear @ middle - start, size)
    edge = np.clip((value - level) / (2 * soft) + 0.5, 0, 1)
    # Inside the stroke the scan's own shading stays.
    alpha = np.where(edge > MIN_ALPHA, edge * np.clip(0.55 + 0.5 * value, 0, 1), 0)
    return _crop_digit(
        alpha.astype(np.float32),
        start,
        options,
        label=label,
        scan=scan,
        angle=angle,
        quad=corners + centre,
    )


def _crop_digit(
    alpha: np.ndarray, start: np.ndarray, options: Options, **known: Any
) -> Digit | None:
    """Cuts a digit's alpha at the image border and finds the box of the rest."""
    total = int((alpha > 0).sum())
    cut = np.maximum(-start, 0)
    stop = np.array([options.width, options.height]) - start
    alpha = alpha[cut[1] : max(stop[1], 0), cut[0] : max(stop[0], 0)]
    inside = int((alpha > 0).sum())
    if inside == 0 or inside < MIN_INSIDE * total:
        return None
    x, y = (int(value) for value in start + cut)
    rows, cols = np.flatnonzero((alpha > 0).any(1)), np.flatnonzero((alpha > 0).any(0))
    box = (x + cols[0], y + rows[0], x + cols[-1] + 1, y + rows[-1] + 1)
    return Digit(
        box=tuple(int(v) for v in box),
        corner=(x, y),
        alpha=alpha,
        colour=np.zeros(3, np.float32),
        truncated=inside < total,
        **known,
    )


def smooth_scan(scan: int) -> np.ndarray:
    """A scan with a border of paper, enlarged smoothly: (10 * FINE, 10 * FINE) float32, 0..1."""
    padded = np.pad(load_scans()[0][scan], 1)
    size = padded.shape[0] * FINE
    return np.clip(cv2.resize(padded, (size, size), interpolation=cv2.INTER_CUBIC), 0, 1)


def _rotation(angle: float) -> np.ndarray:
    """(2, 2) matrix of a clockwise rotation, as seen in an image, by `angle` degrees."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return np.array([[cos, -sin], [sin, cos]])


def _warp(
    image: np.ndarray, linear: np.ndarray, offset: np.ndarray, size: np.ndarray
) -> np.ndarray:
    """Maps an image by x -> linear x + offset, both sides counted from the corner of pixel 0.

    Args:
        image: (h, w) float32.
        linear: (2, 2).
        offset: (2,) in px.
        size: width and height of the result in px.
    """
    # OpenCV counts from the centre of pixel 0.
    shift = offset + linear @ [0.5, 0.5] - 0.5
    return cv2.warpAffine(
        image,
        np.hstack([linear, shift[:, None]]),
        (int(size[0]), int(size[1])),
        flags=cv2.INTER_LINEAR,
    )


def _choose_ink(rng: np.random.Generator, digit: Digit, canvas: np.ndarray) -> None:
    """Gives a digit a random opacity and a colour that stands out from what is below it.

    Args:
        canvas: (h, w, 3) float32 BGR, everything painted so far.
    """
    opacity = rng.uniform(0.75, 1.0)
    below = canvas[digit.window][digit.alpha > 0.3]
    below = below[rng.integers(len(below), size=64)] if len(below) else canvas[digit.window][0]
    colours = rng.uniform(0, 255, (24, 3)).astype(np.float32)
    painted = _to_lab(below[None] + opacity * (colours[:, None] - below[None]))
    contrast = np.linalg.norm(painted - _to_lab(below[None]), axis=2)
    contrast = np.percentile(contrast, 20, axis=1)
    # The first that is good enough: always the best one would mean few and extreme colours.
    good = np.flatnonzero(contrast >= MIN_CONTRAST)
    digit.colour = colours[good[0] if len(good) else int(contrast.argmax())]
    digit.alpha *= np.float32(opacity)


def _to_lab(bgr: np.ndarray) -> np.ndarray:
    """(h, w, 3) float BGR from 0 to 255 as CIE L*a*b*."""
    return cv2.cvtColor((bgr / 255).astype(np.float32), cv2.COLOR_BGR2Lab)


# --- files -------------------------------------------------------------------------------------


def _scene_record(scene: Scene, options: Options, split: str, index: int) -> dict[str, Any]:
    """What the three formats say about a scene: plain numbers, boxes exclusive, in px."""
    return {
        'name': f'{split}_{index:06}',
        'width': options.width,
        'height': options.height,
        'photo': scene.photo,
        'crop': list(scene.crop),
        'flip': scene.flip,
        'objects': [
            {
                'label': d.label,
                'box': d.box,
                'quad': np.round(d.quad, 2).ravel().tolist(),
                'truncated': d.truncated,
                'scan': d.scan,
                'angle': round(d.angle, 2),
                'visible': round(d.visible, 4),
            }
            for d in scene.digits
        ],
    }


def _write_coco(path: Path, records: list[dict[str, Any]]) -> None:
    """Writes the COCO file of a split; keys that COCO lacks say where a scene came from."""
    images, annotations = [], []
    for number, record in enumerate(records, start=1):
        keys = ('width', 'height', 'photo', 'crop', 'flip')
        images.append(
            {
                'id': number,
                'file_name': record['name'] + '.jpg',
                **{key: record[key] for key in keys},
            }
        )
        for obj in record['objects']:
            x0, y0, x1, y1 = obj['box']
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': number,
                    'category_id': obj['label'] + 1,
                    'bbox': [x0, y0, x1 - x0, y1 - y0],
                    'area': (x1 - x0) * (y1 - y0),
                    'iscrowd': 0,
                    'segmentation': [obj['quad']],
                    **{key: obj[key] for key in ('scan', 'angle', 'visible')},
                }
            )
    categories = [
        {'id': i, 'name': name, 'supercategory': 'digit'} for i, name in enumerate(CLASSES, start=1)
    ]
    _write_json(path, {'images': images, 'annotations': annotations, 'categories': categories})


def _write_voc(path: Path, record: dict[str, Any]) -> None:
    """Writes a scene's VOC file: pixels counted from 1, the last one included."""
    root = ET.Element('annotation')
    ET.SubElement(root, 'folder').text = 'JPEGImages'
    ET.SubElement(root, 'filename').text = record['name'] + '.jpg'
    size = ET.SubElement(root, 'size')
    for key, value in (('width', record['width']), ('height', record['height']), ('depth', 3)):
        ET.SubElement(size, key).text = str(value)
    ET.SubElement(root, 'segmented').text = '0'
    for obj in record['objects']:
        node = ET.SubElement(root, 'object')
        ET.SubElement(node, 'name').text = CLASSES[obj['label']]
        ET.SubElement(node, 'pose').text = 'Unspecified'
        ET.SubElement(node, 'truncated').text = str(int(obj['truncated']))
        ET.SubElement(node, 'difficult').text = '0'
        x0, y0, x1, y1 = obj['box']
        bounds = ET.SubElement(node, 'bndbox')
        for key, value in (('xmin', x0 + 1), ('ymin', y0 + 1), ('xmax', x1), ('ymax', y1)):
            ET.SubElement(bounds, key).text = str(value)
    ET.indent(root)
    path.write_text(ET.tostring(root, encoding='unicode') + '\n', encoding='utf-8')


def _write_dota(path: Path, record: dict[str, Any]) -> None:
    """Writes a scene's DOTA file: a line of 8 coordinates, class and difficulty per digit."""
    lines = [
        ' '.join([*(f'{value:.2f}' for value in obj['quad']), CLASSES[obj['label']], '0'])
        for obj in record['objects']
    ]
    path.write_text(''.join(line + '\n' for line in lines), encoding='utf-8')


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')


def _link(source: Path, target: Path) -> None:
    """Makes `target` a second name of a file, or a copy where links are not possible."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write_split(out: Path, options: Options, split: str, progress: bool) -> list[dict[str, Any]]:
    """Writes a split's images and annotations; returns its records."""
    dota = out / 'dota' / split
    folders = (
        out / 'JPEGImages',
        out / 'Annotations',
        out / 'annotations',
        out / 'ImageSets' / 'Main',
        dota / 'images',
        dota / 'annfiles',
    )
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    records = []
    steps = track(
        range(options.counts[split]), description=f'digits: {split:5}', disable=not progress
    )
    for index in steps:
        scene = make_scene(options, split, index)
        record = _scene_record(scene, options, split, index)
        flags = [cv2.IMWRITE_JPEG_QUALITY, options.quality]
        image = out / 'JPEGImages' / f'{record["name"]}.jpg'
        # Not imwrite, which only returns False when the disk is full.
        image.write_bytes(cv2.imencode('.jpg', render(scene), flags)[1].tobytes())
        _link(image, dota / 'images' / image.name)
        _write_voc(out / 'Annotations' / f'{record["name"]}.xml', record)
        _write_dota(dota / 'annfiles' / f'{record["name"]}.txt', record)
        records.append(record)
    _write_coco(out / 'annotations' / f'{split}.json', records)
    names = ''.join(record['name'] + '\n' for record in records)
    (out / 'ImageSets' / 'Main' / f'{split}.txt').write_text(names, encoding='utf-8')
    return records


def _write_marker(out: Path, options: Options, records: dict[str, list[dict[str, Any]]]) -> None:
    """Writes what the folder was made of and with; comes last."""
    objects = {
        split: [obj for record in records[split] for obj in record['objects']] for split in SPLITS
    }
    splits = {
        split: {
            'images': len(records[split]),
            'objects': len(objects[split]),
            'background': {name: list(box) for name, box in split_regions(split).items()},
            'scans': sorted({obj['scan'] for obj in objects[split]}),
        }
        for split in SPLITS
    }
    versions = {'numpy': np.__version__, 'opencv': cv2.__version__, 'sklearn': sklearn.__version__}
    _write_json(
        out / MARKER,
        {
            'format': FORMAT,
            'options': asdict(options),
            'classes': list(CLASSES),
            'splits': splits,
            'made_with': versions,
        },
    )


# --- the folder as a whole -----------------------------------------------------------------------


def make_digits(
    out: str | Path,
    counts: dict[str, int] | None = None,
    size: tuple[int, int] = (320, 240),
    seed: int = 0,
    *,
    overwrite: bool = False,
    progress: bool = False,
    **more: Any,
) -> Path:
    """Makes the data set, or finds it made with the same options already.

    Args:
        out: folder; appears when everything in it is complete.
        counts: images per split, e.g. ``dict(train=40, val=10)``; splits left out get none.
        size: width and height of the images in px.
        seed: of everything random.
        overwrite: replace a data set that was made with other options.
        progress: show a bar and say what is done.
        more: the other fields of `Options`.

    Returns:
        The folder.

    Raises:
        DigitsError: options that cannot be met.
        FolderError: there is something else in the folder.
    """
    options = _make_options(counts, size, seed, more)
    # A link to a folder on another disk is followed, not replaced.
    out = Path(out).expanduser().resolve()
    found = _inspect(out, options, overwrite)
    if found == 'complete':
        if progress:
            print(f'{out} is there already, made with the same options.')
        return out
    if found == 'damaged' and progress:
        print(f'{out} lacks files; it is made again.')
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(out)
    partial = out.parent / f'{_partial_prefix(out)}{os.getpid()}'
    try:
        partial.mkdir()
        records = {split: _write_split(partial, options, split, progress) for split in SPLITS}
        _write_marker(partial, options, records)
        _publish(partial, out, options, replace=found != 'free')
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _make_options(
    counts: dict[str, int] | None, size: tuple[int, int], seed: int, more: dict[str, Any]
) -> Options:
    """The arguments of `make_digits` as checked options."""
    unknown = sorted(set(more) - ({f.name for f in fields(Options)} - {'width', 'height'}))
    if unknown:
        raise DigitsError(f'unknown option {unknown[0]!r}')
    chosen = dict(DEFAULT_COUNTS) if counts is None else dict(counts)
    return Options(counts=chosen, width=size[0], height=size[1], seed=seed, **more)


def _inspect(out: Path, options: Options, overwrite: bool) -> str:
    """'free', 'complete' (same options), 'damaged' (files lack) or 'other' (to be replaced).

    Raises `FolderError` if there is something that must not be replaced.
    """
    if not out.exists():
        return 'free'
    if not out.is_dir():
        raise FolderError(f'{out} is a file, not a folder')
    names = {path.name for path in out.iterdir()}
    if not names:
        return 'free'
    try:
        marker = json.loads((out / MARKER).read_text(encoding='utf-8'))
        made = (marker['format'], marker['options'])
    except (OSError, ValueError, KeyError, TypeError):
        raise FolderError(
            f'{out} is not empty and was not made by this tool (there is no readable '
            f'{MARKER} in it); choose another folder or remove it'
        ) from None
    same = made == (FORMAT, asdict(options))
    if same and not overwrite and _is_complete(out, options):
        return 'complete'
    foreign = sorted(names - set(LAYOUT))
    if foreign:
        raise FolderError(
            f'{out} cannot be replaced: it holds {foreign[0]!r}, which this tool did '
            'not make; move that elsewhere or choose another folder'
        )
    if not same and not overwrite:
        raise FolderError(
            f'{out} was made with other options ({_difference(made, options)}); '
            'choose another folder, or replace it with --overwrite'
        )
    return 'other' if overwrite else 'damaged'


def _difference(made: tuple[int, dict[str, Any]], options: Options) -> str:
    """In words, how the options in a marker differ from the ones wanted."""
    if made[0] != FORMAT:
        return 'by another version of this tool'
    old, new = made[1], asdict(options)
    return ', '.join(
        f'{key}: {old.get(key)} there, {new[key]} now' for key in new if old.get(key) != new[key]
    )


def _is_complete(out: Path, options: Options) -> bool:
    """Whether every file of a data set with these options is there."""
    for split, count in options.counts.items():
        names = [f'{split}_{index:06}' for index in range(count)]
        dota = out / 'dota' / split
        folders = {
            out / 'JPEGImages': '.jpg',
            out / 'Annotations': '.xml',
            dota / 'images': '.jpg',
            dota / 'annfiles': '.txt',
        }
        for folder, suffix in folders.items():
            there = set(os.listdir(folder)) if folder.is_dir() else set()
            if not there.issuperset(name + suffix for name in names):
                return False
        lists = (out / 'annotations' / f'{split}.json', out / 'ImageSets' / 'Main' / f'{split}.txt')
        if not all(path.is_file() for path in lists):
            return False
    return True


def _partial_prefix(out: Path) -> str:
    """Name, up to the process number, of what is written beside the folder until it is complete."""
    return f'.{out.name}.partial.{socket.gethostname()}.'


def _remove_leftovers(out: Path) -> None:
    """Removes what killed runs on this machine left beside the folder."""
    prefix = _partial_prefix(out)
    for path in out.parent.iterdir():
        if path.name.startswith(prefix):
            process = path.name[len(prefix) :].split('.')[0]
            if process.isdigit() and not _is_running(int(process)):
                shutil.rmtree(path, ignore_errors=True)


def _is_running(process: int) -> bool:
    if process == os.getpid():  # a leftover of an earlier process with the number we have now
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _publish(partial: Path, out: Path, options: Options, replace: bool) -> None:
    """Gives a finished folder its name; `replace` allows to take that of an older data set."""
    old = partial.with_name(partial.name + '.old')
    try:
        if replace and out.exists():
            out.rename(old)
        partial.rename(out)
    except OSError as error:
        # Two runs at once: the other one was faster, and made the same.
        if _inspect(out, options, overwrite=False) != 'complete':
            raise FolderError(f'cannot rename {partial} to {out}: {error}') from error
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(old, ignore_errors=True)


# --- for users of the data -----------------------------------------------------------------------


def dataset_configs(out: str | Path, split: str) -> dict[str, dict[str, Any]]:
    """What the stock data sets need to read a split: by 'coco', 'voc' and 'dota'."""
    common = {'data_root': str(out), 'metainfo': {'classes': CLASSES}}
    return {
        'coco': dict(
            type='mmdet.CocoDataset',
            ann_file=f'annotations/{split}.json',
            data_prefix=dict(img='JPEGImages/'),
            **common,
        ),
        'voc': dict(
            type='mmdet.XMLDataset',
            ann_file=f'ImageSets/Main/{split}.txt',
            data_prefix=dict(sub_data_root=''),
            **common,
        ),
        'dota': dict(
            type='mmrotate.DOTADataset',
            ann_file=f'dota/{split}/annfiles/',
            data_prefix=dict(img_path=f'dota/{split}/images/'),
            img_suffix='jpg',
            **common,
        ),
    }


def draw_preview(out: str | Path, split: str, count: int = 12, columns: int = 4) -> np.ndarray:
    """The first images of a split with boxes (white) and quadrilaterals (green), uint8 BGR."""
    out = Path(out)
    coco = json.loads((out / 'annotations' / f'{split}.json').read_text(encoding='utf-8'))
    tiles = []
    for image in coco['images'][:count]:
        tile = cv2.imread(str(out / 'JPEGImages' / image['file_name']))
        for ann in (a for a in coco['annotations'] if a['image_id'] == image['id']):
            x, y, w, h = ann['bbox']
            cv2.rectangle(tile, (x, y), (x + w - 1, y + h - 1), (255, 255, 255), 1)
            quad = np.rint((np.array(ann['segmentation'][0]).reshape(4, 2) - 0.5) * 8)
            cv2.polylines(tile, [quad.astype(np.int32)], True, (0, 255, 0), 1, cv2.LINE_AA, 3)
            cv2.putText(
                tile,
                str(ann['category_id'] - 1),
                (x + 2, y + 12),
                cv2.FONT_HERSHEY_SIMPLEX,
                0.45,
                (255, 255, 255),
                1,
                cv2.LINE_AA,
            )
        tiles.append(np.pad(tile, ((1, 1), (1, 1), (0, 0))))
    columns = min(columns, len(tiles))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    return np.vstack([np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)])


def _parse_args(args: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Make a detection data set out of handwritten digits on photographs, as COCO, '
        'PASCAL VOC and DOTA. See the top of this file for the folders and how to load them.'
    )
    add = parser.add_argument
    add('out', type=Path, help='folder to make; used as it is if made with the same options')
    for split in SPLITS:
        add(
            f'--{split}',
            type=int,
            default=DEFAULT_COUNTS[split],
            metavar='N',
            help=f'images in {split} (default: %(default)s)',
        )
    add(
        '--size',
        type=image_size,
        default=(320, 240),
        metavar='WxH',
        help='of the images in px (default: 320x240)',
    )
    add('--seed', type=int, default=0, help='of everything random (default: %(default)s)')
    add(
        '--min-digits',
        type=int,
        default=1,
        metavar='N',
        help='per image, where there is room (default: %(default)s)',
    )
    add('--max-digits', type=int, default=8, metavar='N', help='per image (default: %(default)s)')
    add(
        '--min-height',
        type=int,
        metavar='PX',
        help='of an upright digit (default: 0.1 of the shorter side, at least 12)',
    )
    add(
        '--max-height',
        type=int,
        metavar='PX',
        help='of an upright digit (default: 0.46 of the shorter side)',
    )
    add(
        '--max-angle',
        type=float,
        default=45.0,
        metavar='DEG',
        help='largest rotation to either side (default: %(default)s; beyond 90 a six may look like '
        'a nine)',
    )
    add(
        '--max-hidden',
        type=float,
        default=0.4,
        metavar='SHARE',
        help="most of a digit's ink that later digits may hide (default: %(default)s)",
    )
    add(
        '--distractors',
        type=int,
        default=3,
        metavar='N',
        help='most thin strokes per background (default: %(default)s)',
    )
    add('--quality', type=int, default=92, help='of the JPEG files (default: %(default)s)')
    add(
        '--preview',
        type=Path,
        metavar='PNG',
        help='also write a picture of some training images with boxes and quadrilaterals',
    )
    add('--overwrite', action='store_true', help='replace a data set made with other options')
    add('--quiet', action='store_true', help='show no progress')
    return parser.parse_args(args)


def _write_preview(out: Path, counts: dict[str, int], path: Path) -> None:
    """Writes `draw_preview` of the first split that has images."""
    split = next(s for s in SPLITS if counts[s])
    data = cv2.imencode('.png', draw_preview(out, split))[1].tobytes()
    path.write_bytes(data)


def main(args: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    given = vars(_parse_args(args))
    counts = {split: given.pop(split) for split in SPLITS}
    quiet, preview = given.pop('quiet'), given.pop('preview')
    try:
        out = make_digits(given.pop('out'), counts, progress=not quiet, **given)
        if preview is not None:
            _write_preview(out, counts, preview)
    except (DigitsError, OSError) as error:
        print(f'make_digits: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('make_digits: interrupted, nothing was written', file=sys.stderr)
        return 130
    if not quiet:
        print(f'{sum(counts.values())} images are in {out}.')
    return 0


if __name__ == '__main__':
    # A polite kill should clean up like Ctrl-C does. Only of this program: workers that a caller of
    # `main` forks must not inherit the handler.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
