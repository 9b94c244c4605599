"""The noise contract: known answers, exact reproducibility, and the distribution of the draws."""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import assert_relative, bound, same_bits
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from diffflow_ext import NoiseKey, functional
from diffflow_ext.functional import PURPOSES, reference
from diffflow_ext.functional.noise import signs

KEY = NoiseKey(seed=0x0123456789ABCDEF, stream=7)
CELLS = 2**23
ONES = 2**32 - 1
# The vectors that Random123 publishes for philox4x32 with 10 rounds: counter, key, words.
PI = "243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0"
KNOWN_ANSWERS = [
    ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (*PI, "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> Tensor:
    return torch.tensor([int(word, 16) for word in text.split()])


pytestmark = pytest.mark.usefixtures("one_thread")


# --- the generator -------------------------------------------------------------------------------


@pytest.mark.usefixtures("op_instructions")
@pytest.mark.parametrize("philox", [functional.philox_words, reference.philox_words])
@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers_of_random123(
    philox: Callable[[Tensor, Tensor], Tensor], counter: str, key: str, expected: str
) -> None:
    assert torch.equal(philox(words(counter), words(key)), words(expected))


@pytest.mark.parametrize("rounds", [7, 9, 11])
def test_known_answers_see_a_wrong_number_of_rounds(rounds: int) -> None:
    for counter, key, expected in KNOWN_ANSWERS:
        got = reference.philox_words(words(counter), words(key), rounds=rounds)
        assert not torch.equal(got, words(expected))


@pytest.mark.usefixtures("op_instructions")
def test_philox_equals_the_reference_on_many_counters() -> None:
    counter, key = torch.randint(2**32, (5, 101, 4)), torch.randint(2**32, (5, 101, 2))
    assert torch.equal(functional.philox_words(counter, key), reference.philox_words(counter, key))
    assert torch.equal(
        functional.philox_words(counter, key[0, 0]), reference.philox_words(counter, key[0, 0])
    )
    assert functional.philox_words(counter[:0], key[0, 0]).shape == (0, 101, 4)


# --- uniforms, logarithm, sine and cosine --------------------------------------------------------


def cells(probe: Callable[..., None], outputs: int) -> list[NDArray[np.float32]]:
    """Results of a probe for every uniform there is."""
    results = [np.empty(CELLS, dtype=np.float32) for _ in range(outputs)]
    addresses = [ctypes.c_void_p(result.ctypes.data) for result in results]
    probe(ctypes.c_int64(0), ctypes.c_int64(CELLS), *addresses)
    return results


def uniforms() -> NDArray[np.float64]:
    return (2.0 * np.arange(CELLS) + 1.0) * 2.0**-24


def worst_ulp(actual: NDArray[np.float32], truth: NDArray[np.float64]) -> float:
    ulp = np.spacing(np.abs(truth).astype(np.float32)).astype(np.float64)
    return float(np.max(np.abs(actual - truth) / ulp))


def test_uniforms_lie_strictly_inside_the_unit_interval(core_probe: ctypes.CDLL) -> None:
    core_probe.probe_uniform.restype = ctypes.c_float
    for word in (0, 1, 511, 512, 2**31, ONES - 512, ONES - 511, ONES):
        value = core_probe.probe_uniform(ctypes.c_uint32(word))
        assert 0.0 < value < 1.0
        assert value == float(reference.uniform(np.array([word], dtype=np.uint64))[0])


def test_log_is_right_on_all_uniforms(core_probe: ctypes.CDLL) -> None:
    (logs,) = cells(core_probe.probe_log, 1)
    assert worst_ulp(logs, np.log(uniforms())) <= bound("log_ulp")
    assert logs.max() < 0.0  # the square root of -2 log u exists


def test_sine_and_cosine_are_right_on_all_uniforms(core_probe: ctypes.CDLL) -> None:
    sine, cosine = cells(core_probe.probe_sincos, 2)
    turns = 2.0 * uniforms()
    # Exact: what is left after whole quarters, so that zeros of sine and cosine stay sharp.
    quarter = np.rint(2.0 * turns)
    rest = np.pi * (turns - quarter / 2.0)
    s, c, turn = np.sin(rest), np.cos(rest), quarter.astype(np.int64) % 4
    assert worst_ulp(sine, np.choose(turn, [s, c, -s, -c])) <= bound("sincospi_ulp")
    assert worst_ulp(cosine, np.choose(turn, [c, -s, -c, s])) <= bound("sincospi_ulp")


@pytest.mark.parametrize("pair", list(itertools.product((0, 511, 2**31, ONES), repeat=2)))
def test_extreme_words_give_finite_normals(core_probe: ctypes.CDLL, pair: tuple[int, int]) -> None:
    out = (ctypes.c_float * 2)()
    core_probe.probe_box_muller(ctypes.c_uint32(pair[0]), ctypes.c_uint32(pair[1]), out)
    u, v = reference.uniform(np.array(pair, dtype=np.uint64))
    radius = math.sqrt(-2 * math.log(u))
    expected = torch.tensor(
        [radius * math.cos(2 * math.pi * v), radius * math.sin(2 * math.pi * v)]
    )
    assert_relative(torch.tensor(list(out)), expected, "normal", floor=1e-9)
    assert max(abs(z) for z in out) <= math.sqrt(48 * math.log(2))


# --- normals are a pure function of where they are used ------------------------------------------


@pytest.mark.usefixtures("op_instructions")
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (33, 5), (4, 3, 8, 8), (2, 20_000), (5,)])
@pytest.mark.parametrize("key", [KEY, NoiseKey(0), NoiseKey(2**64 - 3, 2**32 - 1)])
def test_normals_equal_the_reference(shape: tuple[int, ...], key: NoiseKey) -> None:
    options = {"purpose": "dsm", "step": 2**24 - 1, "sample_offset": 2**32 - 33}
    z = functional.normal(shape, key, **options)
    expected = reference.normal(shape, key, **options, dtype=torch.float64)
    assert z.dtype == torch.float32
    assert_relative(z, expected, "normal", floor=1e-9)


