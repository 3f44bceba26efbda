"""Write `paramcompress/prior.py`: the token frequencies that every context of the entropy coder starts from.

Usage:  python benchmarks/make_prior.py        prints the module; redirect it to paramcompress/prior.py

No checkpoint goes in. Each scale class is simulated: numbers from a generalised Gaussian (shape 1.6, between
Laplace and Gauss, where trained weights lie), scales spread over the half octave that a class stands for, through
the trellis quantiser itself, with the costs that result fed back three times. The prior weighs PRIOR_SYMBOLS
symbols, so that a few hundred weights outweigh it. That of classes is plain: geometric, and light.
"""

from __future__ import annotations

import numpy as np

from paramcompress.entropy import Scales
from paramcompress.prices import histogram, raw_bits_of
from paramcompress.quantize import quantize
from paramcompress.tokens import N_CLASSES, N_TOKENS, UNIT_CLASS, token_of
from paramcompress.trellis import TRELLISES, WITH_ZERO, Trellis

SHAPE = 1.6
N_SAMPLES = 1 << 17
PRIOR_SYMBOLS = 24
COUNT = 16
FLAG_SYMBOLS, DEAD_SHARE = 6.5, 1 / 13
DISTANCE_SYMBOLS, DISTANCE_RATIO = 9.4, 0.6
"""Of classes of rows and columns: how many dead flags and distances from the forecast their prior weighs, the share of
the dead where there are any, and how likely a distance is against the next lower one (numbered 0, -1, 1, -2, ...)."""
BIT_WEIGHT = 0.45
"""Squared steps a bit is worth: 2 ln 2 times the mean squared error at high rate, a little more as the layer codec
uses it."""
CLASS_SPREAD = 0.35
"""Standard deviation, in octaves, of a weight's true scale about the centre of its class."""


def simulate(scale_class: int, trellis: Trellis) -> np.ndarray:
    """(2, N_TOKENS) frequencies of a class by quantiser."""
    rng = np.random.default_rng(scale_class)
    size = rng.gamma(1 / SHAPE, 1, N_SAMPLES) ** (1 / SHAPE)
    size /= np.sqrt((size**2).mean())
    octaves = (scale_class - UNIT_CLASS) / 2 + CLASS_SPREAD * rng.standard_normal(N_SAMPLES)
    x = (2 * size * 2.0**octaves * rng.choice([-1, 1], N_SAMPLES)).astype(np.float32)[None]
    scales = Scales(scale_class, np.zeros(N_SAMPLES, np.int16), np.zeros(1, np.int16))
    tokens = np.array([token_of(k) for k in range(128)])
    raw = np.array([raw_bits_of(k) for k in range(128)])
    counts = np.ones((N_CLASSES, 2, N_TOKENS)) * np.exp2(
        -np.arange(N_TOKENS) / 2.0 ** max((scale_class - UNIT_CLASS) / 2, -1)
    )
    for _ in range(3):
        cost = -np.log2(counts / counts.sum(-1, keepdims=True))[:, :, tokens] + raw
        points = quantize(x, scales, trellis, cost.astype(np.float32), BIT_WEIGHT)
        counts = histogram(points, scales, trellis) + 0.25 ** np.arange(N_TOKENS)
    return counts[scale_class] / counts[scale_class].sum(-1, keepdims=True)


def main() -> None:
    print('"""Token frequencies that every context starts from. Part of the format.')
    print('\nWritten by benchmarks/make_prior.py, which says how.\n"""\n')
    print("import numpy as np\nfrom numpy.typing import NDArray\n\n# fmt: off")
    for name, trellis, what in (
        ("_WITH_ZERO", WITH_ZERO[8], "by scale class and quantiser, where both have a zero"),
        ("_WITHOUT", TRELLISES[8], "where the second has none from LOUD_CLASS on"),
    ):
        print(f"{name} = np.array([  # {what}")
        for scale_class in range(N_CLASSES):
            for row in simulate(scale_class, trellis):
                print("   ", str([max(1, round(COUNT * PRIOR_SYMBOLS * p)) for p in row]) + f",  # class {scale_class}")
        print("], np.int32)")
    print("CLASS_PRIOR = np.array([  # of rows or columns")
    flags = [round(COUNT * FLAG_SYMBOLS * share) for share in (1 - DEAD_SHARE, DEAD_SHARE)] + [1] * (N_TOKENS - 2)
    weight = COUNT * DISTANCE_SYMBOLS * (1 - DISTANCE_RATIO)
    print(f"    {flags},  # dead flag")
    distances = [max(1, round(weight * DISTANCE_RATIO**z)) for z in range(N_TOKENS)]
    print(f"    {distances},  # distance of a class from its forecast")
    print("], np.int32)\n# fmt: on\n\n")
    print("def prior_of(has_zero: bool) -> NDArray[np.int32]:")
    print('    """(2 * N_CLASSES, N_TOKENS) counts of points, for a trellis with a zero in both quantisers or not."""')
    print("    return _WITH_ZERO if has_zero else _WITHOUT")


if __name__ == "__main__":
    main()
