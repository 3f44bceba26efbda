"""One battery for both codecs: what goes in comes out, damaged streams are refused, and the arithmetic is exact."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pytest
import reference_decoder
import torch
from helpers import bit_flips, legal_points, mutations, raw, uniform_scales
from hypothesis import given, settings
from hypothesis import strategies as st

from paramcompress import codec
from paramcompress.codec import (
    LARGEST_KERNEL_AXIS,
    MOST_KERNEL,
    TRANSFORMS,
    Factors,
    Layout,
    LowRank,
    Symbols,
    decode_exact,
    decode_factored,
    encode_exact,
    encode_factored,
    to_tensor,
)
from paramcompress.trellis import TRELLISES

SHAPE = (9, 4, 3, 3)


def symbols(
    rng: np.random.Generator,
    n_columns: int,
    n_rows: int,
    n_states: int = 8,
    size: float = 2.0,
    *,
    by_row: bool = False,
) -> Symbols:
    scales, one = uniform_scales(n_columns, n_rows), TRELLISES[n_states]
    scales.rows[:] = rng.integers(0, 3, n_rows) if by_row else 0
    scales.columns[:] = rng.integers(-1, 3, n_columns) if by_row else 0
    ran = scales.turned if by_row else scales
    points = legal_points(rng, ran, one, lambda: round(size * rng.standard_normal()))
    return Symbols(np.ascontiguousarray(points.T) if by_row else points, scales, one, by_row=by_row)


def factors(
    rng: np.random.Generator,
    shape: tuple[int, ...] = SHAPE,
    *,
    transform: str = "none",
    rank: int = 0,
    stored: bool = True,
    n_states: int = 8,
    by_row: bool = False,
) -> Factors:
    """Random ones of that kind."""
    layout = Layout.of(shape)
    sizes = {"patch": (layout.kernel_size,) * 2, "mirror": (layout.basis_bytes("mirror"),)}
    basis = rng.integers(-128, 128, sizes[transform], np.int8) if transform in sizes else None
    low_rank = None
    if rank:
        matrices = [symbols(rng, rank, n) for n in (layout.n_rows, layout.n_columns)]
        low_rank = LowRank(*matrices, rng.integers(-3, 9, rank).astype(np.int8), float(np.float32(3e-3)))
    points = symbols(rng, layout.n_columns, layout.n_rows, n_states, by_row=by_row) if stored else None
    return Factors(layout, float(np.float32(0.01)), transform, basis, low_rank, points)


@dataclass(frozen=True)
class Case:
    """A stream with the way to decode it to bytes."""

    stream: bytes
    decode: Callable[[bytes], bytes]
    expected: bytes


def factored_case(rng: np.random.Generator, **kind: object) -> Case:
    one = factors(rng, **kind)  # type: ignore[arg-type]
    return Case(
        encode_factored(one),
        lambda stream: decode_factored(stream, SHAPE).reconstruct().tobytes(),
        one.reconstruct().tobytes(),
    )


def exact_case(rng: np.random.Generator, data: bytes, item_bytes: int) -> Case:
    return Case(encode_exact(data, item_bytes), lambda stream: decode_exact(stream, len(data), item_bytes), data)


CASES: dict[str, Callable[[np.random.Generator], Case]] = {
    "exact, one byte": lambda rng: exact_case(rng, rng.bytes(37), 1),
    "exact, four bytes": lambda rng: exact_case(rng, raw(torch.randn(40)), 4),
    "exact, sixteen bytes": lambda rng: exact_case(rng, rng.bytes(160), 16),
    "exact, constant": lambda rng: exact_case(rng, bytes(4000), 4),
    "exact, empty": lambda rng: exact_case(rng, b"", 8),
    "none": lambda rng: factored_case(rng),
    "none, one state": lambda rng: factored_case(rng, n_states=1),
    "none, 32 states": lambda rng: factored_case(rng, n_states=32),
    "by row": lambda rng: factored_case(rng, by_row=True),
    "by row, one state": lambda rng: factored_case(rng, by_row=True, n_states=1),
    "by row, lowrank+patch": lambda rng: factored_case(rng, by_row=True, n_states=32, rank=1, transform="patch"),
    "patch": lambda rng: factored_case(rng, transform="patch"),
    "cosine": lambda rng: factored_case(rng, transform="cosine"),
    "mirror": lambda rng: factored_case(rng, transform="mirror"),
    "lowrank": lambda rng: factored_case(rng, rank=3),
    "lowrank alone": lambda rng: factored_case(rng, rank=9, stored=False),
    "lowrank+patch": lambda rng: factored_case(rng, rank=1, transform="patch"),
    "lowrank+cosine": lambda rng: factored_case(rng, rank=2, transform="cosine"),
    "lowrank+mirror": lambda rng: factored_case(rng, rank=2, transform="mirror"),
    "nothing": lambda rng: factored_case(rng, stored=False),
    "patch of nothing": lambda rng: factored_case(rng, transform="patch", stored=False),
}
BATTERY = pytest.mark.parametrize("case", CASES)


# ------------------------------------------------------------------------------------------- the battery


@BATTERY
def test_round_trip(case: str, rng: np.random.Generator) -> None:
    one = CASES[case](rng)
    assert one.decode(one.stream) == one.expected
    assert one.decode(memoryview(b"-" + one.stream)[1:]) == one.expected


@BATTERY
def test_encoding_again_gives_the_same_bytes(case: str) -> None:
    torch.manual_seed(0)
    first = CASES[case](np.random.default_rng(1)).stream
    torch.manual_seed(0)
    assert CASES[case](np.random.default_rng(1)).stream == first


def survives(one: Case, stream: bytes) -> bool:
    """Whether a damaged stream decodes all the same; ValueError is the only error there may be."""
    try:
        return len(one.decode(stream)) == len(one.expected)
    except ValueError:
        return False


@BATTERY
def test_cut_short_or_too_long(case: str, rng: np.random.Generator) -> None:
    """A cut is found, but for the one before S, which is zero then: only the checksum knows. Of nothing, nothing is
    lost."""
    one = CASES[case](rng)
    found = [n for n in range(len(one.stream)) if survives(one, one.stream[:n])]
    has_stored = not case.startswith("exact") and "alone" not in case and "nothing" not in case
    assert len(found) <= has_stored or not one.expected
    if not case.startswith("exact"):
        assert not survives(one, one.stream + bytes(40))


@BATTERY
def test_every_bit_flip(case: str, rng: np.random.Generator) -> None:
    one = CASES[case](rng)
    for _, damaged in bit_flips(one.stream):
        survives(one, damaged)


@BATTERY
def test_mutations(case: str, rng: np.random.Generator) -> None:
    one = CASES[case](rng)
    for damaged in mutations(rng, one.stream, 300):
        survives(one, damaged)


# ------------------------------------------------------------------------------------------- factored


@pytest.mark.parametrize("case", [name for name in CASES if not name.startswith("exact")])
def test_the_slow_decoder_agrees(case: str, rng: np.random.Generator) -> None:
    one = CASES[case](rng)
    assert reference_decoder.factored(one.stream, SHAPE).tobytes() == one.expected


def test_a_layer_by_hand() -> None:
    """W = scale C D' + step S, with numbers small enough to check by eye."""
    one, plain = TRELLISES[1], uniform_scales
    low_rank = LowRank(
        Symbols(np.array([[2, 4]], np.int32), plain(1, 2), one),
        Symbols(np.array([[2, 0, -2]], np.int32), plain(1, 3), one),
        np.array([-1], np.int8),
        0.5,
    )
    stored = Symbols(np.array([[2, 0], [0, 0], [0, -4]], np.int32), plain(3, 2), one)
    found = Factors(Layout.of((2, 3)), 0.25, "none", None, low_rank, stored)
    # C D' = [[2, 0, -2], [4, 0, -4]] once 2**-1 is in; S = [[2, 0, 0], [0, 0, -4]]
    assert found.reconstruct().tolist() == [[1.5, 0.0, -1.0], [2.0, 0.0, -3.0]]
    assert (found.rank, found.n_stored, found.dictionary, found.is_exact) == (1, 2, "lowrank", True)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("rank", [0, 3])
