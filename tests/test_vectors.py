"""Vectors coded together: the step that holds a limit, every number back, few bytes, and nothing believed."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import reference_decoder
import torch
from forging import Forged
from helpers import bit_flips, gaussian, mutations, raw, squeeze
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import paramcompress
from paramcompress import container, vectors
from paramcompress.container import POOL, SAME, VECTORS, Reader
from paramcompress.errors import FormatError
from paramcompress.vectors import CODES, MOST_NUMBERS, MOST_POINT, VECTOR, Vector, pack, quantise, step_of, unpack

PERIOD = 3


def turns(rng: np.random.Generator, n_turns: int = 12, n: int = 40) -> list[Vector]:
    """Scales about 1, means about 0 and large variances, layer after layer, of two lengths."""
    found = []
    for turn in range(n_turns):
        size = n if turn % 2 else 2 * n
        for values, limit in (
            (1 + 0.1 * rng.standard_normal(size), 1e-2),
            (0.3 * rng.standard_normal(size), 3e-2),
            (50 + 5 * rng.random(size), 3e-3),
        ):
            vector = quantise(values.astype(np.float32), limit)
            assert vector is not None
            found.append(vector)
    return found


def records(found: list[Vector]) -> list[bytes]:
    return [one.record for one in found]


def lengths(found: list[Vector]) -> list[int]:
    return [len(one.points) for one in found]


def is_refused(stream: bytes, expected: list[Vector]) -> bool:
    """Whether a stream is found to be damaged; if not, it has the records that are expected of it: what nobody reads
    was damaged."""
    try:
        assert unpack(stream, lengths(expected)) == b"".join(records(expected))
    except ValueError:
        return True
    return False


@st.composite
def files(draw: st.DrawFn) -> list[Vector]:
    """Vectors of any lengths, steps and loudnesses, some with nothing but zeros or one number."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    found = []
    for _ in range(draw(st.integers(1, 12))):
        n = draw(st.sampled_from([1, 2, 7, 7, 64, 300]))
        code = draw(st.sampled_from([CODES[0], -40, -8, -7, -1, 0, 5, CODES[-1]]))
        loud = draw(st.sampled_from([0, 1, 5, 1000, MOST_POINT // 2 - 1]))
        centre = draw(st.sampled_from([0, 0, -3, 400, MOST_POINT // 2]))
        found.append(Vector(code, (centre + rng.integers(-loud, loud + 1, n)).astype(np.int32)))
    return found


# ------------------------------------------------------------------------------------------- one vector


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([1, 2, 16, 500]),
    st.sampled_from([1e-30, 1e-3, 1.0, 1e20]),
    st.sampled_from([0.0, 1.0, 30.0]),
    st.sampled_from([1e-5, 1e-3, 0.03, 0.2, 0.5, 1.0]),
)
def test_the_limit_is_held_and_little_is_given_away(seed: int, n: int, size: float, about: float, limit: float) -> None:
    """A step finer than need be shows in the error of long vectors, unless a coarse one happens to fit."""
    values = (size * (about + np.random.default_rng(seed).standard_normal(n))).astype(np.float32)
    vector = quantise(values, limit)
    assert vector is not None
    error = float(np.linalg.norm(values.astype(np.float64) - vector.values) / np.linalg.norm(values.astype(np.float64)))
    assert error <= limit
    assert n < 500 or error > 0.8 * limit or (about > 0 and limit > 0.01)


@pytest.mark.parametrize(
    ("values", "limit"),
    [
        ([0.0, 0.0], 0.1),
        ([1.0, math.inf], 0.1),
        ([1.0, math.nan], 0.1),
        ([1.0], 0.0),
        ([], 0.1),
        ([1.0, 1e12], 1e-13),
        ([1e-30, 2e-30], 1e-300),
    ],
)
def test_there_is_none_of_what_has_no_step(values: list[float], limit: float) -> None:
    with np.errstate(invalid="ignore"):
        assert quantise(np.array(values, np.float32), limit) is None


def test_the_longest() -> None:
    assert quantise(np.ones(MOST_NUMBERS, np.float32), 0.1) is not None
    assert quantise(np.ones(MOST_NUMBERS + 1, np.float32), 0.1) is None


def test_steps_rise_by_an_eighth_of_an_octave_at_most() -> None:
    steps = [step_of(code) for code in CODES]
    ratios = np.array(steps[1:]) / np.array(steps[:-1])
    assert 1 < ratios.min() < ratios.max() <= 1.125
    assert [step_of(code) for code in (-9, -8, -1, 0, 1, 8)] == [0.46875, 0.5, 0.9375, 1.0, 1.125, 2.0]


def test_a_record_is_a_code_and_its_points() -> None:
    vector = Vector(-9, np.array([1, -2], np.int32))
    assert vector.record == b"\xf7\xff\xff\xff\x01\0\0\0\xfe\xff\xff\xff"
    assert len(vector.record) == vectors.record_bytes(2)
    assert Vector.of_record(vector.record).record == vector.record
    assert vector.values.tolist() == [0.46875, -0.9375]
    with pytest.raises(ValueError, match="cut short"):
        Vector.of_record(b"\0\0\0")


# ------------------------------------------------------------------------------------------- all of a file


@settings(max_examples=200, deadline=None)
@given(files())
def test_round_trip(found: list[Vector]) -> None:
    assert unpack(pack(records(found)), lengths(found)) == b"".join(records(found))


@settings(max_examples=30, deadline=None)
@given(files())
def test_the_slow_decoder_agrees(found: list[Vector]) -> None:
    with np.errstate(over="ignore"):
        slow = reference_decoder.vectors(pack(records(found)), lengths(found))
    assert [one.tobytes() for one in slow] == [one.values.tobytes() for one in found]


def test_together_they_take_little_more_than_their_entropy(rng: np.random.Generator) -> None:
    """Without centres a scale about 1 with a tenth of that as its spread costs three bits more; a stream of its own
    some 15 bytes more each."""
    found = turns(rng)
    bits = 0.0
    for one in found:
        spread = float((one.points - one.points.mean()).std())
        bits += len(one.points) * 0.5 * math.log2(2 * math.pi * math.e * (spread**2 + 1 / 12))
    n = len(pack(records(found)))
    assert bits / 8 * 0.97 < n < bits / 8 * 1.02 + 2.5 * len(found)
    assert sum(one.n_bytes for one in found) == pytest.approx(n, rel=0.03)


def test_they_are_forecast_from_those_a_period_before(rng: np.random.Generator) -> None:
    assert pack(records(turns(rng)))[0] % PERIOD == 0


def test_a_centre_pays_or_is_none(rng: np.random.Generator) -> None:
    noise = rng.integers(-50, 51, 64).astype(np.int32)
    assert vectors._centre_and_bits(noise)[0] == 0
    assert vectors._centre_and_bits(noise + 300)[0] == round(float(noise.mean())) + 300
    assert vectors._centre_and_bits(np.full(1, 9, np.int32))[0] == 0, "it would cost what it saves"


# ------------------------------------------------------------------------------------------- anything else


def test_damage_is_found(rng: np.random.Generator) -> None:
    """Every flipped bit but for the unused ones at the end of a bit string, and streams cut or lengthened."""
    found = turns(rng, 3, 8)
    stream = pack(records(found))
    flipped = (damaged for _, damaged in bit_flips(stream))
    assert sum(not is_refused(damaged, found) for damaged in flipped) <= 3 * 7
    for damaged in [*(stream[:n] for n in range(len(stream))), stream + b"\0"]:
        assert is_refused(damaged, found)


def test_no_bytes_do_harm(rng: np.random.Generator) -> None:
    found = turns(rng, 2, 8)
    for damaged in mutations(rng, pack(records(found)), 500):
        is_refused(damaged, found)


@pytest.mark.parametrize(
    ("vector", "reason"),
    [
        (Vector(CODES[-1] + 1, np.ones(3, np.int32)), "a step that there is none of"),
        (Vector(CODES[0] - 1, np.ones(3, np.int32)), "a step that there is none of"),
        (Vector(0, np.array([0, 0, -MOST_POINT], np.int32)), "too large"),
    ],
)
def test_what_is_not_in_the_format_is_refused(vector: Vector, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        unpack(pack([vector.record]), [3])


def test_a_trellis_is_refused(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "_PLAIN", vectors.TRELLISES[8])
    stream = pack([Vector(0, np.zeros(3, np.int32)).record])
    with pytest.raises(ValueError, match="trellis"):
        unpack(stream, [3])


# ------------------------------------------------------------------------------------------- in a file


@pytest.fixture
def network(rng: np.random.Generator) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {"weight": gaussian(rng, 40, 30)}
    for layer in range(8):
        state[f"bn{layer}.weight"] = 1 + 0.1 * gaussian(rng, 40)
        state[f"bn{layer}.bias"] = gaussian(rng, 40, dtype="bfloat16")
        state[f"bn{layer}.shape"] = gaussian(rng, 1, 40, 1, 1)
    state["whole"] = torch.arange(40)
    return state


def test_vectors_of_a_file_lie_together(network: dict[str, Tensor], tmp_path: Path) -> None:
    file = squeeze(tmp_path / "f.safetensors", network, target_size=2600)
    with Reader(file) as reader:
        homes = {name: entry.home for name, entry in reader.entries.items()}
        assert {name for name, home in homes.items() if home == VECTORS} == {name for name in network if "bn" in name}
        sizes = [reader.part_bytes(entry) for entry in reader.index.entries if entry.home == VECTORS]
        matrix = reader.part_bytes(reader.entries["weight"])
        assert sum(sizes) + matrix == pytest.approx(reader._parts[POOL][1] - 4, abs=len(sizes))
    paramcompress.verify(file)
    loaded = paramcompress.load_file(file)
    for name, value in network.items():
        assert (loaded[name].dtype, loaded[name].shape) == (value.dtype, value.shape)
        assert float((loaded[name].double() - value.double()).norm()) <= 0.4 * float(value.double().norm())
    for layer in paramcompress.inspect(file).layers:
        assert layer.codec != VECTOR or layer.rel_error <= 3e-3, "1e-3, and what bfloat16 adds"


def test_one_alone_is_read_without_the_matrices(network: dict[str, Tensor], tmp_path: Path) -> None:
    file = squeeze(tmp_path / "f.safetensors", network, target_size=2600)
    whole = paramcompress.load_file(file)
    with paramcompress.open_file(file) as opened:
        assert torch.equal(opened.get_tensor("bn3.bias"), whole["bn3.bias"])


def test_equal_vectors_are_stored_once(rng: np.random.Generator, tmp_path: Path) -> None:
    long = gaussian(rng, 400)
    one = squeeze(tmp_path / "1.safetensors", {"a": long}, layers={"*": {"max_rel_error": 0.01}})
    two = squeeze(tmp_path / "2.safetensors", {"a": long, "b": long.clone()}, layers={"*": {"max_rel_error": 0.01}})
    with Reader(two) as reader:
        assert [entry.home for entry in reader.index.entries] == [VECTORS, SAME]
    assert two.stat().st_size < one.stat().st_size + 60
    loaded = paramcompress.load_file(two)
    assert torch.equal(*loaded.values())
    assert Forged.of(two).index["entries"]["crc"] == "", "no vector has a checksum of its own, wherever it is"
    slow = reference_decoder.decode_file(two)
    assert [told for _, _, told in slow.values()] == [raw(one) for one in loaded.values()]


def test_a_long_vector_has_the_codec_that_takes_fewer_bytes(rng: np.random.Generator, tmp_path: Path) -> None:
    """About zero the trellis of a stream of its own saves more than it costs; about 1 the centre does, also where few
    numbers are far from it."""
    far = 1 + 0.1 * gaussian(rng, 4096)
    far[::100] = 20
    state = {
        "zero": gaussian(rng, 8000),
        "one": 1 + 0.1 * gaussian(rng, 8000),
        "far": far,
        "too_long": gaussian(rng, 70000),
    }
    limits = {"*": {"max_rel_error": 0.001}, "far": {"max_rel_error": 0.03}}
    file = squeeze(tmp_path / "f.safetensors", state, layers=limits)
    found = {layer.name: layer.codec for layer in paramcompress.inspect(file).layers}
    assert found == {"zero": "factored", "one": VECTOR, "far": VECTOR, "too_long": "factored"}


def forged(network: dict[str, Tensor], tmp_path: Path) -> Forged:
    return Forged.of(squeeze(tmp_path / "f.safetensors", network, target_size=2600))


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("n_bytes", 160, "no vector of its size"),
        ("shape", [MOST_NUMBERS + 1], "no vector of its size"),
        ("shape", [0], "no vector of its size"),
        ("shape", [39], "no vector of its size"),
        ("codec", "factored", "codec makes no sense"),
        ("codec", "exact", "codec makes no sense"),
        ("home", container.POOLED, "codec makes no sense"),
        ("home", 5, "codec, home makes no sense"),
        ("dtype", "int64", "a vector of dtype int64"),
    ],
)
def test_an_index_that_tells_another_story(
    column: str, value: object, reason: str, network: dict[str, Tensor], tmp_path: Path
) -> None:
    made = forged(network, tmp_path)
    at = made.index["entries"]["name"].index("bn3.weight")
    made.index["entries"][column][at] = value
    if column == "codec":
        made.index["entries"]["crc"] += "0" * 8
    (tmp_path / "g.safetensors").write_bytes(made.build())
    with pytest.raises(FormatError, match=reason):
        paramcompress.load_file(tmp_path / "g.safetensors")


def test_a_part_that_is_bad_is_unpacked_once(
    network: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a damaged file of many vectors would take as many times the time of one."""
    made = forged(network, tmp_path)
    made.parts[POOL] = made.parts[POOL][:-1] + bytes([made.parts[POOL][-1] ^ 1])
    (tmp_path / "g.safetensors").write_bytes(made.build())
    lengths_seen = []

    def counted(stream: bytes, lengths: list[int]) -> bytearray:
        lengths_seen.append(lengths)
        return unpack(stream, lengths)

    monkeypatch.setattr(vectors, "unpack", counted)
    with paramcompress.open_file(tmp_path / "g.safetensors") as opened:
        for name in ("bn1.bias", "bn2.bias", "bn1.bias"):
            with pytest.raises(FormatError, match="do not have the hash"):
                opened.get_tensor(name)
        assert opened.get_tensor("weight").shape == (40, 30)
    assert len(lengths_seen) == 1


def test_reading_takes_little_more_than_the_points(tmp_path: Path) -> None:
    """Few bytes may claim many numbers, and of dtypes of one byte each: four bytes for the points, four for the records
    of all."""
    nothing = [Vector(0, np.zeros(MOST_NUMBERS, np.int32)).record] * 40
    stream = pack(nothing)
    unpack(stream, [MOST_NUMBERS] * 40)
    tracemalloc.start()
    records_found = unpack(stream, [MOST_NUMBERS] * 40)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert records_found == b"".join(nothing)
    assert peak < 8.5 * 40 * MOST_NUMBERS


def test_checksums_are_of_all_but_vectors(network: dict[str, Tensor], tmp_path: Path) -> None:
    made = forged(network, tmp_path)
    assert len(made.index["entries"]["crc"]) == 8 * 2
    for digits in ("", made.index["entries"]["crc"][:8], made.index["entries"]["crc"] + "0" * 8):
        wrong = made.copy()
        wrong.index["entries"]["crc"] = digits
        (tmp_path / "g.safetensors").write_bytes(wrong.build())
        with pytest.raises(FormatError, match="checksums"):
            paramcompress.load_file(tmp_path / "g.safetensors")


def test_nothing_hides_behind_a_pool_without_vectors(rng: np.random.Generator, tmp_path: Path) -> None:
    made = Forged.of(squeeze(tmp_path / "f.safetensors", {"w": gaussian(rng, 40, 30)}, max_rel_error=0.1))
    made.parts[POOL] += b"hidden"
    (tmp_path / "g.safetensors").write_bytes(made.build())
    with pytest.raises(FormatError, match="the pool is not as large as its streams"):
        paramcompress.load_file(tmp_path / "g.safetensors")


def test_a_part_that_says_something_else_is_found(network: dict[str, Tensor], tmp_path: Path) -> None:
    """Its own checksum forged: the hash of the vectors tells."""
    made = forged(network, tmp_path)
    part = bytearray(made.parts[POOL])
    part[-20] ^= 1
    made.parts[POOL] = bytes(part)
    (tmp_path / "g.safetensors").write_bytes(made.build())
    with pytest.raises(FormatError, match="vectors"):
        paramcompress.load_file(tmp_path / "g.safetensors")


def test_a_vector_that_is_explained(network: dict[str, Tensor], tmp_path: Path) -> None:
    file = squeeze(tmp_path / "f.safetensors", network, target_size=2600)
    found = paramcompress.explain(file, "bn2.weight")
    now = next(one for one in found.choices if one.dictionary == "none")
    assert (now.bytes, found.sections["stored"]) == (found.layer.bytes_after,) * 2
    assert sum(found.sections.values()) == found.layer.bytes_after
    exact = next(one for one in found.choices if one.dictionary == "exact")
    assert now.bytes < exact.bytes == 160
    assert [one.bytes for one in found.relaxed] == sorted((one.bytes for one in found.relaxed), reverse=True)
    assert found.relaxed[0].bytes < now.bytes
