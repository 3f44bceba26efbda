"""Points to bytes and back: exact, near the entropy, and nothing but ValueError for bytes that are no stream."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import reference_decoder
from helpers import (
    EVERY_TRELLIS,
    bit_flips,
    is_refused,
    legal_points,
    mutations,
    parity_of,
    small_message,
    uniform_scales,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from paramcompress import entropy
from paramcompress.entropy import (
    BLOCK,
    DEAD,
    ESCAPE_FROM,
    MOST_CLASS,
    N_CLASSES,
    N_TOKENS,
    POINT_LIMIT,
    Scales,
    pack,
    read_varint,
    token_of,
    unpack,
    varint,
)
from paramcompress.prices import N_MAGNITUDES, class_bits, cost_table, histogram, point_bits, raw_bits_of
from paramcompress.prior import prior_of
from paramcompress.tokens import UNIT_CLASS
from paramcompress.trellis import lines_per_chain

TINY = bytes.fromhex("00 05 02 03 00 10 dd 02")
"""Points (2, 0), (-4, 6), worked out by hand in docs/format.md, section 10."""


def test_bytes_of_a_tiny_message() -> None:
    points = np.array([[2, 0], [-4, 6]], np.int32)
    assert pack(points, uniform_scales(2, 2), EVERY_TRELLIS[1]) == TINY
    np.testing.assert_array_equal(unpack(TINY, 2, 2), points)


def test_the_tiny_message_by_hand() -> None:
    """The arithmetic of docs/format.md, section 10, once more."""
    counts = prior_of(has_zero=True)[10].tolist()
    f = [1 + count * 4080 // sum(counts) for count in counts]
    f[1] += 4096 - sum(f)
    state = 1
    for token in (3, 2, 0, 1):
        state = (state // f[token] << 12) + state % f[token] + sum(f[:token])
    assert (state, TINY[3:7]) == (0x0003DD10, bytes([0x03, 0x00, 0x10, 0xDD]))


# ------------------------------------------------------------------------------------------- round trips


@st.composite
def messages(draw: st.DrawFn) -> tuple[np.ndarray, Scales, int, int]:
    """Points, classes, states, period: up to 400 numbers of all magnitudes, dead rows and columns, any classes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n_columns, n_rows = draw(st.integers(0, 20)), draw(st.integers(0, 20))
    most = draw(st.sampled_from([0, 3, 30, MOST_CLASS]))
    dead = draw(st.sampled_from([0.0, 0.3, 1.0]))
    scales = Scales(
        draw(st.integers(-128, 127)),
        *(
            np.where(rng.random(n) < dead, DEAD, rng.integers(0, most + 1, n)).astype(np.int16)
            for n in (n_rows, n_columns)
        ),
    )
    n_states = draw(st.sampled_from(list(EVERY_TRELLIS)))
    octaves = draw(st.sampled_from([1, 8, 28]))

    def symbol() -> int:
        return int(rng.choice([-1, 1]) * (2 ** (octaves * rng.random()) - 1))

    return legal_points(rng, scales, EVERY_TRELLIS[n_states], symbol), scales, n_states, draw(st.integers(1, 25))


@settings(max_examples=300, deadline=None)
@given(messages())
def test_round_trip(message: tuple[np.ndarray, Scales, int, int]) -> None:
    points, scales, n_states, period = message
    stream = pack(points, scales, EVERY_TRELLIS[n_states], period=period)
    np.testing.assert_array_equal(unpack(stream, points.shape[1], points.shape[0], period=period), points)


@settings(max_examples=60, deadline=None)
@given(messages())
def test_the_slow_decoder_agrees(message: tuple[np.ndarray, Scales, int, int]) -> None:
    points, scales, n_states, period = message
    if points.shape[1]:
        stream = pack(points, scales, EVERY_TRELLIS[n_states], period=period)
        np.testing.assert_array_equal(
            reference_decoder.symbols(stream, points.shape[1], points.shape[0], period), points
        )


@pytest.mark.parametrize("n_states", EVERY_TRELLIS)
def test_round_trip_over_blocks_halvings_and_chains(n_states: int, rng: np.random.Generator) -> None:
    """140,000 tokens: three blocks of the range coder, many chains, counts halved several times."""
    scales = uniform_scales(350, 400)
    draws = iter(rng.standard_normal(140_000).round().astype(int).tolist())
    points = legal_points(rng, scales, EVERY_TRELLIS[n_states], functools.partial(next, draws))
    stream = pack(points, scales, EVERY_TRELLIS[n_states])
    np.testing.assert_array_equal(unpack(stream, 400, 350), points)


