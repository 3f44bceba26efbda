"""Prefix codes for the tokens of lattice points on the plain grid: for `fast`, which gives bytes for time.

One code for each scale class, the lengths of its words sent before the points, all in the bit string of `entropy`'s
stream; each word is followed there by what its token leaves open. Coding and decoding take two fifths of
the range coder's time, and 1 to 10 % more bytes: a token costs whole bits, and nothing is learnt on the way. Where
zeros prevail it would be far more; `cheap_lengths` finds that out before anything is written.

Byte layout: docs/format.md, "symbols".

Shapes: points (n_columns, n_rows), counts and lengths (N_CLASSES, N_TOKENS).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from paramcompress.jit import compiled
from paramcompress.tokens import (
    ESCAPE,
    ESCAPE_FROM,
    N_CLASSES,
    N_TOKENS,
    OPEN_BITS,
    POINT_LIMIT,
    TOKENS,
    TOP_CLASS,
    WALKS,
    count_tokens,
    entropy_bits,
    mantissa,
    push,
    put_mantissa,
    read_bits,
    scale_contexts,
    window,
)

LONGEST = 9
"""Bits of the longest code."""
LEAST_POINTS = 1 << 13
"""Of smaller matrices the lengths are too many of the bytes, and the time of coding too little of the whole."""
NO_LENGTHS = np.empty((0, N_TOKENS), np.uint8)
LENGTHS_WORDS = 32
"""Words of 32 bits that hold all lengths."""
BEYOND = 32
"""Bytes after the bit string that a decoder may look at: of the points begun in its last bit, and the tables."""
_OPEN = 1 << 7
"""Marks table entries of tokens that more bits follow."""
_WINDOW = LONGEST + 1
"""Bits that a decoder looks up at once: a code and its sign."""
_AT_ONCE = 3
"""Points that are sure to lie in what `window` returns."""
MOST_OVER = 1 / 8
"""What a prefix code may cost over the entropy of its tokens, raw bits included."""


def cheap_lengths(
    points: NDArray[np.int32], base: int, rows: NDArray[np.int16], columns: NDArray[np.int16]
) -> NDArray[np.uint8]:
    """Code lengths for these points; NO_LENGTHS where they are few, or range coding would take far fewer bytes."""
    if points.size < LEAST_POINTS:
        return NO_LENGTHS
    lengths: NDArray[np.uint8] = _cheap_lengths(points, base, rows, columns, WALKS[1], MOST_OVER)
    return lengths


@compiled
def _cheap_lengths(points, base, rows, columns, walk, most_over):
    counts = np.zeros((N_CLASSES, 2, N_TOKENS), np.int32)
    count_tokens(points, base, rows, columns, walk, len(points), counts)
    of_tokens = counts[:, 0].copy()
    lengths = code_lengths(of_tokens)
    return lengths if excess(of_tokens, lengths) <= most_over else lengths[:0]


@compiled
def code_lengths(counts):
    """(N_CLASSES, N_TOKENS) bits of each token's code, at most LONGEST, of least total for such counts; 0 for tokens
    that do not occur, 1 for one that is alone."""
    lengths = np.zeros(counts.shape, np.uint8)
    for c in range(N_CLASSES):
        if counts[c].max() > 0:
            _merge_packages(counts[c], lengths[c])
    return lengths


@compiled
def _merge_packages(counts, lengths):
    """Package-merge (Larmore and Hirschberg 1990): LONGEST times, tokens and the pairs of what was there before are put
    in order of weight. Of the last list the lightest 2 n - 2 are taken, then of each list before it the pairs that
    these are made of; a token's code is as long as it was taken often."""
    order = np.argsort(counts)
    order = order[counts[order] > 0]
    n = len(order)
    weights = np.zeros(2 * n, np.int64)
    is_pair = np.zeros((LONGEST, 2 * n), np.bool_)
    n_pairs = 0
    for level in range(LONGEST):
        merged = np.zeros(2 * n, np.int64)
        pair = 0
        for at in range(n + n_pairs):
            token = at - pair
            packed = weights[2 * pair] + weights[2 * pair + 1]
            is_pair[level, at] = token == n or (pair < n_pairs and packed < counts[order[token]])
            merged[at] = packed if is_pair[level, at] else counts[order[token]]
            pair += is_pair[level, at]
        weights = merged
        n_pairs = (n + n_pairs) // 2
    n_taken = max(2 * n - 2, 1)
    for level in range(LONGEST - 1, -1, -1):
        n_pairs = is_pair[level, :n_taken].sum()
        for token in order[: n_taken - n_pairs]:
            lengths[token] += 1
        n_taken = 2 * n_pairs


