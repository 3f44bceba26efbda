"""Patterns mean what they say, and a size is met from below."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from paramcompress import plan
from paramcompress.checkpoint import TensorInfo
from paramcompress.errors import BudgetError, ConfigError
from paramcompress.layer import Setting
from paramcompress.plan import LARGEST_LEVEL, SMALLEST_LEVEL, is_matrix, level_for_size, make, rough_level

NAMES = ["conv1.weight", "conv1.bias", "conv2.weight", "fc.weight", "fc.bias", "steps", "odd[0].weight"]
TENSORS = [
    TensorInfo("conv1.weight", "float32", (8, 3, 3, 3)),
    TensorInfo("conv1.bias", "float32", (8,)),
    TensorInfo("conv2.weight", "bfloat16", (8, 8, 3, 3)),
    TensorInfo("fc.weight", "float32", (10, 8)),
    TensorInfo("fc.bias", "float32", (10,)),
    TensorInfo("steps", "int64", ()),
    TensorInfo("odd[0].weight", "float64", (1, 4)),
]


def settings(
    layers: dict[str, dict[str, Any]] | None = None,
    include: list[str] | None = None,
    exclude: list[str] | None = None,
    *,
    loudness: dict[str, float] | None = None,
    level: float = 0.1,
) -> dict[str, Setting]:
    made = make(TENSORS, layers or {}, include or [], exclude or [], loudness=loudness)
    return {info.name: made.setting(info, level) for info in TENSORS}


def limits(**options: Any) -> dict[str, float]:
    return {name: setting.limit for name, setting in settings(**options).items()}


# ------------------------------------------------------------------------------------------- patterns


@pytest.mark.parametrize("where", ["layers", "include", "exclude"])
def test_a_pattern_without_a_tensor_is_refused_with_a_neighbour(where: str) -> None:
    options: dict[str, Any] = {where: {"fc.weigth": {"rank": 1}} if where == "layers" else ["fc.weigth"]}
    with pytest.raises(ConfigError, match=r"'fc.weigth' matches no tensor") as caught:
        settings(**options)
    assert "fc.weight" in str(caught.value.hint)


# ------------------------------------------------------------------------------------------- settings


def test_without_options_matrices_have_the_level_and_the_rest_is_exact() -> None:
    assert limits() == {
        "conv1.weight": 0.1,
        "conv1.bias": 0,
        "conv2.weight": 0.1,
        "fc.weight": 0.1,
        "fc.bias": 0,
        "steps": 0,
        "odd[0].weight": 0.1,
    }


def test_vectors_have_the_smaller_of_their_limit_and_the_level() -> None:
    assert limits(loudness={})["fc.bias"] == 1e-3
    assert limits(loudness={}, level=1e-5)["fc.bias"] == 1e-5
    assert limits(loudness={})["steps"] == 0


def test_for_a_size_large_and_quiet_matrices_are_coarser() -> None:
    found = limits(loudness={"conv1.weight": 1.0, "conv2.weight": 1.0, "fc.weight": 0.25})
    assert found["conv2.weight"] / found["conv1.weight"] == pytest.approx((8 / 3) ** 0.125)
    assert found["fc.weight"] / found["conv1.weight"] == pytest.approx(2 * (80 / 216) ** 0.125)
    assert found["odd[0].weight"] == 0.1, "nothing is known of it"
    product = found["conv1.weight"] * found["conv2.weight"] * found["fc.weight"]
    assert product == pytest.approx(0.1**3), "the level is what a matrix of average size and loudness may have"


def test_regression_weights_that_are_kept_flat_share_a_size() -> None:
    """As matrices do; but not biases, which are long in a large model only, and not where an error was asked for."""
    tensors = [
        TensorInfo("flat", "float32", (50_000,)),
        TensorInfo("matrix", "float32", (1000, 1000)),
        TensorInfo("bias", "float32", (5_000,)),
        TensorInfo("short", "float32", (1_000,)),
        TensorInfo("tokens", "int64", (60_000,)),
        TensorInfo("tied", "float32", (50_000,), "flat"),
    ]
    assert plan.long_vectors(tensors) == {"flat"}
    made = make(tensors, {}, [], [], loudness={"flat": 0.5, "matrix": 1.0})
    found = {info.name: made.setting(info, 0.1).limit for info in tensors}
    assert found["flat"] / found["matrix"] == pytest.approx(2**0.5 * 20**-0.125)
    assert (found["bias"], found["short"], found["tokens"]) == (1e-3, 1e-3, 0)
    assert make(tensors, {}, [], []).setting(tensors[0], 0.1).limit == 0
    assert plan.long_vectors([*tensors[2:4], TensorInfo("fc", "float32", (100, 100))]) == {"bias"}


def test_no_matrix_is_more_than_eight_times_from_the_level() -> None:
    found = limits(loudness={"conv1.weight": 1e-20, "conv2.weight": 1e20, "fc.weight": 1.0}, level=0.01)
    assert (found["conv1.weight"], found["conv2.weight"]) == (pytest.approx(0.08), pytest.approx(0.00125))
    silent = limits(loudness={"conv1.weight": 0.0, "conv2.weight": 1.0})
    assert silent["conv1.weight"] == silent["conv2.weight"] == 0.1


def test_include_and_exclude() -> None:
    assert {name for name, limit in limits(include=["conv*"]).items() if limit} == {"conv1.weight", "conv2.weight"}
    assert limits(include=["conv*", "fc*"], exclude=["conv2*"])["conv2.weight"] == 0
    assert limits(exclude=["*"]) == dict.fromkeys(NAMES, 0)


def test_what_is_set_for_a_layer_counts_more_than_exclude() -> None:
    found = settings({"fc.weight": {"max_rel_error": 0.2}, "fc.bias": {"max_rel_error": 0.01}}, exclude=["*"])
    assert (found["fc.weight"].limit, found["fc.bias"].limit, found["conv1.weight"].limit) == (0.2, 0.01, 0)


def test_exact_counts_most() -> None:
    found = limits(layers={"*": {"exact": True}, "fc.weight": {"exact": False, "max_rel_error": 0.2}})
    assert {name for name, limit in found.items() if limit} == {"fc.weight"}
    assert limits(layers={"steps": {"max_rel_error": 0.5}})["steps"] == 0


def test_later_patterns_win_key_by_key_and_exact_names_win_over_all() -> None:
    found = settings(
        {
            "fc.weight": {"rank": 7},
            "*.weight": {"rank": 1, "dictionary": "lowrank", "max_rel_error": 0.5},
            "fc*": {"rank": 2, "max_rel_error": 0.3},
        }
    )["fc.weight"]
    assert (found.choice.rank, found.choice.dictionary, found.limit) == (7, "lowrank", 0.3)


def test_only_rank_or_density_without_a_limit_leave_the_error_open() -> None:
    assert settings()["fc.weight"].firm
    assert settings({"fc.weight": {"dictionary": "lowrank"}})["fc.weight"].firm
    assert not settings({"fc.weight": {"rank": 2}})["fc.weight"].firm
    assert not settings({"fc.weight": {"density": 0.1}})["fc.weight"].firm
    assert settings({"fc.weight": {"rank": 2, "max_rel_error": 0.1}})["fc.weight"].firm


def test_a_vector_with_a_choice_has_the_level() -> None:
    assert settings({"fc.bias": {"density": 0.5}})["fc.bias"].limit == 0.1


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((), False),
        ((5,), False),
        ((5, 1), True),
        ((1, 1), False),
        ((1, 5, 1), False),
        ((2, 5, 1), True),
        ((1, 1, 1, 1), False),
        ((0, 3), True),
    ],
)
def test_matrices(shape: tuple[int, ...], expected: bool) -> None:
    assert is_matrix(shape) == expected


# ------------------------------------------------------------------------------------------- sizes

WEIGHTS, HEAD = 1_000_000, 3_000


def smooth(level: float) -> int:
    """Rate-distortion function of a Gaussian layer: half a log2 of 1 / error squared, a weight."""
    return HEAD + round(WEIGHTS * max(-math.log2(level), 0) / 8)


def steps(level: float) -> int:
    """The same in leaps, as where a few layers change from factored to exact."""
    return HEAD + WEIGHTS // 8 * math.ceil(max(-math.log2(level), 0))


def unsteady(level: float) -> int:
    return smooth(level) + int(abs(math.sin(1e4 * level)) * 0.003 * smooth(level))


def counted(size_at: Callable[[float], int]) -> tuple[Callable[[float], int], list[float]]:
    asked: list[float] = []

    def size(level: float) -> int:
        asked.append(level)
        return size_at(level)

    return size, asked


@pytest.mark.parametrize("size_at", [smooth, steps, unsteady])
@pytest.mark.parametrize("target", [HEAD + 10, 30_000, 130_000, 400_000, 1_500_000, 2_400_000])
def test_never_over_and_few_encodings(size_at: Callable[[float], int], target: int) -> None:
    size, asked = counted(size_at)
    level = level_for_size(target, size)
    assert size_at(level) <= target
    assert SMALLEST_LEVEL <= level <= LARGEST_LEVEL
    assert len(asked) <= 13


@pytest.mark.parametrize("size_at", [smooth, unsteady])
@pytest.mark.parametrize("target", [30_000, 130_000, 400_000, 1_500_000])
def test_near_the_target(size_at: Callable[[float], int], target: int) -> None:
    """The search stops at 99.5 % of the target, or where levels differ by 0.2 %, 0.003 bits a weight."""
    found = size_at(level_for_size(target, size_at))
    assert found >= min(0.995 * target, target - 0.003 * WEIGHTS / 8 * 1.05 - 0.003 * target)


def test_a_target_that_cannot_be_met_says_what_could() -> None:
    with pytest.raises(BudgetError, match="2,999") as caught:
        level_for_size(HEAD - 1, smooth)
    assert caught.value.smallest_bytes == HEAD
    assert "3,000" in str(caught.value.hint)
    assert smooth(level_for_size(HEAD, smooth)) == HEAD


def test_a_target_above_everything_gives_a_fine_level() -> None:
    level = level_for_size(10**9, smooth)
    assert level < 1e-4
    assert smooth(level) <= 10**9


def test_the_default_is_the_documented_one() -> None:
    assert plan.DEFAULT_MAX_REL_ERROR == 0.03


def test_a_guess_saves_encodings() -> None:
    """Of a level that is a tenth off, on either side."""
    target = 50_000
    right = level_for_size(target, smooth)
    for guess in (right * 1.1, right / 1.1):
        size, asked = counted(smooth)
        assert 0.995 * target <= smooth(level_for_size(target, size, guess)) <= target
        assert len(asked) <= 5


def by_power(level: float) -> int:
    """As the bytes of a net squeezed with data fall, with a part that no level makes smaller."""
    return HEAD + round(1e5 * level**-0.6)


@pytest.mark.parametrize("size_at", [smooth, unsteady, by_power])
@pytest.mark.parametrize("target", [50_000, 70_000, 200_000, 400_000, 900_000])
def test_a_rough_level_takes_few_encodings(size_at: Callable[[float], int], target: int) -> None:
    size, asked = counted(size_at)
    level = rough_level(target, size, 0.125, 0.67, 0.03)
    assert level is not None
    assert size_at(level) == pytest.approx(target, rel=0.03)
    assert len(asked) <= 7


def test_no_rough_level_for_what_only_the_largest_has_or_none() -> None:
    for target in (0, HEAD - 1, HEAD, 10**9):
        assert rough_level(target, by_power, 0.125, 0.67, 0.03) is None
    assert rough_level(10_000, lambda level: HEAD, 0.125, 0.67, 0.03) is None