def test_every_weight_is_one_rounding_of_exact_sums(transform: str, rank: int, rng: np.random.Generator) -> None:
    """The definition in docs/format.md in rational numbers, rounded where that page says: products, sum, float32."""
    one = factors(rng, transform=transform, rank=rank)
    k = 9
    matrix = [[Fraction(int(i == j)) for j in range(k)] for i in range(k)]
    if one.basis_matrix is not None:
        integers, exponent = one.basis_matrix
        matrix = [[Fraction(v) * Fraction(2) ** exponent for v in row] for row in integers.astype(int).tolist()]
    found = one.reconstruct()
    assert one.stored is not None
    for i, j in zip(rng.integers(0, 9, 60).tolist(), rng.integers(0, 36, 60).tolist(), strict=True):
        p, t = divmod(j, k)
        a = sum((matrix[t][u] * int(one.stored.points[p * k + u, i]) for u in range(k)), Fraction(0))
        total = float(a) * one.step
        if one.low_rank is not None:
            c, d = one.low_rank.coefficients.points, one.low_rank.atoms.points
            exponents = one.low_rank.exponents.tolist()
            b = sum((int(c[n, i]) * int(d[n, j]) * Fraction(2) ** exponents[n] for n in range(rank)), Fraction(0))
            assert Fraction(float(b)) == b
            total += float(b) * one.low_rank.scale
        assert Fraction(float(a)) == a
        assert found[i, j] == np.float32(total)


