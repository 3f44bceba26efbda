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
    classes_in,
    count_tokens,
    entropy_bits,
    mantissa,
    peak,
    push,
    put_mantissa,
    read_bits,
    scale_contexts,
    token_of,
    window,
)
from paramcompress.trellis import TRELLISES

LONGEST = 9
"""Bits of the longest code."""
LEAST_POINTS = 1 << 13
"""Of smaller matrices the lengths are too many of the bytes, and the time of coding too little of the whole."""
ENOUGH_POINTS = 1 << 13
"""On which codes are founded; in a matrix of twice as many and more, every second column is counted, or every third, up
to MOST_EVERY."""
MOST_EVERY = 16
GOLDEN = 0.6180339887498949
"""Multiples of it, modulo 1, are spread evenly however many there are."""
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
    walk = TRELLISES[1].walk
    lengths: NDArray[np.uint8] = _cheap_lengths(points, base, rows, columns, walk, MOST_OVER, ENOUGH_POINTS)
    return lengths


@compiled
def _cheap_lengths(points, base, rows, columns, walk, most_over, enough_points):
    counts = np.zeros((N_CLASSES, 2, N_TOKENS), np.int32)
    every = min(points.size // enough_points, len(points), MOST_EVERY)
    if every <= 1:
        count_tokens(points, base, rows, columns, walk, len(points), counts)
        likely = counts[:, 0].astype(np.int64)
    else:
        some = np.empty((len(points) // every, points.shape[1]), np.int32)
        of_some = np.empty(len(some), np.int16)
        for k in range(len(some)):  # one of each `every`, now here, now there: kernels have periods, too
            j = np.int64((k + k * GOLDEN % 1) * every)
            for i in range(points.shape[1]):
                some[k, i] = points[j, i]
            of_some[k] = columns[j]
        count_tokens(some, base, rows, of_some, walk, len(some), counts)
        likely = every * counts[:, 0].astype(np.int64)
        most = token_of(peak(points) >> 1)
        for context in scale_contexts(base, rows, columns):  # the others may have what these have not
            for token in range(most + 1):
                likely[context >> 5, token] += 1
    lengths = code_lengths(likely)
    return lengths if excess(counts[:, 0], lengths) <= most_over else lengths[:0]


@compiled
def code_lengths(counts):
    """(N_CLASSES, N_TOKENS) bits of each token's code, at most LONGEST, of least total for such counts; 0 for tokens
    that do not occur, 1 for one that is alone."""
    lengths = np.zeros(counts.shape, np.uint8)
    order = np.empty(N_TOKENS, np.int64)
    weights = np.empty((2, 2 * N_TOKENS), np.int64)
    is_pair = np.empty((LONGEST, 2 * N_TOKENS), np.bool_)
    for c in range(N_CLASSES):
        n = _in_order(counts[c], order)
        if n > 0:
            _merge_packages(counts[c], order, n, weights, is_pair, lengths[c])
    return lengths


@compiled
def _in_order(counts, order):
    """Tokens that occur, the rarest first; returns how many."""
    n = 0
    for token in range(N_TOKENS):
        if counts[token] > 0:
            at = n
            while at > 0 and counts[order[at - 1]] > counts[token]:
                order[at] = order[at - 1]
                at -= 1
            order[at] = token
            n += 1
    return n


@compiled
def _merge_packages(counts, order, n, weights, is_pair, lengths):
    """Package-merge (Larmore and Hirschberg 1990): LONGEST times, tokens and the pairs of what was there before are put
    in order of weight. Of the last list the lightest 2 n - 2 are taken, then of each list before it the pairs that
    these are made of; a token's code is as long as it was taken often.

    order: the n tokens, the rarest first. weights, is_pair: to work in.
    """
    n_pairs = 0
    for level in range(LONGEST):
        before, merged = weights[level & 1], weights[1 - (level & 1)]
        pair = 0
        for at in range(n + n_pairs):
            token = at - pair
            of_pair = before[2 * pair] + before[2 * pair + 1] if pair < n_pairs else 0
            is_pair[level, at] = token == n or (pair < n_pairs and of_pair < counts[order[token]])
            merged[at] = of_pair if is_pair[level, at] else counts[order[token]]
            pair += is_pair[level, at]
        n_pairs = (n + n_pairs) // 2
    n_taken = max(2 * n - 2, 1)
    for level in range(LONGEST - 1, -1, -1):
        n_pairs = 0
        for at in range(n_taken):
            n_pairs += is_pair[level, at]
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
    codes = np.empty((N_CLASSES, N_TOKENS), np.int64)
    for c in range(N_CLASSES):
        of_class = _codes(lengths[c])
        for t in range(N_TOKENS):
            codes[c, t] = of_class[t]
    strings = _strings(codes, lengths)
    classes, which = classes_in(columns)
    places = np.empty((len(classes), len(rows)), np.uint16)
    for k in range(len(classes)):
        for i in range(len(rows)):
            is_dead = rows[i] < 0 or classes[k] < 0
            context = np.uint16(0) if is_dead else contexts[classes[k] + rows[i]]
            at = _OF_DEAD if is_dead else _OF_SHIFTED if context & 31 else np.int64(context >> 5)
            places[k, i] = 2 * ESCAPE_FROM * at + ESCAPE_FROM
    n_rows = points.shape[1]
    # one more, without bits, so that there are always two
    found = np.zeros(n_rows + 1, np.uint32)
    for j in range(points.shape[0]):
        place = places[which[j]]
        any_long = np.uint32(0)
        for i in range(np.uintp(n_rows)):
            found[i] = _string_of(strings, place[i], points[j, i])
            any_long |= found[i]
        if any_long < _NO_STRING:
            for pair in range(np.uintp((n_rows + 1) >> 1)):  # so what waits for the one before is done half as often
                one, other = np.uint64(found[2 * pair]), np.uint64(found[2 * pair + np.uintp(1)])
                n_one = one >> np.uint64(16)
                both = one & np.uint64(0xFFFF) | (other & np.uint64(0xFFFF)) << n_one
                bits = push(raw, bits, both, np.int64(n_one + (other >> np.uint64(16))))
            continue
        for i in range(n_rows):
            if found[i] < _NO_STRING:
                bits = push(raw, bits, np.int64(found[i] & 0xFFFF), np.int64(found[i] >> 16))
                continue
            point = np.int64(points[j, i])
            if point & 1 or rows[i] < 0 or columns[j] < 0:
                return False, bits
            bits = _put_long(point, np.int64(contexts[rows[i] + columns[j]]), codes, lengths, raw, bits)
    return True, bits


_OF_DEAD, _OF_SHIFTED = N_CLASSES, N_CLASSES + 1
"""Beside the classes, in the table of strings: dead rows and columns, and all contexts with shifted bits."""
_NO_STRING = 1 << 31


@compiled
def _strings(codes, lengths):
    """Of each context and each point / 2 from -ESCAPE_FROM on: its bits, and above 16 bits how many these are;
    _NO_STRING where it takes more than code, mantissa and sign."""
    strings = np.full((N_CLASSES + 2, 2 * ESCAPE_FROM), np.uint32(_NO_STRING))
    for c in range(N_CLASSES):
        for k in range(ESCAPE_FROM):
            t = TOKENS[k]
            if lengths[c, t]:
                open_bits = np.int64(OPEN_BITS[t])
                n = np.int64(lengths[c, t]) + open_bits
                string = codes[c, t] | (k & ((1 << open_bits) - 1)) << np.int64(lengths[c, t])
                size = (n + (k > 0)) << 16
                strings[c, ESCAPE_FROM + k] = string | size
                if k > 0:
                    strings[c, ESCAPE_FROM - k] = string | 1 << n | size
    strings[_OF_DEAD, ESCAPE_FROM] = 0
    return strings.reshape(-1)


@compiled
def _string_of(strings, place, point):
    """place: that of point 0 in this context."""
    k = np.int64(point) >> 1
    is_odd_or_long = (point & 1) | (np.uint64(k + ESCAPE_FROM - 1) > np.uint64(2 * ESCAPE_FROM - 2))
    return np.uint32(_NO_STRING) if is_odd_or_long else strings[np.uintp(np.int64(place) + k)]


@compiled
def _put_long(point, context, codes, lengths, raw, bits):
    """A point of which bits are shifted out or whose token is the escape."""
    shift = context & 31
    c = context >> 5
    k = abs(point) >> 1
    head = k >> shift
    token = np.int64(TOKENS[head]) if head < ESCAPE_FROM else np.int64(ESCAPE)
    bits = push(raw, bits, codes[c, token], np.int64(lengths[c, token]))
    if token >= 8:
        bits = put_mantissa(head, token, raw, bits)
    return push(raw, bits, k & ((1 << shift) - 1) | np.int64(point < 0) << shift, shift + (k > 0))


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
