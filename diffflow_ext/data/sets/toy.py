r"""Two-dimensional sets.

Every set is a distribution, from which `sample_toy` draws points as a pure function of
(name, n, seed). The raw points :math:`z` are shifted and scaled by constants of the set,

.. math:: x = (z - m) / s, \qquad m = E[z], \qquad s^2 = \tfrac12 E |z - m|^2

so that :math:`E[x] = 0` and the variance, averaged over the two axes, is one.
"""

from __future__ import annotations

import difflib
import math
import operator
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

Points = NDArray[np.float64]
Numbers = NDArray[np.integer]
Draw = Callable[[np.random.Generator, int], tuple[Points, Numbers]]
THINNESS = 0.01  # radial standard deviation of a ring, as a fraction of its radius
CARPET_DEPTH = 5
GAUSSIAN_RADIUS = 4.0
GAUSSIAN_STD = 0.5
CALIBRATION_DRAWS = 1 << 19


@dataclass(frozen=True)
class _Toy:
    """A set; `variance` is s^2 if it has a closed form and the mean is 0.

    `draw` returns points, and the position of the class of each in `classes`, if there are any.
    All classes have the same share.
    """

    description: str
    draw: Draw
    variance: float | None = None
    classes: tuple[str, ...] | tuple[float, ...] = ()


