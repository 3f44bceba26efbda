"""Entropy coding of lattice points: adaptive rANS with one frequency table per scale class. Exact integers throughout.

Knows neither weights nor files: `pack` turns a matrix of integers into bytes, `unpack` turns them back.

How a point is coded: `tokens` makes a token and raw bits of it. Tokens go through the range coder, raw bits into a
plain bit string. Points of the plain grid can have their tokens in the bit string, too (`prefix`), for speed.

What makes it tight. The context of a token is its scale class, the sum of its row's and its column's, and the trellis
quantiser in force. Each context starts from the frequencies in `prior.py` and learns while it codes, so no table is
ever sent. Rows and columns without any nonzero point are dead: they cost one flag and nothing more.

Range coder: rANS (Duda 2013, arXiv:1311.2540), 32-bit state, 16-bit words, 12-bit frequencies. Symbols are coded
last to first in blocks of BLOCK, so that a decoder reads forwards while the encoder needs memory for one block. At
the end of a block the state must be back at its start value, which catches most damage that a checksum would. In the
last block that value is 1, so that it costs nothing: a decoder that has used up all words reads no more. (Who asks it
for more tokens than there are may get the likeliest for ever; the hash of the tensor is for that.)

Byte layout: docs/format.md, "symbols".

Shapes: points (n_columns, n_rows): the matrix column after column, as the trellis runs, but where it runs along rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from paramcompress import prefix
from paramcompress.jit import compiled
from paramcompress.prior import CLASS_PRIOR, prior_of
from paramcompress.tokens import (
    ESCAPE,
    ESCAPE_FROM,
    LEAST,
    N_CLASSES,
    N_TOKENS,
    OPEN_BITS,
    POINT_LIMIT,
    TOKENS,
    entropy_bits,
    lead_on,
    mantissa,
    peak,
    push,
    put_mantissa,
    scale_context,
    token_of,
    window,
)
from paramcompress.trellis import TRELLISES, WITH_ZERO, Trellis, lines_per_chain

DEAD = -1
"""Class of a row or column whose points are all zero."""

FREQUENCY_BITS = 12
TOTAL = 1 << FREQUENCY_BITS
_CODERS = (1, True), (4, True), (4, False), (8, False), (8, True), (32, False), (32, True), (1, True)
"""States of the trellis, and whether it has a zero in both quantisers, by the number in a stream's first byte."""
_BY_PREFIX = 7
"""The number of streams whose points have prefix codes."""
BLOCK = 1 << 16
STATE_START = 1 << 16
_STATE_END = 1
"""What the state of the last block starts from, and a decoder ends with."""

MOST_CLASS = 127
"""Largest class of a row or column, before the base is added."""
_ROW_DEAD = 2 * N_CLASSES
"""Context of a row's dead flag; the next one is for its class, the two after that are the columns'."""
_COLUMN_DEAD = _ROW_DEAD + 2
COUNT = 16
"""What one occurrence adds; the prior counts in the same unit, so this sets how soon data outweigh it."""
_COUNT_LIMIT = 1 << 19
_COARSE = 4
"""A decoder looks up the token of every 16th slot and walks on from there: a table of all slots would take longer to
make than it saves, and not fit the nearest cache."""
_FIRST_INTERVAL = 8
_LONGEST_INTERVAL = 16384
"""Tokens between two rebuilds of the frequencies: the first interval, and what the growing ones end at."""


@dataclass(frozen=True)
class Scales:
    """Scale class of each row and column, as both sides of the coder see them."""

    base: int
    """Class of a weight whose row and column classes are 0."""
    rows: NDArray[np.int16]
    """(n_rows,): 0 and up, or DEAD."""
    columns: NDArray[np.int16]
    """(n_columns,): 0 and up, or DEAD."""

    @property
    def turned(self) -> Scales:
        """Those of the transposed matrix."""
        return Scales(self.base, self.columns, self.rows)