def test_no_zero_is_negative(rng: np.random.Generator) -> None:
    """Products 0 * -m are negative zeros, whose sum is -0 or +0 with the way a machine adds: the format says +0."""
    basis = np.array([[-64, -64], [-64, 64]], np.int8)
    nothing = Symbols(np.zeros((8, 5), np.int32), uniform_scales(8, 5))
    alone = Factors(Layout.of((5, 4, 2)), 0.5, "patch", basis, None, nothing)
    coefficients = Symbols(np.full((1, 5), -2, np.int32), uniform_scales(1, 5))
    low_rank = LowRank(
        coefficients, Symbols(np.zeros((1, 8), np.int32), uniform_scales(1, 8)), np.zeros(1, np.int8), 1.0
    )
    for one in (
        alone,
        replace(alone, low_rank=low_rank),
        replace(alone, low_rank=low_rank, stored=None, transform="none"),
    ):
        assert not np.signbit(one.reconstruct()).any()


def test_blocks_of_rows_do_not_show(rng: np.random.Generator) -> None:
    """600 rows decode to what each of them decodes to alone."""
    one = factors(rng, (600, 2, 3, 3), transform="cosine", rank=2, n_states=1)
    whole = one.reconstruct()
    assert one.low_rank is not None
    assert one.stored is not None
    for i in (0, 255, 256, 511, 599):
        row = slice(i, i + 1)
        alone = replace(
            one,
            layout=replace(one.layout, n_rows=1),
            stored=Symbols(np.ascontiguousarray(one.stored.points[:, row])),
            low_rank=replace(
                one.low_rank, coefficients=Symbols(np.ascontiguousarray(one.low_rank.coefficients.points[:, row]))
            ),
        )
        np.testing.assert_array_equal(alone.reconstruct()[0], whole[i])


def with_peaks(
    stored: int, coefficient: int = 0, atom: int = 0, rank: int = 1, exponents: tuple[int, ...] = (0,)
) -> Factors:
    """Factors whose largest integers are those."""
    low_rank = None
    if coefficient:
        low_rank = LowRank(
            Symbols(np.full((rank, 4), coefficient, np.int32)),
            Symbols(np.full((rank, 4), atom, np.int32)),
            np.array(exponents, np.int8),
            1.0,
        )
    return Factors(Layout.of((4, 4)), 1.0, "none", None, low_rank, Symbols(np.full((4, 4), stored, np.int32)))


def test_is_exact_is_true_up_to_53_bits() -> None:
    assert with_peaks(2**30 - 1).is_exact
    assert with_peaks(1, 2**26, 2**26).is_exact
    assert not with_peaks(1, 2**27, 2**26).is_exact
    assert not with_peaks(1, 2**26, 2**26, 2, (0, 0)).is_exact
    assert with_peaks(1, 2**26, 2**25, 2, (0, 0)).is_exact
    assert with_peaks(1, 2**25, 2**25, 2, (3, 3)).is_exact
    assert not with_peaks(1, 2**25, 2**25, 2, (0, 3)).is_exact


