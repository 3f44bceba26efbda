"""Entropy coding of lattice points: adaptive rANS with one frequency table per scale class. Exact integers throughout.

Knows neither weights nor files: `pack` turns a matrix of integers into bytes, `unpack` turns them back.

How a point is coded. The trellis (`trellis.py`) turns the point into a symbol k. Its magnitude becomes a *token* of 16
and some raw bits: 0 to 7 stand for themselves, tokens 8 to 14 for half octaves (8-11, 12-15, 16-23, ... 64-95) and
token 15 for all above, in Elias gamma. Tokens go through the range coder, mantissa bits and signs into a plain bit
string.

What makes it tight. Every row and every column carries a *scale class* on a half-octave grid, and the class of a
weight is the sum: symbols of class c have a standard deviation near 2 ** ((c - 5) / 2). The context of a token is
its class and the trellis quantiser in force. Each context starts from the frequencies in `prior.py` and learns
while it codes, so no table is ever sent. Classes above TOP_CLASS shift low bits out into the bit string. Rows and
columns without any nonzero point are dead: they cost one flag and nothing more.

Range coder: rANS (Duda 2013, arXiv:1311.2540), 32-bit state, 16-bit words, 12-bit frequencies. Symbols are coded
last to first in blocks of BLOCK, so that a decoder reads forwards while the encoder needs memory for one block. At
the end of a block the state must be back at its start value, which catches most damage that a checksum would.

Byte layout: docs/format.md, "symbols".

Shapes: points (n_columns, n_rows): the matrix column after column, as the trellis runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from paramcompress.jit import compiled
from paramcompress.prior import PRIOR
from paramcompress.trellis import TRELLISES, Trellis, columns_per_chain

N_TOKENS = 16
ESCAPE = N_TOKENS - 1
ESCAPE_FROM = 96
TOP_CLASS = 13
N_CLASSES = TOP_CLASS + 1
UNIT_CLASS = 5
"""Class of symbols with standard deviation 1."""
DEAD = -1
"""Class of a row or column whose points are all zero."""

FREQUENCY_BITS = 12
TOTAL = 1 << FREQUENCY_BITS
BLOCK = 1 << 16
STATE_START = 1 << 16

MOST_CLASS = 127
"""Largest class of a row or column, before the base is added."""
MOST_SHIFT = 24
POINT_LIMIT = 1 << 30

_ROW_DEAD = 2 * N_CLASSES
"""Context of a row's dead flag; the next one is for its class, the two after that are the columns'."""
_COLUMN_DEAD = _ROW_DEAD + 2
COUNT = 16
"""What one occurrence adds; the prior counts in the same unit, so this sets how soon data outweigh it."""
_COUNT_LIMIT = 1 << 19
_COARSE = 4
"""A decoder looks up the token of every 16th slot and walks on from there: a table of all slots would take longer to
make than it saves, and not fit the nearest cache."""
_FIRST_INTERVAL = 32
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


def pack(points: NDArray[np.int32], scales: Scales, trellis: Trellis, *, period: int = 1) -> bytes:
    """Bytes of a matrix of lattice points.

    Args:
        points: (n_columns, n_rows), |point| < 2**30, each on the quantiser that the trellis allows there; zero in
            dead rows and columns. scales: classes; any are legal, good ones make the bytes few. trellis: the one
            the points were chosen with. period: columns that lie this far apart have similar classes (kernel
            positions repeat from input to input).

    Raises:
        ValueError: shapes do not fit, or a point is off the trellis.
    """
    n_columns, n_rows = points.shape
    if scales.rows.shape != (n_rows,) or scales.columns.shape != (n_columns,):
        raise ValueError(f"{scales.rows.shape} row and {scales.columns.shape} column classes for points {points.shape}")
    walk = WALKS[trellis.n_states], columns_per_chain(n_rows)
    flags, words, raw, n_bits = _pack(
        points, scales.base, scales.rows, scales.columns, period, *walk, *_start_model(False)
    )
    if n_bits < 0:
        raise ValueError("a point is off the trellis, or nonzero in a dead row or column")
    head = bytes([trellis.n_states.bit_length() - 1 | flags << 3]) + int(scales.base).to_bytes(1, "little", signed=True)
    bit_string = raw.astype("<u4", copy=False).tobytes()[: (n_bits + 7) // 8]
    return head + varint(len(words)) + words.astype("<u2", copy=False).tobytes() + bit_string


def unpack(stream: bytes | memoryview, n_rows: int, n_columns: int, *, period: int = 1) -> NDArray[np.int32]:
    """Points (n_columns, n_rows) from the bytes that `pack` made of them.

    Reads nothing outside `stream` and allocates for n_rows and n_columns alone, whatever the bytes say.

    Raises:
        ValueError: the bytes are not such a stream, or end early, or something is left over.
    """
    if len(stream) < 3:
        raise ValueError("stream too short")
    log_states, flags = stream[0] & 7, stream[0] >> 3
    trellis = TRELLISES.get(1 << log_states)
    if trellis is None:
        raise ValueError(f"trellis of {1 << log_states} states is not known")
    base = int.from_bytes(stream[1:2], "little", signed=True)
    n_words, at = read_varint(stream, 2)
    if 2 * n_words > len(stream) - at:
        raise ValueError("stream cut short")
    words = np.frombuffer(stream, "<u2", n_words, at)
    bits = stream[at + 2 * n_words :]
    raw = np.frombuffer(b"".join((bits, bytes(-len(bits) % 4 + 16))), "<u4")
    points = np.empty((n_columns, n_rows), np.int32)
    walk = WALKS[trellis.n_states], columns_per_chain(n_rows)
    used_words, used_bits = _decode(words, raw, 8 * len(bits), flags, base, period, *walk, *_start_model(True), points)
    if used_words != n_words or (used_bits + 7) // 8 != len(bits):
        raise ValueError("symbols and stream do not fit together")
    return points


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


# ------------------------------------------------------------------------------------------- magnitudes and raw bits


WALKS = {
    n: (2 * one.next_state + one.quantiser[one.next_state]).astype(np.uint8).reshape(-1) for n, one in TRELLISES.items()
}
"""By number of states: where parity p leads from state s, at 2 s + p: twice the next state plus the quantiser there."""


_OPEN_BITS = np.array([0] * 8 + [(token - 2) // 2 - 1 for token in range(8, ESCAPE)] + [0], np.uint8)
"""Mantissa bits that follow a token; the escape, which says itself how many, counts as none."""
_LEAST = np.array([*range(8), *((2 + (token & 1)) << (token - 2) // 2 - 1 for token in range(8, ESCAPE)), 0], np.uint8)
"""Least magnitude of a token."""
TOKENS = np.repeat(np.arange(ESCAPE, dtype=np.uint8), np.diff(np.append(_LEAST[:ESCAPE], ESCAPE_FROM)))
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
def _push(raw, bits, value, n):
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
def _window(raw, at):
    """At least 33 bits from bit `at` on."""
    word = np.uintp(at >> 5)
    wide = np.uint64(raw[word]) | np.uint64(raw[word + np.uintp(1)]) << np.uint64(32)
    return wide >> np.uint64(at & 31)


@compiled
def _read_bits(raw, at, n):
    return np.int64(_window(raw, at)) & ((np.int64(1) << n) - 1)


@compiled
def _put_mantissa(magnitude, token, raw, bits):
    """What a token of 8 and above leaves open."""
    if token == ESCAPE:
        rest = magnitude - (ESCAPE_FROM - 1)
        length = 0
        while rest >> (length + 1):
            length += 1
        return _push(raw, _push(raw, bits, length, 5), rest - (1 << length), length)
    n = (token - 2) // 2 - 1
    return _push(raw, bits, magnitude & ((1 << n) - 1), n)


@compiled
def _mantissa(token, raw, at):
    """Magnitude of a token and the next bit position."""
    if token < 8:
        return token, at
    if token == ESCAPE:
        length = _read_bits(raw, at, 5)
        return 95 + (1 << length) + _read_bits(raw, at + 5, length), at + 5 + length
    n = (token - 2) // 2 - 1
    return ((2 + (token & 1)) << n) + _read_bits(raw, at, n), at + n


# ------------------------------------------------------------------------------------------- points to tokens


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
                bits = _put_mantissa(zigzag, token, raw, bits)
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
def entropy_bits(counts):
    """Bits of as many symbols as counts say, by their own frequencies."""
    total = counts.sum()
    bits = 0.0
    for count in counts:
        if count > 0:
            bits += count * np.log2(total / count)
    return bits


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
def scale_context(scale_class: int) -> tuple[int, int]:
    """Context class of a scale class, 0 to TOP_CLASS, and the low bits of its symbols that go into the bit string."""
    if scale_class <= TOP_CLASS:
        return max(scale_class, 0), 0
    shift = min((scale_class - TOP_CLASS + 1) >> 1, MOST_SHIFT)
    return min(scale_class - 2 * shift, TOP_CLASS), shift


@compiled
def _put_all(points, base, rows, columns, flags, period, walk, per_chain, contexts, tokens, raw):
    """Contexts and tokens of classes and points; their number, negative where a point does not fit, and where the bit
    string ends."""
    out = contexts, tokens, raw
    one, nothing, bits = np.int64(1), np.int64(0), (np.int64(0), np.uint64(0), np.int64(0))
    n, bits = _put_classes(rows, flags & 1, flags >> 2 & 1, one, nothing, np.int64(_ROW_DEAD), *out, nothing, bits)
    n, bits = _put_classes(
        columns, flags >> 1 & 1, flags >> 3 & 1, period, flags >> 4 & 1, np.int64(_COLUMN_DEAD), *out, n, bits
    )
    n, bits = _put_points(points, base, rows, columns, walk, per_chain, *out, n, bits)
    n_full, waiting, n_waiting = bits
    return n, n_full, waiting, n_waiting


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
                bits = _put_mantissa(head, token, raw, bits)
            # mantissa, shifted bits and sign are one string
            n = np.int64(_OPEN_BITS[np.uintp(token)])
            value = (head & ((1 << n) - 1)) | (k & ((1 << shift) - 1)) << n | negative << (n + shift)
            bits = _push(raw, bits, value, n + shift + nonzero)
            contexts[np.uintp(n_tokens)] = 2 * c + q
            tokens[np.uintp(n_tokens)] = token
            n_tokens += 1
            at = np.int64(walk[np.uintp((at & ~1) | (k & 1))])
    return n_tokens, bits


# ------------------------------------------------------------------------------------------- adaptive model and rANS


@cache
def _start_model(decoder: bool) -> tuple[NDArray[np.int32], NDArray[np.uint32], NDArray[np.uint8]]:
    """Counts, spans and, for a decoder, slots before the first token; to be copied."""
    counts = np.concatenate([PRIOR, np.full((4, N_TOKENS), COUNT, np.int32)])
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
        state = np.uint32(STATE_START)
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
def _pack(points, base, rows, columns, period, walk, per_chain, counts, spans, no_slots):
    """Flags, words and bit string, and how many bits this has; negative where a point does not fit."""
    n_most = points.size + 2 * (len(rows) + len(columns))
    contexts = np.empty(n_most, np.uint8)
    tokens = np.empty(n_most, np.uint8)
    largest, bits_each = peak(points), 29
    while largest >> (bits_each - 12):
        bits_each += 1
    raw = np.empty(n_most * bits_each // 32 + 3, np.uint32)
    flags = _flags(rows, columns, period)
    n_tokens, n_full, waiting, n_waiting = _put_all(
        points, base, rows, columns, flags, period, walk, per_chain, contexts, tokens, raw
    )
    if n_tokens < 0:
        return flags, np.empty(0, np.uint16), raw[:0], np.int64(-1)
    raw[n_full] = waiting
    words = _encode_tokens(contexts[:n_tokens], tokens[:n_tokens], counts, spans, no_slots)
    return flags, words, raw[: n_full + 1], 32 * n_full + n_waiting


@compiled
def _turn(words, clock, counts, totals, spans, slots):
    """What happens between two runs of tokens: learn, and at the end of a block start the next.

    clock: [state, word position, tokens in this block, interval]; returns False where the words end too early.
    """
    if clock[3] == 0:
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
            if state < STATE_START:
                if clock[1] >= len(words):
                    return -1, -1
                state = state << np.uint32(16) | np.uint32(words[clock[1]])
                clock[1] += 1
            clock[0] = state
            counts[context + part, token] += COUNT
            if part == 0:
                classes[i] = DEAD if token else 0
                continue
            zigzag, bit = _mantissa(np.int64(token), raw, bit)
            phase = i % period
            value = _mean_class(total, count, phase) + ((zigzag >> 1) ^ -(zigzag & 1))
            if bit > n_bits or value < 0 or value > MOST_CLASS:
                return -1, -1
            classes[i] = value
            _note_class(total, count, phase, value, local)
    return left, bit


@compiled
def _decode(words, raw, n_bits, flags, base, period, walk, per_chain, counts, spans, slots, points):
    """Fill points; returns words and bits used, or -1, -1 where the stream does not hold what is asked of it."""
    n_columns, n_rows = points.shape
    counts, spans, slots = counts.copy(), spans.copy(), slots.copy()
    totals = np.zeros(len(counts), np.int64)
    clock = np.array([STATE_START, 0, 0, 0], np.int64)
    rows = np.empty(n_rows, np.int64)
    columns = np.empty(n_columns, np.int64)
    one, nothing = np.int64(1), np.int64(0)
    model = counts, totals, spans, slots
    left, bit = _get_classes(
        rows, flags & 1, flags >> 2 & 1, one, nothing, np.int64(_ROW_DEAD), words, raw, n_bits, clock, nothing, nothing,
        *model,
    )  # fmt: skip
    if left >= 0:
        left, bit = _get_classes(
            columns, flags >> 1 & 1, flags >> 3 & 1, period, flags >> 4 & 1, np.int64(_COLUMN_DEAD),
            words, raw, n_bits, clock, left, bit, *model,
        )  # fmt: skip
    if left < 0:
        return -1, -1
    state = np.uint32(clock[0])
    at = clock[1]
    last = len(words) - 1
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
            more = state < STATE_START
            word = np.uint32(words[np.uintp(min(at, last))])
            state = np.uint32(state << np.uint32(16) | word) if more else state
            at += more
            counts[context, token] += COUNT
            n = np.int64(_OPEN_BITS[token])
            head = np.int64(_LEAST[token])
            if shift == 0 and token != ESCAPE:  # what is read is known from the token: the next need not wait for it
                string = np.int64(_window(raw, bit))
                nonzero = np.int64(token != 0)
                k = head + (string & ((1 << n) - 1))
                sign = string >> n & nonzero
                bit += n + nonzero
            else:
                if token == ESCAPE:
                    head, bit = _mantissa(np.int64(token), raw, bit)
                string = np.int64(_window(raw, bit) & np.uint64(0x1FFFFFFFF))
                head += string & ((1 << n) - 1)
                k = head << shift | string >> n & ((1 << shift) - 1)
                nonzero = np.int64(k != 0)
                sign = string >> (n + shift) & nonzero
                bit += n + shift + nonzero
            size = 2 * k - (q & nonzero)
            if bit > n_bits or size >= POINT_LIMIT or at > len(words):
                return -1, -1
            points[j, i] = (size ^ -sign) + sign
            here = np.int64(walk[np.uintp((here & ~1) | (k & 1))])
    if state != STATE_START:
        return -1, -1
    return at, bit
