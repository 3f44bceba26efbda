"""Steering the error of a matrix by the weight of a bit, against matrices whose parts do as the model says, or not."""

from __future__ import annotations

import numpy as np
import pytest

from paramcompress.fit.steer import HEAVIEST, LIGHTEST, Steering, likely_error

LIKELY = (0.25, 0.5, 0.25)
MOST = 6


def errors_at(bases: tuple[float, ...], effect: float, weights: list[float]) -> list[float]:
    return [base * (1 + effect * weight) for base, weight in zip(bases, weights, strict=False)]


def steered(bases: tuple[float, ...], effect: float, expected: float) -> tuple[Steering, list[int]]:
    """The parts that are quantised, in their order."""
    steering, weights, parts = Steering(1.0, 0.02, LIKELY, expected), [], []
    following: tuple[int, float] | None = (0, 1.0)
    while following is not None and not steering.is_done and len(parts) < MOST:
        part, weight = following
        assert LIGHTEST <= weight <= HEAVIEST
        weights[part : part + 1] = [weight]
        parts.append(part)
        steering.note(part, weight, errors_at(bases, effect, weights))
        following = steering.following()
    return steering, parts


@pytest.mark.parametrize("off", [0.96, 1.0, 1.02])
def test_parts_that_are_as_expected_are_quantised_once(off: float) -> None:
    bases = tuple(off * likely / 1.3 for likely in LIKELY)
    steering, parts = steered(bases, 0.3, 0.3)
    assert steering.is_done
    assert parts == [0, 1, 2]


@pytest.mark.parametrize("bases", [(0.19, 0.41, 0.19), (0.19, 0.37, 0.2), (0.2, 0.37, 0.2)])
@pytest.mark.parametrize("expected", [0.2, 0.3, 0.6])
def test_what_was_not_as_expected_is_quantised_again(bases: tuple[float, ...], expected: float) -> None:
    """Parts that are louder than they looked, and an effect that is twice as large or half."""
    steering, parts = steered(bases, 0.3, expected)
    assert steering.is_done
    assert parts[:3] == [0, 1, 2]
    assert len(parts) <= 5


@pytest.mark.parametrize("off", [0.5, 2.0])
def test_an_error_out_of_reach_asks_for_another_step(off: float) -> None:
    bases = tuple(off * likely / 1.3 for likely in LIKELY)
    steering, parts = steered(bases, 0.3, 0.3)
    assert (steering.is_done, parts) == (False, [0])
    assert steering.at_unit_weight == pytest.approx(off)


def test_an_effect_is_learnt_from_what_was_quantised_twice() -> None:
    steering = Steering(1.0, 0.02, LIKELY, 0.1)
    for part, weights in ((0, [1.0]), (1, [1.0, 1.0]), (2, [1.0, 1.0, 1.0]), (0, [0.5, 1.0, 1.0])):
        steering.note(part, weights[part], errors_at((1, 2, 1), 0.2, weights))
    assert steering.effect == pytest.approx(0.2)


def test_parts_without_error_tell_nothing() -> None:
    steering = Steering(1.0, 0.02, LIKELY, 0.3)
    steering.note(0, 1.0, [0.0])
    assert steering.following() is None
    assert steering.at_unit_weight == 0


def test_loud_columns_have_the_error_asked_for_and_little_effect() -> None:
    x = np.random.default_rng(0).standard_normal((40, 60)).astype(np.float32)
    chains = np.arange(4)
    error, effect = likely_error(x, 1e-4, chains, 10)
    assert error == pytest.approx(1e-4 * x.size, rel=1e-3)
    assert effect < 1e-3
    quiet, of_quiet = likely_error(x, 1.0, chains, 10)
    assert quiet == pytest.approx(0.5 * x.size, rel=0.02)
    assert of_quiet == pytest.approx(2.5, rel=0.05)
    assert likely_error(np.zeros_like(x), 1.0, chains, 10) == (0, 0)