def test_is_exact_counts_the_transform() -> None:
    layout = Layout.of((2, 1, 4, 4, 4))
    points = np.full((64, 2), 2**30 - 1, np.int32)
    cosine = Factors(layout, 1.0, "cosine", None, None, Symbols(points))
    assert not cosine.is_exact
    assert replace(cosine, stored=Symbols(points >> 9)).is_exact
    assert replace(cosine, transform="none").is_exact


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: bytes([4]) + data[1:], "unknown kind"),
        (lambda data: bytes([data[0] | 64]) + data[1:], "unknown kind"),
        (lambda data: data[:1] + np.float32("nan").tobytes() + data[5:], "a step of nan"),
        (lambda data: data[:1] + np.float32("inf").tobytes() + data[5:], "a step of inf"),
        (lambda data: data[:5] + np.float32("nan").tobytes() + data[9:], "rank 3"),
        (lambda data: data[:9] + bytes([0]) + data[10:], "rank 0"),
        (lambda data: data[:9] + bytes([10]) + data[10:], "rank 10"),
        (lambda data: data[:9] + bytes([0xFF] * 8 + [1]) + data[10:], "rank"),
        (lambda data: data[:13] + bytes([0xFF, 0x7F]) + data[15:], "cut short"),
        (lambda data: data[:4], "too short"),
        (lambda data: data[:7], "cut short"),
    ],
)
def test_heads_that_make_no_sense(damage: Callable[[bytes], bytes], said: str, rng: np.random.Generator) -> None:
    stream = encode_factored(factors(rng, rank=3))
    with pytest.raises(ValueError, match=said):
        decode_factored(damage(stream), SHAPE)


def test_an_order_of_points_that_are_not_there(rng: np.random.Generator) -> None:
    stream = bytearray(encode_factored(factors(rng, rank=3, stored=False)))
    stream[0] |= 32
    with pytest.raises(ValueError, match="order of points"):
        decode_factored(stream, SHAPE)


@pytest.mark.parametrize("shape", [(9, 36), (9, 4, 1, 1), (9, 4, 17, 17), (2, 3, 40), (), (5,)])
@pytest.mark.parametrize("transform", ["patch", "cosine", "mirror"])
def test_a_transform_needs_kernels(shape: tuple[int, ...], transform: str, rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="without kernels"):
        decode_factored(encode_factored(factors(rng, transform=transform)), shape)