@pytest.mark.parametrize("point", [POINT_LIMIT - 2, 2 - POINT_LIMIT, 2 * ESCAPE_FROM, 2 * ESCAPE_FROM - 2])
@pytest.mark.parametrize("base", [-128, 13, 14, 61, 62, 127])
def test_largest_points(point: int, base: int) -> None:
    points = np.array([[point, 0, point]], np.int32)
    stream = pack(points, uniform_scales(1, 3, base), EVERY_TRELLIS[1])
    np.testing.assert_array_equal(unpack(stream, 3, 1), points)


@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_streams_that_end_where_a_block_does(beyond: int, rng: np.random.Generator) -> None:
    """The last block starts from another state than those before it, also where it has one token, or none follows."""
    run = n = 0
    while n < BLOCK:
        run = min(run + run // 4, 16384) if run else 8
        n += run
    points = 2 * rng.integers(-2, 3, (1, n + beyond)).astype(np.int32)
    stream = pack(points, uniform_scales(1, n + beyond), EVERY_TRELLIS[1])
    np.testing.assert_array_equal(unpack(stream, n + beyond, 1), points)
    np.testing.assert_array_equal(reference_decoder.symbols(stream, n + beyond, 1, 1), points)


def test_any_buffer_will_do() -> None:
    np.testing.assert_array_equal(unpack(memoryview(b"--" + TINY)[2:], 2, 2), unpack(TINY, 2, 2))


def test_prefix_codes_do_not_go_row_by_row(rng: np.random.Generator) -> None:
    points = legal_points(rng, uniform_scales(96, 128), EVERY_TRELLIS[1], lambda: round(3 * rng.standard_normal()))
    how = points, uniform_scales(96, 128), EVERY_TRELLIS[1]
    by_prefix = pack(*how, may_prefix=True)
    assert by_prefix[0] & 7 == 7
    with pytest.raises(ValueError, match="prefix codes"):
        unpack(by_prefix, 128, 96, by_row=True)
    by_row = pack(*how, may_prefix=True, by_row=True)
    np.testing.assert_array_equal(unpack(by_row, 128, 96, by_row=True), points)


def test_points_that_do_not_fit_are_refused() -> None:
    live = uniform_scales(2, 2)
    dead_row = Scales(5, np.array([DEAD, 0], np.int16), np.zeros(2, np.int16))
    off = np.array([[1, 0], [0, 0]], np.int32)
    for points, scales in ((off, live), (2 * off, dead_row)):
        with pytest.raises(ValueError, match="off the trellis"):
            pack(points, scales, EVERY_TRELLIS[1])
    with pytest.raises(ValueError, match="classes for points"):
        pack(off, uniform_scales(2, 3), EVERY_TRELLIS[1])


# ------------------------------------------------------------------------------------------- size


@pytest.mark.parametrize("deviation", [0.4, 1.0, 6.0])
def test_near_the_entropy_of_a_long_source(deviation: float, rng: np.random.Generator) -> None:
    """Bound, in bits per token, over the entropy of the tokens as they came and the raw bits that no coder can save:

    learning 16 frequencies, N_TOKENS / 2 * log2(n) / n; one slot kept for each token, log2(4096 / 4080), and the same
    for rounding frequencies down; half a token's entropy for what the prior gets wrong at first, 24 tokens' worth.
    """
    n = 1 << 18
    k = (deviation * rng.standard_normal(n)).round().astype(np.int32)
    scale_class = 5 + round(2 * math.log2(deviation))
    stream = pack(2 * k.reshape(512, -1), uniform_scales(512, n // 512, scale_class), EVERY_TRELLIS[1])
    tokens = np.array([token_of(size) for size in range(N_MAGNITUDES)])[abs(k)]
    shares = np.bincount(tokens) / n
    shares = shares[shares > 0]
    raw_bits = np.array([raw_bits_of(size) for size in range(N_MAGNITUDES)])[abs(k)].mean()
    ideal = float(-(shares * np.log2(shares)).sum() + raw_bits)
    slack = N_TOKENS / 2 * math.log2(n) / n + 2 * math.log2(4096 / 4080) + 24 * 16 / n
    assert ideal - 1e-3 < 8 * len(stream) / n < ideal + slack


def test_classes_pay_on_rows_of_different_scale(rng: np.random.Generator) -> None:
    classes = np.repeat(np.arange(0, 16), 16).astype(np.int16)
    points = 2 * (2.0 ** ((classes - 5) / 2) * rng.standard_normal((200, 256))).round().astype(np.int32)
    with_classes = pack(points, Scales(0, classes, np.zeros(200, np.int16)), EVERY_TRELLIS[1])
    assert len(with_classes) < 0.9 * len(pack(points, uniform_scales(200, 256), EVERY_TRELLIS[1]))


def test_the_control_a_wrong_class_costs_bits(rng: np.random.Generator) -> None:
    """Negative control: short messages lean on the prior, so its class has to matter."""
    points = 2 * rng.standard_normal((4, 30)).round().astype(np.int32)
    n_bytes = [len(pack(points, uniform_scales(4, 30, base), EVERY_TRELLIS[1])) for base in (0, 5, 12)]
    assert n_bytes[1] < min(n_bytes[0], n_bytes[2])


def test_period_pays_where_classes_repeat(rng: np.random.Generator) -> None:
    columns = np.tile([0, 20, 3, 14, 8], 60).astype(np.int16)
    scales = Scales(-128, np.zeros(1, np.int16), columns)
    points = np.zeros((300, 1), np.int32)
    n_bytes = {period: len(pack(points, scales, EVERY_TRELLIS[1], period=period)) for period in (1, 5)}
    assert n_bytes[5] < n_bytes[1] / 3


def test_dead_rows_cost_a_flag_and_no_more() -> None:
    dead = np.full(4096, DEAD, np.int16)
    dead[::512] = 0
    points = np.zeros((8, 4096), np.int32)
    points[:, ::512] = 2
    stream = pack(points, Scales(5, dead, np.zeros(8, np.int16)), EVERY_TRELLIS[1])
    np.testing.assert_array_equal(unpack(stream, 4096, 8), points)
    p = 8 / 4096
    flag_bits = -4096 * (p * math.log2(p) + (1 - p) * math.log2(1 - p))
    # 15 log2(n) to learn 16 frequencies count by count; until the first run of 32 ends a flag costs 4 bits; the slots
    # that every token keeps; and 64 points of one size at their prior cost
    learning_bits = 15 * math.log2(4096) + 32 * 4 + 4096 * 2 * math.log2(4096 / 4080)
    assert len(stream) < (flag_bits + learning_bits + 64 * cost_table()[5, 0, 1]) / 8 + 8


# ------------------------------------------------------------------------------------------- damage


def small_stream(rng: np.random.Generator) -> tuple[bytes, int, int, int]:
    """With eight states; and its shape."""
    points, scales, period = small_message(rng, EVERY_TRELLIS[8])
    return pack(points, scales, EVERY_TRELLIS[8], period=period), *points.shape[::-1], period


def test_every_prefix_is_refused(rng: np.random.Generator) -> None:
    stream, *shape = small_stream(rng)
    assert all(is_refused(stream[:n], *shape) for n in range(len(stream)))
    assert is_refused(stream + b"\0", *shape)
    assert not is_refused(stream, *shape)


def test_every_bit_flip_gives_points_or_an_error(rng: np.random.Generator) -> None:
    stream, *shape = small_stream(rng)
    found = [is_refused(damaged, *shape) for _, damaged in bit_flips(stream)]
    assert sum(found) > len(found) / 2  # most are found even without a checksum; signs cannot be


def test_many_mutations(rng: np.random.Generator) -> None:
    stream, *shape = small_stream(rng)
    for damaged in mutations(rng, stream, 10_000):
        is_refused(damaged, *shape)


def test_noise_of_every_header(rng: np.random.Generator) -> None:
    for head in range(256):
        for _ in range(8):
            n_words = int(rng.integers(0, 40))
            stream = (
                bytes([head, int(rng.integers(256))])
                + varint(n_words)
                + rng.bytes(2 * n_words + int(rng.integers(0, 60)))
            )
            is_refused(stream, int(rng.integers(0, 40)), int(rng.integers(0, 40)), int(rng.integers(1, 30)))


def test_a_stream_of_another_shape_is_refused(rng: np.random.Generator) -> None:
    stream, n_rows, n_columns, period = small_stream(rng)
    assert is_refused(stream, n_rows + 1, n_columns, period)
    assert is_refused(stream, n_rows, n_columns - 1, period)


# ------------------------------------------------------------------------------------------- small functions


@given(st.integers(0, 2**63 - 1))
def test_varint_round_trip(value: int) -> None:
    data = varint(value)
    assert len(data) == max(1, -(-value.bit_length() // 7))
    assert read_varint(b"x" + data + b"\xff", 1) == (value, 1 + len(data))


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 8, b"\xff" * 9, b"\xff" * 20])
def test_varint_that_does_not_end(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"cut short|too long"):
        read_varint(data, 0)


def test_tokens_rise_and_raw_bits_tell_magnitudes_apart() -> None:
    tokens = [token_of(size) for size in range(4096)]
    assert tokens == sorted(tokens)
    assert set(tokens) == set(range(N_TOKENS))
    for token in range(N_TOKENS - 1):
        sizes = [size for size in range(4096) if tokens[size] == token]
        assert all(2 ** (raw_bits_of(size) - (size > 0)) == len(sizes) for size in sizes)
    assert [raw_bits_of(size) for size in (96, 97, 98, 99)] == [6, 7, 7, 8]


def test_histogram_counts_what_is_packed(rng: np.random.Generator) -> None:
    classes = rng.integers(0, 9, 40).astype(np.int16)
    scales = Scales(
        2, np.where(rng.random(40) < 0.2, DEAD, classes).astype(np.int16), rng.integers(0, 9, 30).astype(np.int16)
    )
    points = legal_points(rng, scales, EVERY_TRELLIS[8], lambda: int(rng.standard_normal() * 9))
    expected = np.zeros((N_CLASSES, 2, N_TOKENS), np.int32)
    state = 0
    for j in range(30):
        if j % lines_per_chain(40) == 0:
            state = 0
        for i in range(40):
            if scales.rows[i] >= 0:
                c, shift = entropy.scale_context(int(2 + scales.rows[i] + scales.columns[j]))
                q, point = int(EVERY_TRELLIS[8].quantiser[state]), int(points[j, i])
                expected[c, q, token_of((abs(point) + q) // 2 >> shift)] += 1
                state = int(EVERY_TRELLIS[8].next_state[state, parity_of(point, q, c >= EVERY_TRELLIS[8].loud_class)])
    np.testing.assert_array_equal(histogram(points, scales, EVERY_TRELLIS[8]), expected)


@pytest.mark.parametrize("base", [0, 8, 20])
def test_the_price_of_points_is_nearly_what_they_take(base: int, rng: np.random.Generator) -> None:
    """Also of loud ones, that shift low bits out: half to six bits each where the base is 20."""
    scales = Scales(base, rng.integers(0, 5, 300).astype(np.int16), rng.integers(0, 5, 200).astype(np.int16))
    classes = base + scales.rows[None, :] + scales.columns[:, None]
    points = 2 * (2.0 ** ((classes - UNIT_CLASS) / 2) * rng.standard_normal((200, 300))).round().astype(np.int32)
    n_bits = 8 * len(pack(points, scales, EVERY_TRELLIS[1])) - class_bits(scales, 1)
    assert n_bits == pytest.approx(point_bits(points, scales, EVERY_TRELLIS[1]), rel=0.02)


def test_costs_are_the_entropy_of_the_histogram() -> None:
    counts = np.zeros((N_CLASSES, 2, N_TOKENS), np.int32)
    counts[5, 0, :3] = 2**20, 2**19, 2**19
    costs = cost_table(counts)
    assert costs.shape == (N_CLASSES, 2, N_MAGNITUDES)
    # one bit, two and a sign; the prior's 24 symbols shift shares of 2**21 by less than 24 / 2**19
    np.testing.assert_allclose(costs[5, 0, :3], [1, 3, 3], atol=24 / 2**19 * 1.5)
    assert (cost_table()[:, :, 1:] >= 1).all()


def test_the_prior_is_of_the_shape_the_coder_needs() -> None:
    for has_zero in (True, False):
        prior = prior_of(has_zero)
        assert prior.shape == (2 * N_CLASSES, N_TOKENS)
        assert prior.min() >= 1
