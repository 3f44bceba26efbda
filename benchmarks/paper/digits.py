"""The small stand-in for every data set: 1,797 digits of 8 x 8 pixels, which come with scikit-learn."""

from __future__ import annotations

import numpy as np

from .images import Labelled, labelled

N_TEST = 500


def images() -> tuple[Labelled, Labelled]:
    """Training and test images (n, 1, 8, 8) in [0, 1], mixed: the file has its writers one after the other."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    pixels = found.images[order, None] * (255 / 16)
    return labelled(pixels[N_TEST:], found.target[order][N_TEST:]), labelled(
        pixels[:N_TEST], found.target[order][:N_TEST]
    )