@compiled
def excess(counts, lengths):
    """What such codes take more than the entropy of the tokens they are for, as a share of it, raw bits included."""
    entropy = codes = raw = 0.0
    for c in range(N_CLASSES):
        entropy += entropy_bits(counts[c])
        for t in range(N_TOKENS):
            codes += counts[c, t] * lengths[c, t]
            raw += counts[c, t] * (OPEN_BITS[t] + (t > 0))
    return (codes - entropy) / max(entropy + raw, 1.0)


@compiled
def _codes(lengths):
    """Canonical codes: shorter before longer, of one length in the order of tokens; the first bit lowest. Empty where
    there are more codes than there is room."""
    codes = np.zeros(len(lengths), np.int64)
    code = 0
    for length in range(1, LONGEST + 1):
        for t in range(len(lengths)):
            if lengths[t] == length:
                for b in range(length):
                    codes[t] |= (code >> b & 1) << (length - 1 - b)
                code += 1
        if code > 1 << length:
            return codes[:0]
        code <<= 1
    return codes


@compiled
def put_lengths(lengths, raw, bits):
    """For every class how many lengths follow, and these; the last of them is not 0."""
    for c in range(N_CLASSES):
        n = N_TOKENS
        while n > 0 and lengths[c, n - 1] == 0:
            n -= 1
        bits = push(raw, bits, n, 5)
        for t in range(n):
            bits = push(raw, bits, lengths[c, t], 4)
    return bits


@compiled
def put_points(points, base, rows, columns, lengths, raw, bits):
    """Every live point: code, mantissa, shifted bits and sign. False where one is odd, or nonzero in a dead row or
    column."""
    contexts = scale_contexts(base, rows, columns)
    # code and mantissa of each magnitude that is not escaped, and the bits of both
    strings = np.zeros((N_CLASSES, ESCAPE_FROM), np.uint32)
    sizes = np.zeros((N_CLASSES, ESCAPE_FROM), np.uint8)
    escapes = np.zeros(N_CLASSES, np.int64)
    for c in range(N_CLASSES):
        codes = _codes(lengths[c])
        escapes[c] = codes[ESCAPE]
        for k in range(ESCAPE_FROM):
            t = TOKENS[k]
            n = np.int64(OPEN_BITS[t])
            strings[c, k] = codes[t] | (k & ((1 << n) - 1)) << np.int64(lengths[c, t])
            sizes[c, k] = lengths[c, t] + n
    flat_strings, flat_sizes = strings.reshape(-1), sizes.reshape(-1)
    for j in range(points.shape[0]):
        column = columns[j]
        for i in range(np.uintp(points.shape[1])):
            point = np.int64(points[j, i])
            row = rows[i]
            if row < 0 or column < 0 or point & 1:
                if point != 0:
                    return False, bits
                continue
            context = np.int64(contexts[np.uintp(row + column)])
            shift = context & 31
            c = context >> 5
            k = abs(point) >> 1
            negative = np.int64(point < 0)
            nonzero = np.int64(k > 0)
            head = k >> shift
            if head < ESCAPE_FROM:
                at = np.uintp(c * ESCAPE_FROM + head)
                string, n = np.int64(flat_strings[at]), np.int64(flat_sizes[at])
            else:
                bits = push(raw, bits, escapes[c], np.int64(lengths[c, ESCAPE]))
                bits = put_mantissa(head, np.int64(ESCAPE), raw, bits)
                string = n = np.int64(0)
            if shift > 0:
                bits = push(raw, bits, string, n)
                string, n = k & ((1 << shift) - 1), shift
            bits = push(raw, bits, string | negative << n, n + nonzero)
    return True, bits