@pytest.mark.usefixtures("op_instructions")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_hold_the_float32_draws(dtype: torch.dtype) -> None:
    z = functional.normal((33, 7), KEY)
    assert same_bits(functional.normal((33, 7), KEY, dtype=dtype), z.to(dtype))


@pytest.mark.usefixtures("op_instructions")
@pytest.mark.parametrize("elements", [1, 2, 3, 4, 5, 6, 7, 11, 4096])
def test_an_element_does_not_know_the_size_of_its_event(elements: int) -> None:
    long = functional.normal((3, 5000), KEY)
    assert same_bits(functional.normal((3, elements), KEY), long[:, :elements].contiguous())


@pytest.mark.parametrize("shape", [(0,), (0, 2), (3, 0), (0, 0, 2)])
def test_empty_shapes(shape: tuple[int, ...]) -> None:
    assert functional.normal(shape, KEY).shape == shape


def test_a_key_tensor_is_the_key() -> None:
    for key in (KEY, NoiseKey(2**63 - 1, 5), NoiseKey(2**63, 0), NoiseKey(2**64 - 1, 2**32 - 1)):
        same = functional.normal((3, 9), key.to_tensor())
        assert same_bits(same, functional.normal((3, 9), key))
        strided = torch.stack([key.to_tensor(), KEY.to_tensor()], dim=1)[:, 0]
        assert same_bits(functional.normal((3, 9), strided), same)


def test_a_key_tensor_may_be_written_between_calls() -> None:
    key = NoiseKey(3, 0).to_tensor()
    first = functional.normal((2, 4), key)
    key[1] += 1
    assert same_bits(functional.normal((2, 4), key), functional.normal((2, 4), NoiseKey(3, 1)))
    assert not torch.equal(functional.normal((2, 4), key), first)


# --- different uses, different noise -------------------------------------------------------------


@pytest.mark.parametrize("seed", [-1, 2**64, 2**64 + 5, -(2**64), 2**200])
def test_a_seed_of_other_noise_than_it_says_is_refused(seed: int) -> None:
    """The generator has 64 bits: another seed would have the noise of its lowest ones."""
    with pytest.raises(ValueError, match=r"NoiseKey: expected 0 <= seed < 2\^64, got seed="):
        NoiseKey(seed)


