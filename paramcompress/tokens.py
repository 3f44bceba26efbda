"""What a lattice point is coded as: a token in a context, and raw bits.

Shared by all who code points or count their bits. The trellis (`trellis.py`) turns the point into a symbol k. Its
magnitude becomes a *token* of 16 and some raw bits: 0 to 7 stand for themselves, tokens 8 to 14 for half octaves (8-11,
12-15, 16-23, ... 64-95) and token 15 for all above, in Elias gamma. Mantissa bits and signs go into a plain bit string,
tokens into a code of the caller's.

Every row and every column carries a *scale class* on a half-octave grid, and the class of a weight is the sum: symbols
of class c have a standard deviation near 2 ** ((c - 5) / 2). Classes above TOP_CLASS shift low bits out into the bit
string.

Part of the format; docs/format.md, "symbols".
"""

from __future__ import annotations

import numpy as np

from paramcompress.jit import compiled
from paramcompress.trellis import LOUD_CLASS

N_TOKENS = 16
ESCAPE = N_TOKENS - 1
ESCAPE_FROM = 96
TOP_CLASS = 13
N_CLASSES = TOP_CLASS + 1
UNIT_CLASS = 5
"""Class of symbols with standard deviation 1."""
MOST_SHIFT = 24
POINT_LIMIT = 1 << 30