@compiled
def _get_tables(raw, at, n_bits):
    """For each class and each string of _WINDOW bits the code at its beginning, and the next bit position; no table
    where the lengths make no code.

    An entry is its token << 8 | _OPEN | the bits of the code. Where the sign follows at once and nothing else, it is
    the point << 8 | the bits of code and sign, without _OPEN. No code, no bits.
    """
    tables = np.zeros((N_CLASSES, 1 << _WINDOW), np.int16)
    lengths = np.zeros(N_TOKENS, np.int64)
    for c in range(N_CLASSES):
        n_lengths = read_bits(raw, at, 5)
        at += 5
        if n_lengths > N_TOKENS or at > n_bits:
            return tables[:0], at
        lengths[:] = 0
        for t in range(n_lengths):
            lengths[t] = read_bits(raw, at, 4)
            at += 4
        codes = _codes(lengths)
        if len(codes) == 0 or lengths.max() > LONGEST:
            return tables[:0], at
        for t in range(N_TOKENS):
            n = lengths[t]
            if n == 0:
                continue
            for string in range(codes[t], 1 << _WINDOW, 1 << n):
                if t >= 8 or c >= TOP_CLASS - 1:  # the last two classes may have shifted bits
                    tables[c, string] = t << 8 | _OPEN | n
                elif t == 0:
                    tables[c, string] = n
                else:
                    tables[c, string] = (-2 * t if string >> n & 1 else 2 * t) << 8 | (n + 1)
    return tables, at


@compiled
def get_points(raw, at, n_bits, base, rows, columns, points):
    """Inverse of `put_lengths` and `put_points`. Returns the next bit position; -1 for a stream that cannot be.

    raw: has BEYOND bytes more than the bit string.
    """
    tables, at = _get_tables(raw, at, n_bits)
    if len(tables) == 0:
        return np.int64(-1)
    flat = tables.reshape(-1)
    contexts = scale_contexts(base, rows, columns)
    one = np.uintp(1)
    end = np.uintp(points.shape[1])
    for j in range(points.shape[0]):
        column = columns[j]
        if column < 0:
            points[j] = 0
            continue
        i = np.uintp(0)
        while i < end:
            if at > n_bits:
                return np.int64(-1)
            wide = window(raw, at)
            stop = min(i + np.uintp(_AT_ONCE), end)
            while i < stop:
                row = rows[i]
                if row < 0:
                    points[j, i] = 0
                    i += one
                    continue
                context = np.int64(contexts[np.uintp(row + column)])
                string = np.int64(wide & np.uint64((1 << _WINDOW) - 1))
                entry = np.int64(flat[np.uintp((context >> 5) << _WINDOW | string)])
                n = entry & (_OPEN - 1)
                at += n
                wide >>= np.uint64(n)
                if entry & _OPEN == 0:
                    points[j, i] = entry >> 8
                    i += one
                    if n == 0:
                        return np.int64(-1)
                    continue
                shift = context & 31
                head, at = mantissa(entry >> 8, raw, at)
                k = head << shift | read_bits(raw, at, shift)
                at += shift
                nonzero = np.int64(k != 0)
                sign = read_bits(raw, at, 1) & nonzero
                at += nonzero
                if 2 * k >= POINT_LIMIT:
                    return np.int64(-1)
                points[j, i] = ((2 * k) ^ -sign) + sign
                i += one
                break
    return at if at <= n_bits else np.int64(-1)