@pytest.mark.parametrize("seed", [0, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_key_comes_back_from_its_tensor(seed: int) -> None:
    assert NoiseKey.from_tensor(NoiseKey(seed, 7).to_tensor()) == NoiseKey(seed, 7)


def test_purposes_are_distinct_and_fit_a_byte() -> None:
    assert len(set(PURPOSES.values())) == len(PURPOSES)
    assert all(0 <= code < 256 for code in PURPOSES.values())


def noise_words(
    probe: ctypes.CDLL, stream: int, code: int, step: int, offset: int, sample: int, quad: int
) -> tuple[int, ...]:
    out = (ctypes.c_uint32 * 4)()
    probe.probe_noise_words(
        ctypes.c_uint64(KEY.seed),
        ctypes.c_uint32(stream),
        ctypes.c_uint32(code),
        ctypes.c_uint32(step),
        ctypes.c_uint32(offset),
        ctypes.c_int64(sample),
        ctypes.c_int64(quad),
        out,
    )
    return tuple(out)


def test_no_two_uses_share_a_counter(core_probe: ctypes.CDLL) -> None:
    # With one key Philox is a bijection: words are equal if and only if counters are.
    edges = (0, 1, 2**16, 2**31 - 1, 2**31, ONES - 1, ONES)
    steps, codes = (0, 1, 2**23, 2**24 - 1), (0, 1, 127, 255)
    seen = set()
    uses = list(itertools.product(edges, steps, codes, edges, edges))
    for stream, step, code, sample, quad in uses:
        got = noise_words(core_probe, stream, code, step, 0, sample, quad)
        seen.add(got)
    assert len(seen) == len(uses)


@given(
    quad=st.integers(0, ONES),
    sample=st.integers(0, ONES),
    step=st.integers(0, 2**24 - 1),
    code=st.integers(0, 255),
    stream=st.integers(0, ONES),
    data=st.data(),
)
def test_the_counter_is_laid_out_as_documented(
    core_probe: ctypes.CDLL,
    quad: int,
    sample: int,
    step: int,
    code: int,
    stream: int,
    data: st.DataObject,
) -> None:
    offset = data.draw(st.integers(0, sample))
    got = noise_words(core_probe, stream, code, step, offset, sample - offset, quad)
    key = torch.tensor([KEY.seed & ONES, KEY.seed >> 32])
    counter = torch.tensor([quad, sample, step | code << 24, stream])
    assert list(got) == functional.philox_words(counter, key).tolist()


# --- NoiseKey ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((1.5,), TypeError, "expected an integer seed, got 1.5"),
        ((True,), TypeError, "expected an integer seed, got True"),
        (("1",), TypeError, "expected an integer seed, got '1'"),
        ((None,), TypeError, "expected an integer seed, got None"),
        ((1, 2.0), TypeError, "expected an integer stream, got 2.0"),
        ((1, -1), ValueError, "0 <= stream < 2^32, got -1; use another seed"),
        ((1, 2**32), ValueError, "0 <= stream < 2^32, got 4294967296; use another seed"),
    ],
)
def test_bad_keys_are_refused(arguments: tuple, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        NoiseKey(*arguments)
    assert text in str(caught.value)


def test_keys_are_values() -> None:
    assert NoiseKey(3, 4) == NoiseKey(3, 4)
    assert hash(NoiseKey(3, 4)) == hash(NoiseKey(3, 4))
    assert NoiseKey(3, 4).at(9) == NoiseKey(3, 9)
    assert NoiseKey(2**64 - 1, 4).to_tensor().tolist() == [-1, 4]
    with pytest.raises(AttributeError):
        NoiseKey(3).seed = 4  # type: ignore[misc]


def test_manual_seed_governs_the_default_key() -> None:
    torch.manual_seed(11)
    first, second = NoiseKey.from_torch(), NoiseKey.from_torch()
    torch.manual_seed(11)
    assert NoiseKey.from_torch() == first
    assert second != first


# --- the distribution ----------------------------------------------------------------------------
#
# All seeds are fixed: a failure is a change of the generator, never chance. Bounds are those of
# right noise: 4 standard errors, and p-values above 1e-3.

SIGMAS = 4.0


@pytest.fixture(scope="module")
def draws() -> NDArray[np.float64]:
    """2,048 samples of 256 elements."""
    return functional.normal((2048, 256), KEY, dtype=torch.float64).numpy()


def test_moments(draws: NDArray[np.float64]) -> None:
    # E z^k of a standard normal, and its standard error sqrt((E z^2k - (E z^k)^2) / n).
    moments = {k: float(stats.norm.moment(k)) for k in range(1, 13)}
    for k in range(1, 7):
        error = math.sqrt((moments[2 * k] - moments[k] ** 2) / draws.size)
        assert abs(np.mean(draws**k) - moments[k]) < SIGMAS * error


def test_kolmogorov_smirnov(draws: NDArray[np.float64]) -> None:
    assert stats.kstest(draws.ravel(), "norm").pvalue > 1e-3
    for lane in range(4):
        assert stats.kstest(draws[:, lane::4].ravel(), "norm").pvalue > 1e-3
    # Radii and angles of the pairs: exponential and uniform.
    even, odd = draws[:, ::2].ravel(), draws[:, 1::2].ravel()
    assert stats.kstest((even**2 + odd**2) / 2, "expon").pvalue > 1e-3
    assert stats.kstest(np.arctan2(odd, even) / (2 * np.pi) + 0.5, "uniform").pvalue > 1e-3


def correlation_in_sigmas(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.abs(np.mean(a * b)) * math.sqrt(a.size))


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 5, 8, 16, 64])
def test_neighbours_are_uncorrelated(draws: NDArray[np.float64], lag: int) -> None:
    assert correlation_in_sigmas(draws[:, lag:], draws[:, :-lag]) < SIGMAS
    assert correlation_in_sigmas(draws[lag:], draws[:-lag]) < SIGMAS
    # Squares too: what one draw says of the size of the next.
    squares = (draws**2 - 1) / math.sqrt(2)
    assert correlation_in_sigmas(squares[:, lag:], squares[:, :-lag]) < SIGMAS
    assert correlation_in_sigmas(squares[lag:], squares[:-lag]) < SIGMAS