def _rings(centres: ArrayLike, radii: ArrayLike) -> Draw:
    """Returns thin rings with equal expected numbers of points."""
    centre, radius = np.asarray(centres, np.float64), np.asarray(radii, np.float64)

    def draw(rng: np.random.Generator, n: int) -> tuple[Points, Numbers]:
        ring = rng.integers(len(radius), size=n)
        angle = rng.uniform(0.0, 2.0 * math.pi, n)
        r = radius[ring] * (1.0 + THINNESS * rng.standard_normal(n))
        offset = r[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
        return centre[ring] + offset, ring

    return draw


def _swiss_roll(rng: np.random.Generator, n: int) -> tuple[Points, Numbers]:
    angle = 1.5 * math.pi * (1.0 + 2.0 * rng.random(n))
    curve = angle[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
    return curve + 0.1 * rng.standard_normal((n, 2)), np.zeros(n, np.int64)


def _moons(rng: np.random.Generator, n: int) -> tuple[Points, Numbers]:
    angle = rng.uniform(0.0, math.pi, n)
    sign = rng.choice([1.0, -1.0], n)
    curve = sign[:, None] * np.column_stack([np.cos(angle) - 0.5, np.sin(angle) - 0.25])
    return curve + 0.02 * rng.standard_normal((n, 2)), (sign < 0.0).astype(np.int64)


def _two_spirals(rng: np.random.Generator, n: int) -> tuple[Points, Numbers]:
    # The square root makes the density even along the arms, whose length grows as angle^2.
    angle = 3.0 * math.pi * np.sqrt(rng.random(n))
    sign = rng.choice([1.0, -1.0], n)
    curve = (sign * angle)[:, None] * np.column_stack([-np.cos(angle), np.sin(angle)])
    return curve + 0.06 * rng.standard_normal((n, 2)), (sign < 0.0).astype(np.int64)


def _checkerboard(rng: np.random.Generator, n: int) -> tuple[Points, Numbers]:
    column = rng.integers(4, size=n)
    row = 2 * rng.integers(2, size=n) + column % 2
    return np.column_stack([column, row]) + rng.random((n, 2)) - 2.0, column


def _eight_gaussians(rng: np.random.Generator, n: int) -> tuple[Points, Numbers]:
    which = rng.integers(8, size=n)
    return _gaussian_centres()[which] + GAUSSIAN_STD * rng.standard_normal((n, 2)), which


def _gaussian_centres() -> Points:
    angle = math.pi / 4.0 * np.arange(8)
    return GAUSSIAN_RADIUS * np.column_stack([np.cos(angle), np.sin(angle)])


def _carpet(rng: np.random.Generator, n: int) -> tuple[Points, Numbers]:
    """Draws ternary digits without the middle cell of nine; uniform in the last cell."""
    cell = np.array([[c // 3, c % 3] for c in range(9) if c != 4], np.float64)
    digits = cell[rng.integers(8, size=(n, CARPET_DEPTH))]
    weights = 3.0 ** -np.arange(1.0, CARPET_DEPTH + 1.0)
    corner = np.einsum("nkc,k->nc", digits, weights)
    points = corner + 3.0**-CARPET_DEPTH * rng.random((n, 2)) - 0.5
    return points, np.zeros(n, np.int64)


def _carpet_variance() -> float:
    levels = np.arange(1.0, CARPET_DEPTH + 1.0)
    return float(0.75 * np.sum(9.0**-levels) + 9.0**-CARPET_DEPTH / 12.0)


def _line(*corners: tuple[float, float]) -> Points:
    """Returns segments (m, 2, 2) through the corners."""
    points = np.asarray(corners, np.float64)
    return np.stack([points[:-1], points[1:]], axis=1)


def _arc(
    centre: tuple[float, float], radii: tuple[float, float], start: float, end: float
) -> Points:
    """Returns segments (96, 2, 2) along an elliptic arc, angles in degrees."""
    angle = np.radians(np.linspace(start, end, 97))
    points = np.asarray(centre) + np.column_stack([np.cos(angle), np.sin(angle)]) * radii
    return np.stack([points[:-1], points[1:]], axis=1)


def _pen(shapes: Callable[[], list[Points]], nib: float) -> Draw:
    """Returns points uniform along the strokes, plus points uniform in the disc of the nib."""

    def draw(rng: np.random.Generator, n: int) -> tuple[Points, Numbers]:
        segments = np.concatenate(shapes())
        start, step = segments[:, 0], segments[:, 1] - segments[:, 0]
        length = np.linalg.norm(step, axis=1)
        pick = rng.choice(len(length), size=n, p=length / length.sum())
        radius, angle = nib * np.sqrt(rng.random(n)), 2.0 * math.pi * rng.random(n)
        offset = radius[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
        return start[pick] + rng.random((n, 1)) * step[pick] + offset, np.zeros(n, np.int64)

    return draw


@cache
def _tree() -> list[Points]:
    """Returns nine generations; a branch has 0.7 of its parent's length, turned by 30 degrees."""
    start, angle, length = np.zeros((1, 2)), np.array([math.pi / 2.0]), 1.0
    levels: list[Points] = []
    for _ in range(9):
        end = start + length * np.column_stack([np.cos(angle), np.sin(angle)])
        levels.append(np.stack([start, end], axis=1))
        start, length = np.repeat(end, 2, axis=0), 0.7 * length
        angle = (angle[:, None] + np.radians([30.0, -30.0])).ravel()
    return levels


# The baseline is y = 0; capitals and ascenders have height 2, the x-height is 1.2.
_GLYPHS: Mapping[str, tuple[float, list[Points]]] = MappingProxyType(
    {
        "D": (
            1.15,
            [_line((0.4, 2), (0, 2), (0, 0), (0.4, 0)), _arc((0.4, 1), (0.75, 1), -90, 90)],
        ),
        "F": (1.0, [_line((0, 0), (0, 2), (1, 2)), _line((0, 1.05), (0.8, 1.05))]),
        "f": (
            0.75,
            [
                _arc((0.6, 1.6), (0.35, 0.4), 60, 180),
                _line((0.25, 1.6), (0.25, 0)),
                _line((0, 1.2), (0.62, 1.2)),
            ],
        ),
        "i": (0.0, [_line((0, 0), (0, 1.2)), _arc((0, 1.7), (0.06, 0.06), 0, 360)]),
        "l": (0.0, [_line((0, 0), (0, 2))]),
        "o": (1.1, [_arc((0.55, 0.6), (0.55, 0.6), 0, 360)]),
        "w": (1.4, [_line((0, 1.2), (0.38, 0), (0.7, 1.1), (1.02, 0), (1.4, 1.2))]),
    }
)


def _word(letters: str, left: float, base: float) -> list[Points]:
    strokes: list[Points] = []
    for letter in letters:
        width, glyph = _GLYPHS[letter]
        strokes += [stroke + np.array([left, base]) for stroke in glyph]
        left += width + 0.42
    return strokes


@cache
def _text() -> list[Points]:
    return _word("Diff", 0.45, 2.6) + _word("Flow", 0.0, 0.0)


@cache
def _smile() -> list[Points]:
    eyes = [_arc((x, 0.33), (0.05, 0.13), 0, 360) for x in (-0.36, 0.36)]
    mouth = _arc((0.0, -0.06), (0.56, 0.5), 195, 345)
    return [_arc((0.0, 0.0), (1.0, 1.0), 0, 360), *eyes, mouth]


_OLYMPIC = [(-2.2, 0.5), (0.0, 0.5), (2.2, 0.5), (-1.1, -0.5), (1.1, -0.5)]
_FOUR = [(-0.8, -0.8), (-0.8, 0.8), (0.8, -0.8), (0.8, 0.8)]

#: From left to right, those above first.
_COLOURS = ("blue", "black", "red", "yellow", "green")

_SETS: dict[str, _Toy] = {
    "swiss-roll": _Toy("a thin spiral of one and a half turns", _swiss_roll),
    "checkerboard": _Toy(
        "uniform on eight of the 4 x 4 cells", _checkerboard, 4.0 / 3.0, (0.0, 1.0, 2.0, 3.0)
    ),
    "circles": _Toy(
        "two concentric thin circles",
        _rings([(0, 0), (0, 0)], [1.0, 0.5]),
        classes=("outer", "inner"),
    ),
    "olympic-rings": _Toy(
        "five interlocked thin rings", _rings(_OLYMPIC, np.ones(5)), classes=_COLOURS
    ),
    "moons": _Toy("two interleaved half circles", _moons, classes=("upper", "lower")),
    "four-rings": _Toy(
        "four interlocked thin rings in a square",
        _rings(_FOUR, np.ones(4)),
        classes=(0.0, 1.0, 2.0, 3.0),
    ),
    "8-gaussians": _Toy(
        "eight round Gaussians on a circle",
        _eight_gaussians,
        GAUSSIAN_RADIUS**2 / 2.0 + GAUSSIAN_STD**2,
        tuple(map(float, range(8))),
    ),
    "2-spirals": _Toy(
        "two thin spiral arms of one and a half turns", _two_spirals, classes=(0.0, 1.0)
    ),
    "fractal-tree": _Toy("a tree of nine generations of branches", _pen(_tree, 0.006)),
    "sierpinski-carpet": _Toy("Sierpinski's carpet, five levels", _carpet, _carpet_variance()),
    "text": _Toy("the word DiffFlow, written with a round pen", _pen(_text, 0.09)),
    "smile": _Toy("a smiling face, drawn with a round pen", _pen(_smile, 0.045)),
}

TOY_SETS: Mapping[str, str] = MappingProxyType({k: v.description for k, v in _SETS.items()})


def toy_name(name: str) -> str:
    """Returns the key of `TOY_SETS` for a name in any case, with hyphens or underscores.

    Raises:
        ValueError: If there is no such set.
    """
    canonical = str(name).strip().lower().replace("_", "-")
    if canonical in _SETS:
        return canonical
    near = difflib.get_close_matches(canonical, _SETS, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"toy_name: expected one of {', '.join(_SETS)}; got {name!r}{hint or '; choose one'}"
    )


@cache
def _standardiser(name: str) -> tuple[Points, float]:
    """Returns the constants (m, s) of a set, in closed form or from one large fixed draw."""
    toy = _SETS[name]
    if toy.variance is not None:
        return np.zeros(2), math.sqrt(toy.variance)
    raw, _ = toy.draw(np.random.Generator(np.random.PCG64(20211014)), CALIBRATION_DRAWS)
    return raw.mean(axis=0), math.sqrt(float(raw.var(axis=0).mean()))


def sample_toy(name: str, n: int, seed: int) -> NDArray[np.float32]:
    r"""Draws independent points from a two-dimensional set, as a pure function.

    The mean of the distribution is zero and its variance averaged over both axes is one.

    Arguments:
        name: A key of `TOY_SETS`.
        n: The number of points, at least 1.
        seed: A non-negative integer.

    Returns:
        The points, float32, with shape :math:`(n, 2)`.

    Raises:
        ValueError: If the name is unknown, `n` < 1 or `seed` < 0.
        TypeError: If `n` or `seed` is not an integer.
    """
    return labelled_toy(name, n, seed)[0]


def toy_classes(name: str) -> tuple[str, ...] | tuple[float, ...]:
    """Returns the classes of a set, texts or numbers; none if it has no natural ones."""
    return _SETS[toy_name(name)].classes


def labelled_toy(name: str, n: int, seed: int) -> tuple[NDArray[np.float32], Numbers]:
    """Returns the points of `sample_toy`, and of each the position of its class in `toy_classes`.

    Arguments and errors are those of `sample_toy`.
    """
    canonical = toy_name(name)
    count, key = operator.index(n), operator.index(seed)
    if count < 1:
        raise ValueError(f"sample_toy: expected n >= 1, got {count}; ask for at least one point")
    if key < 0:
        raise ValueError(f"sample_toy: expected seed >= 0, got {key}; give a non-negative integer")
    # The name is part of the seed, so that two sets with one seed have independent noise.
    sequence = np.random.SeedSequence([key, zlib.crc32(canonical.encode())])
    raw, labels = _SETS[canonical].draw(np.random.Generator(np.random.PCG64(sequence)), count)
    centre, scale = _standardiser(canonical)
    return ((raw - centre) / scale).astype(np.float32), labels


def toy_log_density(name: str, x: ArrayLike) -> NDArray[np.float64] | None:
    r"""Returns :math:`\log p(x)` of a set whose density is known in closed form.

    Arguments:
        name: A key of `TOY_SETS`.
        x: Points in the units of `sample_toy`, with shape :math:`(n, 2)`.

    Returns:
        The log-density in nats, shape :math:`(n,)`, :math:`-\infty` outside the support;
        None for sets other than checkerboard, 8-gaussians and sierpinski-carpet.

    Raises:
        ValueError: If the name is unknown or `x` has not the shape :math:`(n, 2)`.
    """
    canonical = toy_name(name)
    if canonical not in _RAW_LOG_DENSITY:
        return None
    points = np.asarray(x, np.float64)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"toy_log_density: expected x of shape (n, 2), got {points.shape}")
    centre, scale = _standardiser(canonical)
    return _RAW_LOG_DENSITY[canonical](points * scale + centre) + 2.0 * math.log(scale)


def _checkerboard_log_density(z: Points) -> Points:
    cell = np.floor(z).astype(np.int64)
    inside = np.all(np.abs(z) < 2.0, axis=1) & (cell.sum(axis=1) % 2 == 0)
    return np.where(inside, -math.log(8.0), -np.inf)


def _gaussians_log_density(z: Points) -> Points:
    squared = np.sum((z[:, None, :] - _gaussian_centres()) ** 2, axis=2) / GAUSSIAN_STD**2
    constant = math.log(8.0 * 2.0 * math.pi * GAUSSIAN_STD**2)
    return np.logaddexp.reduce(-0.5 * squared, axis=1) - constant


def _carpet_log_density(z: Points) -> Points:
    unit = z + 0.5
    inside = np.all((unit >= 0.0) & (unit < 1.0), axis=1)
    for _ in range(CARPET_DEPTH):
        unit = 3.0 * unit
        digit = np.floor(unit)
        inside &= ~np.all(digit == 1.0, axis=1)
        unit = unit - digit
    return np.where(inside, CARPET_DEPTH * math.log(9.0 / 8.0), -np.inf)


_RAW_LOG_DENSITY: dict[str, Callable[[Points], Points]] = {
    "checkerboard": _checkerboard_log_density,
    "8-gaussians": _gaussians_log_density,
    "sierpinski-carpet": _carpet_log_density,
}


def toy_entropy(name: str) -> float | None:
    r"""Returns the differential entropy :math:`-E \log p(x)`, the least NLL that a model can have.

    Exact for checkerboard and sierpinski-carpet, by quadrature to 1e-9 for 8-gaussians.

    Arguments:
        name: A key of `TOY_SETS`.

    Returns:
        The entropy in nats, in the units of `sample_toy`; None where the density has no
        closed form.

    Raises:
        ValueError: If the name is unknown.
    """
    canonical = toy_name(name)
    if canonical not in _RAW_LOG_DENSITY:
        return None
    return _raw_entropy(canonical) - 2.0 * math.log(_standardiser(canonical)[1])


@cache
def _raw_entropy(name: str) -> float:
    if name == "checkerboard":
        return math.log(8.0)
    if name == "sierpinski-carpet":
        return CARPET_DEPTH * math.log(8.0 / 9.0)
    # The rectangle rule converges faster than any power of the step for a smooth density.
    axis = np.linspace(-8.0, 8.0, 257)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    log_density = _gaussians_log_density(grid)
    return float(-np.sum(np.exp(log_density) * log_density) * (axis[1] - axis[0]) ** 2)