def pack(
    points: NDArray[np.int32],
    scales: Scales,
    trellis: Trellis,
    *,
    period: int = 1,
    by_row: bool = False,
    may_prefix: bool = False,
) -> bytes:
    """Bytes of a matrix of lattice points.

    Args:
        points: (n_columns, n_rows), |point| < 2**30, each on the quantiser that the trellis allows there; zero in
            dead rows and columns. scales: classes; any are legal, good ones make the bytes few. trellis: the one
            the points were chosen with. period: columns that lie this far apart have similar classes (kernel
            positions repeat from input to input). by_row: the trellis ran along the rows, and so do the points in the
            stream. may_prefix: code points that have no trellis by prefix codes where these cost little; not by row.

    Raises:
        ValueError: shapes do not fit, or a point is off the trellis.
    """
    n_columns, n_rows = points.shape
    if scales.rows.shape != (n_rows,) or scales.columns.shape != (n_columns,):
        raise ValueError(f"{scales.rows.shape} row and {scales.columns.shape} column classes for points {points.shape}")
    sides = scales.base, scales.rows, scales.columns
    by_prefix = may_prefix and trellis.n_states == 1 and not by_row
    lengths = prefix.cheap_lengths(points, *sides) if by_prefix else prefix.NO_LENGTHS
    model = _start_model(trellis.has_zero, False)
    if len(lengths):
        coder = _BY_PREFIX
        flags, words, raw, n_bits = _pack_by_prefix(points, *sides, period, lengths, *model)
    else:
        coder = _CODERS.index((trellis.n_states, trellis.has_zero))
        walk = trellis.walk, lines_per_chain(n_columns if by_row else n_rows)
        in_order = np.ascontiguousarray(points.T) if by_row else points
        flags, words, raw, n_bits = _pack(in_order, *sides, period, by_row, *walk, *model)
    if n_bits < 0:
        raise ValueError("a point is off the trellis, or nonzero in a dead row or column")
    head = bytes([coder | flags << 3]) + int(scales.base).to_bytes(1, "little", signed=True)
    bit_string = raw.astype("<u4", copy=False).tobytes()[: (n_bits + 7) // 8]
    return head + varint(len(words)) + words.astype("<u2", copy=False).tobytes() + bit_string


def unpack(
    stream: bytes | memoryview, n_rows: int, n_columns: int, *, period: int = 1, by_row: bool = False
) -> NDArray[np.int32]:
    """Points (n_columns, n_rows) from the bytes that `pack` made of them.

    Reads nothing outside `stream` and allocates for n_rows and n_columns alone, whatever the bytes say.

    Raises:
        ValueError: the bytes are not such a stream, or end early, or something is left over.
    """
    if len(stream) < 3:
        raise ValueError("stream too short")
    coder, flags = stream[0] & 7, stream[0] >> 3
    n_states, has_zero = _CODERS[coder]
    trellis = (WITH_ZERO if has_zero else TRELLISES)[n_states]
    base = int.from_bytes(stream[1:2], "little", signed=True)
    n_words, at = read_varint(stream, 2)
    if 2 * n_words > len(stream) - at:
        raise ValueError("stream cut short")
    words = np.frombuffer(stream, "<u2", n_words, at)
    bits = stream[at + 2 * n_words :]
    raw = np.frombuffer(b"".join((bits, bytes(-len(bits) % 4 + prefix.BEYOND))), "<u4")
    if by_row and coder == _BY_PREFIX:
        raise ValueError("prefix codes row by row")
    points = np.empty((n_rows, n_columns) if by_row else (n_columns, n_rows), np.int32)
    told = words, raw, 8 * len(bits), flags, base, period, *_start_model(has_zero, True)
    if coder == _BY_PREFIX:
        used_words, used_bits = _decode_by_prefix(*told, points)
    else:
        used_words, used_bits = _decode(*told, by_row, trellis.walk, lines_per_chain(points.shape[1]), points)
    if used_words != n_words or (used_bits + 7) // 8 != len(bits):
        raise ValueError("symbols and stream do not fit together")
    return np.ascontiguousarray(points.T) if by_row else points


def varint(value: int) -> bytes:
    """LEB128: seven bits a byte, low ones first, the high bit says that more follow."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


def read_varint(stream: bytes | memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 63, 7):
        if at >= len(stream):
            raise ValueError("stream cut short")
        byte = stream[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("number too long")


# ------------------------------------------------------------------------------------------- points to tokens


@compiled
def _flags(rows, columns, period):
    """Bit 0 rows have classes, 1 columns have classes, 2 some row is dead, 3 some column is dead, 4 columns follow the
    one before."""
    local = distance_bits(columns, period, np.int64(1)) < distance_bits(columns, period, np.int64(0))
    flags = np.int64(local) << 4
    for one in rows:
        flags |= np.int64(one > 0) | np.int64(one < 0) << 2
    for one in columns:
        flags |= np.int64(one > 0) << 1 | np.int64(one < 0) << 3
    return flags


@compiled
def _put_classes(classes, coded, flagged, period, local, context, contexts, tokens, raw, n_tokens, bits):
    """Scale classes of rows or columns: a dead flag each, then the distance from the mean class so far at this phase,
    or, if local, from the last one."""
    total = np.zeros(period, np.int64)
    count = np.zeros(period, np.int64)
    for i in range(len(classes)):
        if flagged:
            contexts[n_tokens] = context
            tokens[n_tokens] = classes[i] < 0
            n_tokens += 1
        if coded and classes[i] >= 0:
            phase = i % period
            distance = classes[i] - _mean_class(total, count, phase)
            zigzag = 2 * distance if distance >= 0 else -2 * distance - 1
            token = token_of(zigzag)
            contexts[n_tokens] = context + 1
            tokens[n_tokens] = token
            n_tokens += 1
            if token >= 8:
                bits = put_mantissa(zigzag, token, raw, bits)
            _note_class(total, count, phase, classes[i], local)
    return n_tokens, bits


@compiled
def _count_distances(classes, period, local):
    """How often each zigzag distance would be coded."""
    total = np.zeros(period, np.int64)
    count = np.zeros(period, np.int64)
    found = np.zeros(2 * MOST_CLASS + 2, np.int64)
    for i in range(len(classes)):
        if classes[i] >= 0:
            distance = classes[i] - _mean_class(total, count, i % period)
            found[2 * distance if distance >= 0 else -2 * distance - 1] += 1
            _note_class(total, count, i % period, classes[i], local)
    return found


@compiled
def distance_bits(classes, period, local):
    """Entropy of what the classes of one side are coded as; `local` 0 or 1."""
    return entropy_bits(_count_distances(classes, period, local))


@compiled
def _note_class(total, count, phase, value, local):
    if local:
        total[phase] = value
        count[phase] = 1
    else:
        total[phase] += value
        count[phase] += 1


@compiled
def _mean_class(total, count, phase):
    """Rounded mean of the classes at this phase so far; before the first, the phase before lends its own."""
    if count[phase] == 0:
        if phase == 0 or count[phase - 1] == 0:
            return 0
        phase -= 1
    return (2 * total[phase] + count[phase]) // (2 * count[phase])


@compiled
def _put_sides(rows, columns, flags, period, contexts, tokens, raw):
    """Contexts and tokens of all classes; their number, and where the bit string is."""
    out = contexts, tokens, raw
    one, nothing, bits = np.int64(1), np.int64(0), (np.int64(0), np.uint64(0), np.int64(0))
    n, bits = _put_classes(rows, flags & 1, flags >> 2 & 1, one, nothing, np.int64(_ROW_DEAD), *out, nothing, bits)
    return _put_classes(
        columns, flags >> 1 & 1, flags >> 3 & 1, period, flags >> 4 & 1, np.int64(_COLUMN_DEAD), *out, n, bits
    )


@compiled
def _put_points(points, base, rows, columns, walk, per_chain, contexts, tokens, raw, n_tokens, bits):
    """Context and token of every live point; n_tokens -1 where one does not fit trellis or classes."""
    at = np.int64(0)  # twice the state, plus its quantiser
    for j in range(points.shape[0]):
        if j % per_chain == 0:
            at = np.int64(0)
        column = columns[j]
        for i in range(np.uintp(points.shape[1])):
            point = np.int64(points[j, i])
            row = rows[i]
            if row < 0 or column < 0:
                if point != 0:
                    return -1, bits
                continue
            c, shift = scale_context(base + row + column)
            q = at & 1
            negative = np.int64(point < 0)
            size = abs(point)
            nonzero = np.int64(size > 0)
            if (size ^ q) & nonzero:
                return -1, bits
            k = (size + q) >> 1
            head = k >> shift
            if head < ESCAPE_FROM:
                token = np.int64(TOKENS[np.uintp(head)])
            else:
                token = np.int64(ESCAPE)
                bits = put_mantissa(head, token, raw, bits)
            # mantissa, shifted bits and sign are one string
            n = np.int64(OPEN_BITS[np.uintp(token)])
            value = (head & ((1 << n) - 1)) | (k & ((1 << shift) - 1)) << n | negative << (n + shift)
            bits = push(raw, bits, value, n + shift + nonzero)
            contexts[np.uintp(n_tokens)] = 2 * c + q
            tokens[np.uintp(n_tokens)] = token
            n_tokens += 1
            at = lead_on(walk, at, k, negative, c)
    return n_tokens, bits


# ------------------------------------------------------------------------------------------- adaptive model and rANS


@cache
def _start_model(has_zero: bool, decoder: bool) -> tuple[NDArray[np.int32], NDArray[np.uint32], NDArray[np.uint8]]:
    """Counts, spans and, for a decoder, slots before the first token; to be copied."""
    counts = np.concatenate([prior_of(has_zero), CLASS_PRIOR, CLASS_PRIOR])
    spans = np.zeros(counts.shape, np.uint32)
    slots = np.zeros((len(counts), TOTAL >> _COARSE if decoder else 0), np.uint8)
    _relearn(counts, np.zeros(len(counts), np.int64), spans, slots)
    return counts, spans, slots


@compiled
def _relearn(counts, totals, spans, slots):
    """Frequencies of every context whose counts have changed since `totals`.

    At least 1 for each token, TOTAL together; what rounding leaves over goes to the likeliest token.
    spans[c, t]: first slot << 16 | frequency. slots[c, slot >> _COARSE]: the token of the first of these slots, where
    the caller wants that.
    """
    for c in range(counts.shape[0]):
        total = np.int64(0)
        best = 0
        for t in range(N_TOKENS):
            total += counts[c, t]
            if counts[c, t] > counts[c, best]:
                best = t
        if total == totals[c]:
            continue
        spare = TOTAL
        share = (np.int64(TOTAL - N_TOKENS) << 32) // total  # one division for sixteen
        for t in range(N_TOKENS):
            frequency = 1 + (counts[c, t] * share >> 32)
            spans[c, t] = frequency
            spare -= frequency
        spans[c, best] += spare
        start = 0
        coarse = 0
        for t in range(N_TOKENS):
            frequency = np.int64(spans[c, t])
            spans[c, t] |= np.uint32(start << 16)
            start += frequency
            if slots.shape[1]:
                until = (start + (1 << _COARSE) - 1) >> _COARSE
                for slot in range(coarse, until):
                    slots[c, slot] = t
                coarse = until
        if total > _COUNT_LIMIT:
            total = 0
            for t in range(N_TOKENS):
                counts[c, t] = (counts[c, t] + 1) >> 1
                total += counts[c, t]
        totals[c] = total


@compiled
def _longer(interval):
    """Tokens until the next rebuild of the frequencies, given the last such number."""
    return min(interval + (interval >> 2), _LONGEST_INTERVAL)


_RECIPROCALS = np.array([0] + [-(-(1 << 44) // frequency) for frequency in range(1, TOTAL)], np.uint64)
"""2**44 / frequency, rounded up: (state * reciprocal) >> 44 is state // frequency for all state < frequency << 20, and
the product stays below 2**64."""


@compiled
def _encode_tokens(contexts, tokens, counts, spans, no_slots):
    """Words of a token sequence. Each block: the model runs forwards, the coder backwards over what the model said."""
    counts, spans = counts.copy(), spans.copy()
    totals = np.zeros(len(counts), np.int64)
    flat_counts, flat_spans = counts.reshape(-1), spans.reshape(-1)
    n = len(tokens)
    words = np.empty(n + 2 * (n // BLOCK + 1), np.uint16)
    size = 0
    said = np.empty(min(n, BLOCK + _LONGEST_INTERVAL), np.uint32)
    backwards = np.empty(len(said), np.uint16)
    interval = _FIRST_INTERVAL
    done = 0
    while done < n:
        n_block = 0
        while n_block < BLOCK and done < n:
            n_run = min(interval, n - done)
            for i in range(np.uintp(n_run)):
                e = np.uintp(contexts[np.uintp(done) + i]) * np.uintp(N_TOKENS) + np.uintp(tokens[np.uintp(done) + i])
                said[np.uintp(n_block) + i] = flat_spans[e]
                flat_counts[e] += np.int32(COUNT)
            n_block += n_run
            done += n_run
            interval = _longer(interval)
            _relearn(counts, totals, spans, no_slots)
        state = np.uint32(STATE_START if done < n else _STATE_END)
        n_words = 0
        for i in range(n_block - 1, -1, -1):
            span = said[np.uintp(i)]
            frequency = span & np.uint32(0xFFFF)
            if state >> np.uint32(32 - FREQUENCY_BITS) >= frequency:
                backwards[np.uintp(n_words)] = state & np.uint32(0xFFFF)
                n_words += 1
                state >>= np.uint32(16)
            quotient = np.uint32((np.uint64(state) * _RECIPROCALS[np.uintp(frequency)]) >> np.uint64(44))
            # state - quotient * frequency is the remainder; so much is one multiplication after the other
            state += quotient * (np.uint32(TOTAL) - frequency) + (span >> np.uint32(16))
        words[size] = state >> np.uint32(16)
        words[size + 1] = state & np.uint32(0xFFFF)
        for i in range(n_words):
            words[size + 2 + i] = backwards[n_words - 1 - i]
        size += 2 + n_words
    return words[:size].copy()


@compiled
def _bits_each(points):
    """What a point takes of the bit string at most."""
    largest, bits = peak(points), 29
    while largest >> (bits - 12):
        bits += 1
    return bits


@compiled
def _bit_string(raw, bits):
    """All of it, with the word that is not full yet, and how many bits it has."""
    n_full, waiting, n_waiting = bits
    raw[n_full] = waiting
    return raw[: n_full + 1], 32 * n_full + n_waiting


@compiled
def _pack(points, base, rows, columns, period, by_row, walk, per_chain, counts, spans, no_slots):
    """Flags, words, bit string, and how many bits this has; negative where a point does not fit. points as they run."""
    n_most = 2 * (len(rows) + len(columns)) + points.size
    contexts = np.empty(n_most, np.uint8)
    tokens = np.empty(n_most, np.uint8)
    raw = np.empty(n_most * _bits_each(points) // 32 + 3, np.uint32)
    flags = _flags(rows, columns, period)
    n_tokens, bits = _put_sides(rows, columns, flags, period, contexts, tokens, raw)
    inner, outer = (columns, rows) if by_row else (rows, columns)
    n_tokens, bits = _put_points(points, base, inner, outer, walk, per_chain, contexts, tokens, raw, n_tokens, bits)
    if n_tokens < 0:
        return flags, np.empty(0, np.uint16), raw[:0], np.int64(-1)
    string, n_bits = _bit_string(raw, bits)
    return flags, _encode_tokens(contexts[:n_tokens], tokens[:n_tokens], counts, spans, no_slots), string, n_bits


@compiled
def _pack_by_prefix(points, base, rows, columns, period, lengths, counts, spans, no_slots):
    """The same with prefix codes of such lengths. A function of its own: most never have to compile it."""
    n_most = 2 * (len(rows) + len(columns))
    contexts = np.empty(n_most, np.uint8)
    tokens = np.empty(n_most, np.uint8)
    n_words = (n_most + points.size) * (_bits_each(points) + prefix.LONGEST) // 32 + prefix.LENGTHS_WORDS + 3
    raw = np.empty(n_words, np.uint32)
    flags = _flags(rows, columns, period)
    n_tokens, bits = _put_sides(rows, columns, flags, period, contexts, tokens, raw)
    bits = prefix.put_lengths(lengths, raw, bits)
    fits, bits = prefix.put_points(points, base, rows, columns, lengths, raw, bits)
    if not fits:
        return flags, np.empty(0, np.uint16), raw[:0], np.int64(-1)
    string, n_bits = _bit_string(raw, bits)
    return flags, _encode_tokens(contexts[:n_tokens], tokens[:n_tokens], counts, spans, no_slots), string, n_bits


@compiled
def _turn(words, clock, counts, totals, spans, slots):
    """What happens between two runs of tokens: learn, and at the end of a block start the next.

    clock: [state, word position, tokens in this block, interval]; returns False where the words end too early.
    """
    if clock[3] == 0:
        clock[0] = STATE_START
        clock[3] = _FIRST_INTERVAL
        clock[2] = BLOCK
    else:
        _relearn(counts, totals, spans, slots)
        clock[2] += clock[3]
        clock[3] = _longer(clock[3])
    if clock[2] >= BLOCK:
        at = clock[1]
        if clock[0] != STATE_START or at + 2 > len(words):
            return False
        clock[0] = np.int64(words[at]) << 16 | np.int64(words[at + 1])
        clock[1] = at + 2
        clock[2] = 0
    return True


@compiled
def _look_up(slots, spans, context, slot):
    """Token and span of a slot."""
    token = np.uintp(slots[context, slot >> np.uint32(_COARSE)])
    span = spans[context, token]
    while slot - (span >> np.uint32(16)) >= span & np.uint32(0xFFFF):
        token += np.uintp(1)
        span = spans[context, token]
    return token, span


@compiled
def _get_classes(
    classes, coded, flagged, period, local, context, words, raw, n_bits, clock, left, bit, counts, totals, spans, slots
):
    """Inverse of _put_classes. Returns tokens left in this run and the next bit; -1, -1 for a stream that cannot be."""
    total = np.zeros(period, np.int64)
    count = np.zeros(period, np.int64)
    for i in range(len(classes)):
        classes[i] = 0
        for part in range(2):  # the dead flag, then the class
            if not (flagged if part == 0 else coded) or classes[i] == DEAD:
                continue
            if left == 0:
                if not _turn(words, clock, counts, totals, spans, slots):
                    return -1, -1
                left = clock[3]
            left -= 1
            state = np.uint32(clock[0])
            slot = state & np.uint32(TOTAL - 1)
            token, span = _look_up(slots, spans, np.uintp(context + part), slot)
            state = (span & np.uint32(0xFFFF)) * (state >> np.uint32(FREQUENCY_BITS)) + slot - (span >> np.uint32(16))
            if state < STATE_START and clock[1] < len(words):
                state = state << np.uint32(16) | np.uint32(words[clock[1]])
                clock[1] += 1
            clock[0] = state
            counts[context + part, token] += COUNT
            if part == 0:
                classes[i] = DEAD if token else 0
                continue
            zigzag, bit = mantissa(np.int64(token), raw, bit)
            phase = i % period
            value = _mean_class(total, count, phase) + ((zigzag >> 1) ^ -(zigzag & 1))
            if bit > n_bits or value < 0 or value > MOST_CLASS:
                return -1, -1
            classes[i] = value
            _note_class(total, count, phase, value, local)
    return left, bit


@compiled
def _get_sides(words, raw, n_bits, flags, period, clock, model, rows, columns):
    """Fill rows and columns with their classes. Returns as `_get_classes`."""
    one, nothing = np.int64(1), np.int64(0)
    left, bit = _get_classes(
        rows, flags & 1, flags >> 2 & 1, one, nothing, np.int64(_ROW_DEAD), words, raw, n_bits, clock, nothing, nothing,
        *model,
    )  # fmt: skip
    if left >= 0:
        left, bit = _get_classes(
            columns, flags >> 1 & 1, flags >> 3 & 1, period, flags >> 4 & 1, np.int64(_COLUMN_DEAD),
            words, raw, n_bits, clock, left, bit, *model,
        )  # fmt: skip
    return left, bit


@compiled
def _decode_by_prefix(words, raw, n_bits, flags, base, period, counts, spans, slots, points):
    """`_decode` where points have prefix codes."""
    n_columns, n_rows = points.shape
    model = counts.copy(), np.zeros(len(counts), np.int64), spans.copy(), slots.copy()
    clock = np.array([_STATE_END, 0, 0, 0], np.int64)
    rows = np.empty(n_rows, np.int64)
    columns = np.empty(n_columns, np.int64)
    left, bit = _get_sides(words, raw, n_bits, flags, period, clock, model, rows, columns)
    if left < 0 or clock[0] != _STATE_END or points.size == 0:
        return -1, -1
    bit = prefix.get_points(raw, bit, n_bits, base, rows, columns, points)
    return (clock[1], bit) if bit >= 0 else (-1, -1)


@compiled
def _decode(words, raw, n_bits, flags, base, period, counts, spans, slots, by_row, walk, per_chain, points):
    """Fill points, as they run; returns words and bits used, or -1, -1 where the stream does not hold what is asked."""
    n_columns, n_rows = points.shape
    counts, spans, slots = counts.copy(), spans.copy(), slots.copy()
    totals = np.zeros(len(counts), np.int64)
    clock = np.array([_STATE_END, 0, 0, 0], np.int64)
    rows = np.empty(n_rows, np.int64)  # inner and outer lines, whichever they are
    columns = np.empty(n_columns, np.int64)
    sides = (columns, rows) if by_row else (rows, columns)
    left, bit = _get_sides(words, raw, n_bits, flags, period, clock, (counts, totals, spans, slots), *sides)
    if left < 0:
        return -1, -1
    state = np.uint32(clock[0])
    at = clock[1]
    n_words = len(words)
    here = np.int64(0)  # twice the state of the trellis, plus its quantiser
    for j in range(n_columns):
        if j % per_chain == 0:
            here = np.int64(0)
        column = columns[j]
        if column < 0:
            points[j] = 0
            continue
        for i in range(np.uintp(n_rows)):
            row = rows[i]
            if row < 0:
                points[j, i] = 0
                continue
            if left == 0:
                clock[0] = state
                clock[1] = at
                if not _turn(words, clock, counts, totals, spans, slots):
                    return -1, -1
                state = np.uint32(clock[0])
                at = clock[1]
                left = clock[3]
            left -= 1
            c, shift = scale_context(base + row + column)
            q = here & 1
            context = np.uintp(2 * c + q)
            slot = state & np.uint32(TOTAL - 1)
            token, span = _look_up(slots, spans, context, slot)
            frequency = span & np.uint32(0xFFFF)
            state = np.uint32(frequency * (state >> np.uint32(FREQUENCY_BITS)) + slot - (span >> np.uint32(16)))
            # from here on without branches, since nobody could foresee which way they go
            more = (state < STATE_START) & (at < n_words)
            word = np.uint32(words[np.uintp(min(at, n_words - 1))])
            state = np.uint32(state << np.uint32(16) | word) if more else state
            at += more
            counts[context, token] += COUNT
            n = np.int64(OPEN_BITS[token])
            head = np.int64(LEAST[token])
            if shift == 0 and token != ESCAPE:  # what is read is known from the token: the next need not wait for it
                string = np.int64(window(raw, bit))
                nonzero = np.int64(token != 0)
                k = head + (string & ((1 << n) - 1))
                sign = string >> n & nonzero
                bit += n + nonzero
            else:
                if token == ESCAPE:
                    head, bit = mantissa(np.int64(token), raw, bit)
                string = np.int64(window(raw, bit) & np.uint64(0x1FFFFFFFF))
                head += string & ((1 << n) - 1)
                k = head << shift | string >> n & ((1 << shift) - 1)
                nonzero = np.int64(k != 0)
                sign = string >> (n + shift) & nonzero
                bit += n + shift + nonzero
            size = 2 * k - (q & nonzero)
            if bit > n_bits or size >= POINT_LIMIT:
                return -1, -1
            points[j, i] = (size ^ -sign) + sign
            here = lead_on(walk, here, k, sign, c)
    if state != _STATE_END:
        return -1, -1
    return at, bit