@pytest.mark.parametrize(
    ("key", "options"),
    [
        (KEY.at(8), {}),
        (KEY.at(7 + 2**31), {}),
        (NoiseKey(KEY.seed + 1, 7), {}),
        (NoiseKey(KEY.seed + 2**32, 7), {}),
        (KEY, {"step": 1}),
        (KEY, {"step": 2**23}),
        (KEY, {"purpose": "reverse"}),
        (KEY, {"purpose": "hutchinson"}),
        (KEY, {"sample_offset": 2048}),
    ],
)
def test_streams_are_uncorrelated(
    draws: NDArray[np.float64], key: NoiseKey, options: dict
) -> None:
    other = functional.normal((2048, 256), key, **options, dtype=torch.float64).numpy()
    assert correlation_in_sigmas(draws, other) < SIGMAS
    assert correlation_in_sigmas(draws**2 - 1, other**2 - 1) / 2 < SIGMAS


def test_weak_noise_fails_these_tests() -> None:
    """A positive control: after two rounds neighbouring counters are still related."""
    counters = reference.noise_counters(512, 256, code=0, step=0, stream=0, sample_offset=0)
    key = torch.tensor([1, 2])
    words = reference.philox_words(torch.from_numpy(counters.astype(np.int64)), key, rounds=2)
    values = stats.norm.ppf(reference.uniform(words.numpy().astype(np.uint64))).reshape(512, -1)
    worst = max(correlation_in_sigmas(values[:, lag:], values[:, :-lag]) for lag in range(1, 9))
    assert worst > 2 * SIGMAS


def test_signs_do_not_depend_on_the_layout_of_the_state() -> None:
    x = torch.randn(3, 2, 4, 5)
    expected = signs(x, KEY, 3, 1)
    assert torch.equal(signs(x.contiguous(memory_format=torch.channels_last), KEY, 3, 1), expected)