OPEN_BITS = np.array([0] * 8 + [(token - 2) // 2 - 1 for token in range(8, ESCAPE)] + [0], np.uint8)
"""Mantissa bits that follow a token; the escape, which says itself how many, counts as none."""
LEAST = np.array([*range(8), *((2 + (token & 1)) << (token - 2) // 2 - 1 for token in range(8, ESCAPE)), 0], np.uint8)
"""Least magnitude of a token."""
TOKENS = np.repeat(np.arange(ESCAPE, dtype=np.uint8), np.diff(np.append(LEAST[:ESCAPE], ESCAPE_FROM)))
"""Token of each magnitude below ESCAPE_FROM."""


@compiled
def token_of(magnitude: int) -> int:
    """Token of a magnitude; docs/format.md has the table."""
    if magnitude < 8:
        return magnitude
    if magnitude >= ESCAPE_FROM:
        return ESCAPE
    octave = 3
    while magnitude >> (octave + 1):
        octave += 1
    return 2 + 2 * octave + (magnitude >> (octave - 1) & 1)


@compiled
def scale_context(scale_class: int) -> tuple[int, int]:
    """Context class of a scale class, 0 to TOP_CLASS, and the low bits of its symbols that go into the bit string."""
    if scale_class <= TOP_CLASS:
        return max(scale_class, 0), 0
    shift = min((scale_class - TOP_CLASS + 1) >> 1, MOST_SHIFT)
    return min(scale_class - 2 * shift, TOP_CLASS), shift


@compiled
def lead_on(walk, at, k, negative, context_class):
    """Where a symbol of magnitude k leads from `at`, in `Trellis.walk`, whose format this is: twice a state plus its
    quantiser."""
    turned = np.int64(negative) & np.int64(context_class >= LOUD_CLASS)
    return np.int64(walk[np.uintp((at & ~1) | (k & 1) | turned * (len(walk) >> 1))])


@compiled
def scale_contexts(base, rows, columns):
    """The same for every sum of a row's and a column's class, as context class << 5 | shift."""
    found = np.empty(max(rows.max(), 0) + max(columns.max(), 0) + 1, np.uint16)
    for k in range(len(found)):
        c, shift = scale_context(base + k)
        found[k] = c << 5 | shift
    return found


@compiled
def peak(points):
    """Largest magnitude in a matrix of integers, 0 where there are none."""
    low = high = np.int32(0)
    for j in range(points.shape[0]):
        for i in range(np.uintp(points.shape[1])):
            low = min(low, points[j, i])
            high = max(high, points[j, i])
    return max(np.int64(high), -np.int64(low))


@compiled
def classes_in(classes):
    """The classes that occur, in order, and for each entry which of these it has."""
    number = np.zeros(classes.max() + 2, np.int64)
    for one in classes:
        number[one + 1] = 1
    found = np.flatnonzero(number) - 1
    number = np.cumsum(number) - 1
    which = np.empty(len(classes), np.int64)
    for j in range(len(classes)):
        which[j] = number[classes[j] + 1]
    return found, which


@compiled
def count_tokens(points, base, rows, columns, walk, per_chain, counts):
    """Add to counts (N_CLASSES, 2, N_TOKENS) the tokens of points; walk that of the trellis."""
    if points.size == 0:
        return
    contexts = scale_contexts(base, rows, columns)
    n_kinds = counts.size
    # two of each, in turns: to add one where one was just added takes several cycles
    both = np.zeros(2 * n_kinds, np.int32)
    has_states = len(walk) > 4
    at = np.int64(0)
    for j in range(points.shape[0]):
        if j % per_chain == 0:
            at = np.int64(0)
        column = columns[j]
        if column < 0:
            continue
        for i in range(np.uintp(points.shape[1])):
            row = rows[i]
            if row >= 0:
                context = np.int64(contexts[np.uintp(row + column)])
                point = np.int64(points[j, i])
                k = (abs(point) + (at & 1)) >> 1
                head = k >> (context & 31)
                token = np.int64(TOKENS[np.uintp(head)]) if head < ESCAPE_FROM else ESCAPE
                kind = (2 * (context >> 5) + (at & 1)) * N_TOKENS + token
                both[np.uintp(kind) + (i & np.uintp(1)) * np.uintp(n_kinds)] += 1
                if has_states:
                    at = lead_on(walk, at, k, point < 0, context >> 5)
    flat = counts.reshape(-1)
    for kind in range(n_kinds):
        flat[kind] += both[kind] + both[n_kinds + kind]


@compiled
def shifted_bits(base, rows, columns):
    """Low bits that loud numbers shift out, of a matrix with such classes: `count_tokens` tells nothing of them."""
    of_rows = np.bincount(np.maximum(rows, -1).astype(np.int64) + 1)
    of_columns = np.bincount(np.maximum(columns, -1).astype(np.int64) + 1)
    bits = np.int64(0)
    for i in range(1, len(of_rows)):
        for j in range(1, len(of_columns)):
            bits += of_rows[i] * of_columns[j] * scale_context(base + i + j - 2)[1]
    return bits


@compiled
def entropy_bits(counts):
    """Bits of as many symbols as counts say, by their own frequencies."""
    total = counts.sum()
    bits = 0.0
    for count in counts:
        if count > 0:
            bits += count * np.log2(total / count)
    return bits


# ------------------------------------------------------------------------------------------- the bit string


@compiled
def push(raw, bits, value, n):
    """Append the n <= 32 bits of value. bits: (full words in raw, those that wait, how many of these)."""
    n_words, waiting, n_waiting = bits
    waiting |= np.uint64(value) << np.uint64(n_waiting)
    n_waiting += n
    # the word is written whether it is full or not: a branch would cost more, since nobody can foresee it
    raw[np.uintp(n_words)] = waiting & np.uint64(0xFFFFFFFF)
    full = n_waiting >> 5
    waiting >>= np.uint64(full << 5)
    return n_words + full, waiting, n_waiting & 31


@compiled
def window(raw, at):
    """At least 33 bits from bit `at` on."""
    word = np.uintp(at >> 5)
    wide = np.uint64(raw[word]) | np.uint64(raw[word + np.uintp(1)]) << np.uint64(32)
    return wide >> np.uint64(at & 31)


@compiled
def read_bits(raw, at, n):
    return np.int64(window(raw, at)) & ((np.int64(1) << n) - 1)


@compiled
def put_mantissa(magnitude, token, raw, bits):
    """What a token of 8 and above leaves open."""
    if token == ESCAPE:
        rest = magnitude - (ESCAPE_FROM - 1)
        length = 0
        while rest >> (length + 1):
            length += 1
        return push(raw, push(raw, bits, length, 5), rest - (1 << length), length)
    n = (token - 2) // 2 - 1
    return push(raw, bits, magnitude & ((1 << n) - 1), n)


@compiled
def mantissa(token, raw, at):
    """Magnitude of a token and the next bit position."""
    if token < 8:
        return token, at
    if token == ESCAPE:
        length = read_bits(raw, at, 5)
        return 95 + (1 << length) + read_bits(raw, at + 5, length), at + 5 + length
    n = (token - 2) // 2 - 1
    return ((2 + (token & 1)) << n) + read_bits(raw, at, n), at + n
