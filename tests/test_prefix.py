"""Prefix codes: optimal where they may be, exact both ways, only where they cost little, and safe from any bytes."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import reference_decoder
from helpers import bit_flips, is_refused, legal_points, mutations, small_message, uniform_scales
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paramcompress import prefix
from paramcompress.entropy import DEAD, MOST_CLASS, Scales, pack, unpack, varint
from paramcompress.prefix import LEAST_POINTS, LONGEST, cheap_lengths, code_lengths
from paramcompress.prices import N_MAGNITUDES, raw_bits_of
from paramcompress.tokens import ESCAPE_FROM, N_CLASSES, N_TOKENS, POINT_LIMIT, token_of
from paramcompress.trellis import TRELLISES

PLAIN = TRELLISES[1]
BY_PREFIX = 7
"""In the low bits of a stream's first byte."""


def forced(points: np.ndarray, scales: Scales, period: int = 1, enough: int = 1 << 13) -> bytes:
    """The stream with prefix codes, however few the points and whatever it costs; codes are founded on `enough`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix, "LEAST_POINTS", 1)
        patch.setattr(prefix, "MOST_OVER", math.inf)
        patch.setattr(prefix, "ENOUGH_POINTS", enough)
        stream = pack(points, scales, PLAIN, period=period, may_prefix=True)
    assert stream[0] & 7 == BY_PREFIX
    return stream


@st.composite
def messages(draw: st.DrawFn) -> tuple[np.ndarray, Scales, int]:
    """Points on the plain grid of all magnitudes, classes, dead rows and columns; period."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n_columns, n_rows = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    most = draw(st.sampled_from([0, 3, 30, MOST_CLASS]))
    dead = draw(st.sampled_from([0.0, 0.3, 1.0]))
    rows, columns = (
        np.where(rng.random(n) < dead, DEAD, rng.integers(0, most + 1, n)).astype(np.int16) for n in (n_rows, n_columns)
    )
    scales = Scales(draw(st.integers(-128, 127)), rows, columns)
    octaves = draw(st.sampled_from([1, 4, 8, 28]))
    points = legal_points(rng, scales, PLAIN, lambda: int(rng.choice([-1, 1]) * (2 ** (octaves * rng.random()) - 1)))
    return points, scales, draw(st.integers(1, 25))


@settings(max_examples=300, deadline=None)
@given(messages(), st.sampled_from([1, 30, 1 << 13]))
def test_round_trip(message: tuple[np.ndarray, Scales, int], enough: int) -> None:
    """Also where most columns were not looked at before their codes were made."""
    points, scales, period = message
    stream = forced(points, scales, period, enough)
    np.testing.assert_array_equal(unpack(stream, points.shape[1], points.shape[0], period=period), points)


@settings(max_examples=60, deadline=None)
@given(messages())
def test_the_slow_decoder_agrees(message: tuple[np.ndarray, Scales, int]) -> None:
    points, scales, period = message
    stream = forced(points, scales, period)
    np.testing.assert_array_equal(reference_decoder.symbols(stream, points.shape[1], points.shape[0], period), points)


@pytest.mark.parametrize("point", [POINT_LIMIT - 2, 2 - POINT_LIMIT, 2 * ESCAPE_FROM, 2 * ESCAPE_FROM - 2])
@pytest.mark.parametrize("base", [-128, 11, 12, 13, 14, 61, 62, 127])
def test_largest_points(point: int, base: int) -> None:
    points = np.array([[point, 0, point, 2]], np.int32)
    np.testing.assert_array_equal(unpack(forced(points, uniform_scales(1, 4, base)), 4, 1), points)


