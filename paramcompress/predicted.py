"""Codec `predicted`: a layer that was trained to predict most of its weights, as its learned numbers and a recipe.

    W_j = C_j D_j^T for every column group j        C stored, D regenerated from the recipe or stored too

C and D are streams of the other two codecs. The product is summed in the order of atoms, in float64: every factor is a
float32, so each product is exact, and the result the same everywhere. Byte layout: docs/format.md.

Shapes: W (n_out, n_in), C (n_out, n_support), D^T (J * n_support, n_in).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from torch import Tensor

from paramcompress import codec, entropy
from paramcompress.codec import Factors
from paramcompress.dictionaries.recipe import Recipe

PREDICTED = "predicted"
MOST_RECIPE_BYTES = 1 << 22
"""JSON of a recipe: it may list a support for each column group."""
LEAST_ROOM = 1 << 24
MOST_TIMES = 16
"""Dictionaries may have LEAST_ROOM entries, or that many for each weight of the layer: few bytes ask for no more."""
_C_EXACT, _D_EXACT = 1, 2
_PHRASES = (
    b'"kind":"covariance""kind":"autoencoder""kind":"k-means""kind":"pca""kind":"learned","kind":"down-sampling",'
    b'"parameters":{"coarse":[,"kind":"connections","kind":"random",,"parameters":{"seed":0},"parameters":{},'
    b'"seed":[0,0],"shape":[,"stored":true,"supports":"uniform""fresh""leading""kind":"cosine",'
    b'{"groups":10,"kind":"squared-exponential","n_support":39,"orthonormal":true,"parameters":{"grid":[28,28],'
    b'"sigma":1.0},"seed":[0],"shape":[500,784],"stored":false,"supports":"tied"}'
)
"""What recipes repeat; part of the format."""
_BOOK = zstandard.ZstdCompressionDict(_PHRASES, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


@dataclass(frozen=True)
class Prediction:
    """The numbers of a predicted layer; a matrix is factored, or a float tensor kept bit by bit."""

    recipe: Recipe
    learned: Factors | Tensor
    """C (n_out, n_support)."""
    dictionary: Factors | Tensor | None
    """D^T (J * n_support, n_in), where the recipe does not bring it back."""

    def reconstruct(self) -> NDArray[np.float32]:
        """W_hat (n_out, n_in)."""
        recipe = self.recipe
        if self.dictionary is None:
            dictionary = recipe.regenerated()
        else:
            dictionary = _matrix(self.dictionary).reshape(recipe.groups, recipe.n_support, recipe.n_in)
        return recipe.weight(_matrix(self.learned), dictionary)


def is_bargain(recipe: Recipe) -> bool:
    """Whether a file may hold a layer of that recipe: its dictionaries are no larger than a reader allows."""
    return recipe.n_entries <= max(LEAST_ROOM, MOST_TIMES * recipe.n_out * recipe.n_in)


def encode(prediction: Prediction) -> bytes:
    """Stream of a predicted layer."""
    head = _C_EXACT * isinstance(prediction.learned, Tensor) | _D_EXACT * isinstance(prediction.dictionary, Tensor)
    recipe = zstandard.ZstdCompressor(level=19, dict_data=_BOOK, write_checksum=False, write_dict_id=False).compress(
        prediction.recipe.to_json()
    )
    learned = _encode_matrix(prediction.learned)
    out = bytes([head]) + entropy.varint(len(recipe)) + recipe + entropy.varint(len(learned)) + learned
    return out if prediction.dictionary is None else out + _encode_matrix(prediction.dictionary)


def decode(stream: bytes | memoryview, shape: tuple[int, ...], dtype: torch.dtype) -> Prediction:
    """Inverse of `encode`; sizes are checked before anything is allocated or regenerated.

    Args:
        shape, dtype: of the dense weight.

    Raises:
        ValueError: the stream is damaged, or of another shape.
    """
    head, recipe, learned, rest = _sections(stream)
    if recipe.shape != shape:
        raise ValueError(f"a recipe for shape {recipe.shape}")
    if not is_bargain(recipe):
        raise ValueError(f"dictionaries of {recipe.n_entries} numbers for a weight of shape {shape}")
    if bool(len(rest)) != recipe.stored:
        raise ValueError("a dictionary beside a recipe that makes one, or none beside one that does not")
    c = _decode_matrix(learned, (recipe.n_out, recipe.n_support), exact_dtype(dtype), head & _C_EXACT)
    if not recipe.stored:
        return Prediction(recipe, c, None)
    size = recipe.groups * recipe.n_support, recipe.n_in
    return Prediction(recipe, c, _decode_matrix(rest, size, exact_dtype(dtype), head & _D_EXACT))


def section_bytes_of(codec_id: str, stream: bytes | memoryview, shape: tuple[int, ...]) -> dict[str, int]:
    """Where the bytes of a stream of either codec go, as `codec.section_bytes`; a recipe counts as dictionary.

    Raises:
        ValueError, IndexError: the stream is damaged.
    """
    if codec_id != PREDICTED:
        return codec.section_bytes(stream, shape)
    learned = _sections(stream)[2]
    head = 1 + len(entropy.varint(len(learned)))
    dictionary = len(stream) - head - len(learned)
    return {"dictionary": dictionary, "coefficients": len(learned), "stored": 0, "head": head}


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of numbers kept bit by bit in a layer of that dtype: what float64 has beyond float32 is not predicted with."""
    return torch.float32 if dtype == torch.float64 else dtype


def _sections(stream: bytes | memoryview) -> tuple[int, Recipe, bytes | memoryview, bytes | memoryview]:
    """Head, recipe, stream of C, stream of D or nothing."""
    if not len(stream) or stream[0] > 3:
        raise ValueError("unknown kind of prediction")
    n_bytes, at = entropy.read_varint(stream, 1)
    if n_bytes > len(stream) - at:
        raise ValueError("stream cut short")
    frame = bytes(stream[at : at + n_bytes])
    try:
        if not 0 <= zstandard.get_frame_parameters(frame).content_size <= MOST_RECIPE_BYTES:
            raise ValueError("a recipe of no honest size")
        text = zstandard.ZstdDecompressor(dict_data=_BOOK).decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    at += n_bytes
    n_bytes, at = entropy.read_varint(stream, at)
    if n_bytes > len(stream) - at:
        raise ValueError("stream cut short")
    return stream[0], Recipe.from_json(text), stream[at : at + n_bytes], stream[at + n_bytes :]


def _matrix(one: Factors | Tensor) -> NDArray[np.float32]:
    return one.float().numpy() if isinstance(one, Tensor) else one.reconstruct()


def _encode_matrix(one: Factors | Tensor) -> bytes:
    if not isinstance(one, Tensor):
        return codec.encode_factored(one)
    raw = one.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return codec.encode_exact(raw, one.element_size())


def _decode_matrix(
    stream: bytes | memoryview, shape: tuple[int, int], dtype: torch.dtype, is_exact: int
) -> Factors | Tensor:
    if not is_exact:
        return codec.decode_factored(stream, shape)
    raw = codec.decode_exact(stream, math.prod(shape) * dtype.itemsize, dtype.itemsize)
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(dtype).reshape(shape)
