"""A scanner of COCO results in compiled code: half a million predictions in a tenth of a second, without an object for each.

It reads what is usual (a flat list of objects whose known fields are numbers, lists of numbers and run lengths) and gives up at
anything else; the reader that goes one by one then names the culprit. Numbers are those that Python's `float` gives, to the last
bit: a decimal of up to 18 digits is divided by a power of ten in twice the precision of a double; where that leaves the rounding
open, or the number is longer, its place is noted and Python reads it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pelagia.core.kernels import compiled
from pelagia.core.types import Float, Int

__all__ = ["scan"]

_Bytes = NDArray[np.uint8]

_TEN = 10.0 ** np.arange(23)  # exact
_SPLITTER = 134217729.0  # 2^27 + 1 (Dekker 1971)
_TINY = 2.0**-40

_IMAGE_ID, _CATEGORY_ID, _SCORE, _BBOX, _SEGMENTATION, _KEYPOINTS, _SIZE, _COUNTS = (
    np.frombuffer(name, dtype=np.uint8)
    for name in (b"image_id", b"category_id", b"score", b"bbox", b"segmentation", b"keypoints", b"size", b"counts")
)


@compiled
def _blank(data: _Bytes, i: int, end: int) -> int:
    """The next place that is not white space."""
    while i < end and (data[i] == 32 or data[i] == 10 or data[i] == 13 or data[i] == 9):
        i += 1
    return i


@compiled
def _is(data: _Bytes, i: int, j: int, name: _Bytes) -> bool:
    if j - i != len(name):
        return False
    for k in range(len(name)):  # noqa: SIM110 (no generators in compiled code)
        if data[i + k] != name[k]:
            return False
    return True


@compiled
def _string_end(data: _Bytes, i: int, end: int) -> int:
    """`i` stands after the opening quote; the place of the closing one, or -1."""
    while i < end and data[i] != 34:
        i += 2 if data[i] == 92 else 1
    return i if i < end else -1


@compiled
def _number(data: _Bytes, i: int, end: int) -> tuple[float, int, int]:
    """Value, the place after it, and 0 = exact, 1 = Python must read it, -1 = no number."""
    negative = i < end and data[i] == 45
    if negative:
        i += 1
    value, digits, power, longer, begin = 0, 0, 0, False, i
    while i < end and 48 <= data[i] <= 57:
        if digits < 18:
            value = value * 10 + int(data[i]) - 48
            digits += value > 0
        else:
            longer = True
        i += 1
    if i == begin or (data[begin] == 48 and i - begin > 1):
        return 0.0, i, -1
    if i < end and data[i] == 46:
        i += 1
        begin = i
        while i < end and 48 <= data[i] <= 57:
            if digits < 18:
                value = value * 10 + int(data[i]) - 48
                digits += value > 0
                power -= 1
            else:
                longer = True
            i += 1
        if i == begin:
            return 0.0, i, -1
    if i < end and (data[i] == 101 or data[i] == 69):
        i += 1
        down = i < end and data[i] == 45
        if i < end and (data[i] == 45 or data[i] == 43):
            i += 1
        begin, exponent = i, 0
        while i < end and 48 <= data[i] <= 57:
            exponent = min(exponent * 10 + int(data[i]) - 48, 9999)
            i += 1
        if i == begin:
            return 0.0, i, -1
        power += -exponent if down else exponent
    sign = -1.0 if negative else 1.0
    if longer or power < -22 or power > 22:
        return 0.0, i, 1
    head = np.float64(value)
    if value <= 9007199254740992:  # 2^53: one correctly rounded operation (Clinger 1990)
        return sign * (head / _TEN[-power] if power < 0 else head * _TEN[power]), i, 0
    if power > 0:
        return 0.0, i, 1
    divisor = _TEN[-power]
    tail = np.float64(value - np.int64(head))
    quotient = head / divisor
    product = quotient * divisor
    a = _SPLITTER * quotient
    a = a - (a - quotient)
    b = _SPLITTER * divisor
    b = b - (b - divisor)
    error = ((a * b - product) + a * (divisor - b) + (quotient - a) * b) + (quotient - a) * (divisor - b)
    rest = ((head - product) - error + tail) / divisor
    low, high = quotient + rest * (1 - _TINY), quotient + rest * (1 + _TINY)
    return sign * low, i, 0 if low == high else 1


@compiled
def _skip(data: _Bytes, i: int, end: int) -> int:
    """The place after any value, or -1."""
    depth = 0
    while i < end:
        c = data[i]
        if c == 34:
            i = _string_end(data, i + 1, end)
            if i < 0:
                return -1
        elif c == 123 or c == 91:
            depth += 1
        elif c == 125 or c == 93:
            if depth == 0:
                return i
            depth -= 1
        elif c == 44 and depth == 0:
            return i
        i += 1
        if depth == 0 and (c == 34 or c == 125 or c == 93):
            return i
    return -1


@compiled
def scan(
    data: _Bytes,
    i: int,
    end: int,
    numbers: Float,
    lists: Float,
    lengths: Int,
    texts: tuple[_Bytes, Int],
    late: Int,
) -> tuple[int, int, int, int]:
    """Objects from place `i`, where one begins, to `end`, where the next part or the closing bracket stands.

    Args:
        numbers: [D, 5] image id, category id, score, and height and width of the mask; of each object.
        lists: [L] numbers of `bbox` and `keypoints`, one list after another; `lengths` [D, 2] how many of each.
        texts: the characters of `counts`, one text after another, and [D] how many.
        late: [T, 4] numbers that Python must read: first and last place in `data`, then 0 and row * 5 + column of `numbers`, or 1
            and the place in `lists`.

    Returns:
        How many objects, numbers in lists, characters, late numbers; the first is -1 where something is unusual.
    """
    text, text_lengths = texts
    row, listed, characters, waiting = 0, 0, 0, 0
    bad = (-1, 0, 0, 0)
    expected = -1
    while i < end:
        if row == len(numbers) or data[i] != 123:
            return bad
        i = _blank(data, i + 1, end)
        seen = 0
        lengths[row] = 0
        text_lengths[row] = 0
        while i < end and data[i] != 125:
            if data[i] != 34:
                return bad
            begin = i + 1
            stop = _string_end(data, begin, end)
            if stop < 0:
                return bad
            i = _blank(data, stop + 1, end)
            if i >= end or data[i] != 58:
                return bad
            i = _blank(data, i + 1, end)
            column = -1
            if _is(data, begin, stop, _IMAGE_ID):
                column = 0
            elif _is(data, begin, stop, _CATEGORY_ID):
                column = 1
            elif _is(data, begin, stop, _SCORE):
                column = 2
            which = 0 if _is(data, begin, stop, _BBOX) else 1 if _is(data, begin, stop, _KEYPOINTS) else -1
            if column >= 0:
                first = i
                value, i, state = _number(data, i, end)
                if state < 0 or seen & (1 << column):
                    return bad
                if column < 2:  # ids are whole and small enough for a double
                    if state != 0 or value != np.floor(value) or abs(value) > 9e15:
                        return bad
                    for k in range(first, i):
                        if data[k] == 46 or data[k] == 101 or data[k] == 69:
                            return bad
                if state == 1:
                    if waiting == len(late):
                        return bad
                    late[waiting, 0], late[waiting, 1], late[waiting, 2], late[waiting, 3] = first, i, 0, row * 5 + column
                    waiting += 1
                numbers[row, column] = value
                seen |= 1 << column
            elif which >= 0:
                if i >= end or data[i] != 91 or seen & (8 << which) or (which == 0 and seen & 16):
                    return bad  # bbox before keypoints, so that lists keep one order
                i = _blank(data, i + 1, end)
                while i < end and data[i] != 93:
                    first = i
                    value, i, state = _number(data, i, end)
                    if state < 0 or listed == len(lists):
                        return bad
                    if state == 1:
                        if waiting == len(late):
                            return bad
                        late[waiting, 0], late[waiting, 1], late[waiting, 2], late[waiting, 3] = first, i, 1, listed
                        waiting += 1
                    lists[listed] = value
                    listed += 1
                    lengths[row, which] += 1
                    i = _blank(data, i, end)
                    if i < end and data[i] == 44:
                        i = _blank(data, i + 1, end)
                        if i < end and data[i] == 93:
                            return bad
                    elif i >= end or data[i] != 93:
                        return bad
                i += 1
                seen |= 8 << which
            elif _is(data, begin, stop, _SEGMENTATION) and i < end and data[i] == 123:
                i = _blank(data, i + 1, end)
                inner = 0
                while i < end and data[i] != 125:
                    begin = i + 1
                    stop = _string_end(data, begin, end) if data[i] == 34 else -1
                    if stop < 0:
                        return bad
                    i = _blank(data, stop + 1, end)
                    if i >= end or data[i] != 58:
                        return bad
                    i = _blank(data, i + 1, end)
                    if _is(data, begin, stop, _SIZE) and i < end and data[i] == 91:
                        i = _blank(data, i + 1, end)
                        for k in range(2):
                            value, i, state = _number(data, i, end)
                            if state != 0 or value != np.floor(value) or value < 0 or value > 1e9:
                                return bad
                            numbers[row, 3 + k] = value
                            i = _blank(data, i, end)
                            if i >= end or data[i] != (44 if k == 0 else 93):
                                return bad
                            i = _blank(data, i + 1, end) if k == 0 else i + 1
                        inner |= 1
                    elif _is(data, begin, stop, _COUNTS) and i < end and data[i] == 34:
                        stop = _string_end(data, i + 1, end)
                        if stop < 0 or inner & 2:
                            return bad
                        i += 1
                        while i < stop:
                            if data[i] == 92:  # the only character of run lengths that JSON escapes
                                i += 1
                                if data[i] != 92:
                                    return bad
                            text[characters] = data[i]
                            characters += 1
                            text_lengths[row] += 1
                            i += 1
                        i = stop + 1
                        inner |= 2
                    else:
                        return bad
                    i = _blank(data, i, end)
                    if i < end and data[i] == 44:
                        i = _blank(data, i + 1, end)
                    elif i >= end or data[i] != 125:
                        return bad
                if inner != 3 or seen & 32:
                    return bad
                i += 1
                seen |= 32
            else:
                i = _skip(data, i, end)
                if i < 0:
                    return bad
            i = _blank(data, i, end)
            if i < end and data[i] == 44:
                i = _blank(data, i + 1, end)
                if i >= end or data[i] != 34:
                    return bad
            elif i >= end or data[i] != 125:
                return bad
        if i >= end or (expected >= 0 and seen != expected) or seen & 7 != 7:
            return bad
        expected = seen
        row += 1
        i = _blank(data, i + 1, end)
        if i < end:
            if data[i] != 44:
                return bad
            i = _blank(data, i + 1, end)
            if data[i] != 123:  # behind a comma stands an object, here or where the next part begins
                return bad
    return row, listed, characters, waiting