def test_some_columns_say_enough() -> None:
    """Codes founded on every third column of kernels whose positions differ take hardly more than those of all."""
    chance = np.random.default_rng(0)
    loud = 2.0 ** (np.arange(576) % 9 % 4)
    points = 2 * np.rint(loud[:, None] * chance.standard_normal((576, 64))).astype(np.int32)
    scales = Scales(3, np.zeros(64, np.int16), (2 * np.log2(loud)).astype(np.int16))
    some, all_of_them = (len(forced(points, scales, 9, enough)) for enough in (points.size // 3, points.size))
    assert some < 1.005 * all_of_them


def least_bits(counts: list[int]) -> int:
    """Total of the best code with lengths up to LONGEST, by trying all: heavier tokens never have longer ones."""
    weights = sorted((count for count in counts if count), reverse=True)

    @functools.cache
    def best(token: int, length: int, room: int) -> float:
        """Of the tokens from this one on, at least so long, in so many words of LONGEST bits."""
        if token == len(weights):
            return 0
        if length > LONGEST or room < len(weights) - token:
            return math.inf
        words = 1 << (LONGEST - length)
        here = weights[token] * length + best(token + 1, length, room - words) if words <= room else math.inf
        return min(here, best(token, length + 1, room))

    return int(best(0, 1, 1 << LONGEST))


def table_of(counts: list[int], c: int = 0) -> np.ndarray:
    """Counts of one class."""
    table = np.zeros((N_CLASSES, N_TOKENS), np.int32)
    table[c] = counts
    return table


FIBONACCI = [1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987]
"""Their code would be the longest there is, of 15 bits."""


@settings(deadline=None)
@given(st.lists(st.integers(0, 2000), min_size=N_TOKENS, max_size=N_TOKENS), st.integers(0, N_CLASSES - 1))
@example(FIBONACCI, 3)
@example([0, 0, 7] + [0] * 13, 0)
@example([0] * 16, 0)
def test_codes_are_the_best_there_are(counts: list[int], c: int) -> None:
    table = table_of(counts, c)
    lengths = code_lengths(table)
    assert not np.delete(lengths, c, 0).any()
    assert (lengths[c] > 0).tolist() == [count > 0 for count in counts]
    used = lengths[c][lengths[c] > 0].astype(float)
    assert used.max(initial=0) <= LONGEST
    assert len(used) < 2 or (2.0**-used).sum() == 1
    assert int((table[c] * lengths[c].astype(int)).sum()) == least_bits(counts)


def test_bytes_are_those_of_the_codes(rng: np.random.Generator) -> None:
    k = (2 * rng.standard_normal((128, 128))).round().astype(int)
    stream = pack((2 * k).astype(np.int32), uniform_scales(128, 128, 7), PLAIN, may_prefix=True)
    assert stream[0] & 7 == BY_PREFIX
    counts = np.bincount(np.array([token_of(size) for size in range(N_MAGNITUDES)])[abs(k)].ravel(), minlength=N_TOKENS)
    raw = sum(raw_bits_of(size) * int((abs(k) == size).sum()) for size in range(N_MAGNITUDES))
    n_lengths = int(np.flatnonzero(counts).max()) + 1
    bits = least_bits(counts.tolist()) + raw + 5 * N_CLASSES + 4 * n_lengths
    assert len(stream) == 3 + -(-bits // 8)


@pytest.mark.parametrize(("deviation", "pays"), [(1.0, True), (2.0, True), (0.3, False)])
def test_taken_only_where_it_costs_little(deviation: float, pays: bool, rng: np.random.Generator) -> None:
    points = 2 * (deviation * rng.standard_normal((128, 128))).round().astype(np.int32)
    scales = uniform_scales(128, 128, 5)
    plain, quick = (pack(points, scales, PLAIN, may_prefix=may) for may in (False, True))
    assert (quick[0] & 7 == BY_PREFIX) == pays
    assert len(quick) < 1.13 * len(plain)
    if not pays:
        assert quick == plain
        assert len(forced(points, scales)) > 1.13 * len(plain)


def test_small_matrices_and_those_of_a_trellis_are_left_alone(rng: np.random.Generator) -> None:
    points = 2 * rng.standard_normal((LEAST_POINTS // 64 - 1, 64)).round().astype(np.int32)
    scales = uniform_scales(*points.shape)
    assert len(cheap_lengths(points, scales.base, scales.rows, scales.columns)) == 0
    draws = iter(rng.standard_normal(2 * LEAST_POINTS).round().astype(int).tolist())
    scales = uniform_scales(128, 2 * LEAST_POINTS // 128)
    points = legal_points(rng, scales, TRELLISES[8], lambda: next(draws))
    assert pack(points, scales, TRELLISES[8], may_prefix=True) == pack(points, scales, TRELLISES[8])


def test_points_that_do_not_fit_are_refused() -> None:
    dead_row = Scales(5, np.array([DEAD, 0], np.int16), np.zeros(2, np.int16))
    off = np.array([[1, 0], [0, 0]], np.int32)
    for points, scales in ((off, uniform_scales(2, 2)), (2 * off, dead_row)):
        with pytest.raises(ValueError, match="off the trellis"):
            forced(points, scales)


# ------------------------------------------------------------------------------------------- damage


def small_stream(rng: np.random.Generator) -> tuple[bytes, int, int, int]:
    """And its shape."""
    points, scales, period = small_message(rng, PLAIN)
    return forced(points, scales, period), *points.shape[::-1], period


def test_every_cut_is_refused(rng: np.random.Generator) -> None:
    stream, *shape = small_stream(rng)
    assert all(is_refused(stream[:n], *shape) for n in range(len(stream)))
    assert is_refused(stream + b"\0", *shape)
    assert not is_refused(stream, *shape)


def test_every_bit_flip_and_many_mutations_give_points_or_an_error(rng: np.random.Generator) -> None:
    stream, *shape = small_stream(rng)
    refused = [is_refused(damaged, *shape) for _, damaged in bit_flips(stream)]
    assert 0.2 < np.mean(refused) < 1  # the rest is for the checksums: a code word may become another
    for damaged in mutations(rng, stream, 10_000):
        is_refused(damaged, *shape)


def test_noise(rng: np.random.Generator) -> None:
    for flags in range(32):
        for _ in range(60):
            n_words = int(rng.integers(0, 12)) if flags else 0
            words = rng.bytes(2 * n_words + int(rng.integers(0, 150)))
            stream = bytes([flags << 3 | BY_PREFIX, int(rng.integers(256))]) + varint(n_words) + words
            is_refused(stream, int(rng.integers(0, 40)), int(rng.integers(0, 40)), int(rng.integers(1, 30)))


@pytest.mark.parametrize(
    "lengths",
    [
        [1, 1, 1],  # three words of one bit
        [0],  # no words, and a point that wants one
        [2, 2, 2],  # a fourth that is no token's, below
        [10, 1],
        [1] * 17,
    ],
)
def test_lengths_that_make_no_code(lengths: list[int]) -> None:
    of_a_class = f"{len(lengths):05b}"[::-1] + "".join(f"{one:04b}"[::-1] for one in lengths)
    bits = of_a_class * N_CLASSES + "1" * 20
    stream = bytes([BY_PREFIX, 5, 0]) + int(bits[::-1], 2).to_bytes(-(-len(bits) // 8), "little")
    with pytest.raises(ValueError, match="do not fit together"):
        unpack(stream, 1, 1)