@pytest.mark.parametrize("shape", [(9, 4, 3, 2), (8, 4, 3, 3), (0, 4, 3, 3), (9, 0, 3, 3), (9, 4, 0), (0,)])
def test_streams_of_another_shape(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    """Also of shapes without any weight, where an honest file keeps no factors. Of larger ones the hash finds out."""
    for kind in ({}, {"rank": 2}, {"transform": "patch"}, {"transform": "mirror"}):
        stream = encode_factored(factors(rng, **kind))
        with pytest.raises(ValueError):  # noqa: PT011 -- which of several reasons is found first does not matter
            decode_factored(stream, shape).reconstruct()


# ------------------------------------------------------------------------------------------- exact


@given(st.binary(max_size=400), st.sampled_from([1, 2, 4, 8, 16]))
@settings(max_examples=100, deadline=None)
def test_exact_round_trip_of_anything(data: bytes, item_bytes: int) -> None:
    data = data[: len(data) // item_bytes * item_bytes]
    assert decode_exact(encode_exact(data, item_bytes), len(data), item_bytes) == data


def test_planes_pay(rng: np.random.Generator) -> None:
    """Weights share their exponents: planes of bytes are smaller than the bytes as they lie, noise grows by a frame's
    head."""
    weights = raw(torch.from_numpy(rng.standard_normal(20000).astype(np.float32)))
    assert len(encode_exact(weights, 4)) < 0.95 * len(encode_exact(weights, 1))
    assert len(encode_exact(rng.bytes(50000), 4)) <= 50000 + 16


@pytest.mark.parametrize("n_bytes", [0, 4, 36, 44, 1 << 50])
def test_exact_of_another_size_is_refused(n_bytes: int, rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="expected"):
        decode_exact(encode_exact(rng.bytes(40), 4), n_bytes, 4)


def test_a_frame_that_claims_petabytes() -> None:
    """Magic number, a descriptor that announces eight bytes of size, 2**50: refused by what the caller expects,
    unread."""
    frame = bytes.fromhex("28b52ffd e0") + (1 << 50).to_bytes(8, "little") + b"\x01\x00\x00"
    with pytest.raises(ValueError, match="expected 8"):
        decode_exact(frame, 8, 4)


# ------------------------------------------------------------------------------------------- layout and rounding


@pytest.mark.parametrize(
    ("shape", "n_rows", "n_columns", "kernel"),
    [
        ((), 1, 1, ()),
        ((1,), 1, 1, ()),
        ((7,), 7, 1, ()),
        ((0,), 0, 1, ()),
        ((5, 7), 5, 7, ()),
        ((1, 7), 1, 7, ()),
        ((5, 7, 3), 5, 21, (3,)),
        ((5, 7, LARGEST_KERNEL_AXIS), 5, 7 * LARGEST_KERNEL_AXIS, (LARGEST_KERNEL_AXIS,)),
        ((5, 7, LARGEST_KERNEL_AXIS + 1), 35, LARGEST_KERNEL_AXIS + 1, ()),
        ((1, 5, 7), 5, 7, ()),
        ((1, 1, 5, 7), 5, 7, ()),
        ((1, 1, 1), 1, 1, ()),
        ((64, 3, 5, 5), 64, 75, (5, 5)),
        ((1, 3, 5, 5), 3, 25, (5,)),
        ((2, 3, 4, 5, 6), 2, 360, (4, 5, 6)),
    ],
)
def test_layouts(shape: tuple[int, ...], n_rows: int, n_columns: int, kernel: tuple[int, ...]) -> None:
    found = Layout.of(shape)
    assert found == Layout(n_rows, n_columns, kernel)
    assert (n_rows, n_columns, kernel) == reference_decoder.layout(shape)
    assert found.kernel_size == math.prod(kernel)
    assert found.takes_transform == (1 < math.prod(kernel) <= MOST_KERNEL)


@given(st.lists(st.integers(1, 20), max_size=6))
def test_a_layout_holds_all_weights(shape: list[int]) -> None:
    found = Layout.of(tuple(shape))
    assert found.n_rows * found.n_columns == math.prod(shape)
    assert found.n_columns % found.kernel_size == 0


def test_one_rounding_to_the_dtype() -> None:
    """float32 first: this float64 would round to another bfloat16 on its own, and nobody shall do that."""
    value = np.array([[1 + 2**-8 + 2**-30]])
    assert value[0, 0] > 1 + 2**-8  # a little over the tie between 1 and 1 + 2**-7
    assert float(to_tensor(value.astype(np.float32), (1, 1), torch.bfloat16)) == 1.0
    assert to_tensor(value.astype(np.float32), (1,), torch.float64).dtype == torch.float64


def test_eight_bits_without_infinity_stop_at_the_largest() -> None:
    """Whatever the version of torch does: some make NaN of it, and the hash in the file would not match."""
    found = to_tensor(np.array([448, 464, 465, 1e6, -500], np.float32), (5,), torch.float8_e4m3fn)
    assert found.float().tolist() == [448, 448, 448, 448, -448]


def test_the_control_a_stream_without_its_step_is_noticed(rng: np.random.Generator) -> None:
    """Negative control for the battery: a decoder that forgets one factor does not pass the round trip."""
    one = CASES["none"](rng)
    wrong = replace(decode_factored(one.stream, SHAPE), step=1.0)
    assert wrong.reconstruct().tobytes() != one.expected


def test_numbers_of_the_stream_are_part_of_the_format() -> None:
    assert TRANSFORMS == ("none", "patch", "cosine", "mirror")
    assert (codec.BASIS_SCALE, codec.COSINE_SCALE, LARGEST_KERNEL_AXIS, MOST_KERNEL) == (128, 128, 16, 256)
