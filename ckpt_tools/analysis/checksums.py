"""CRC-32 of bytes that have been read for something else, so that a file need not be read again for it."""

from __future__ import annotations

import zlib
from bisect import bisect_left, insort
from functools import lru_cache

from ckpt_tools.sources import Source

_POLYNOMIAL = 0xEDB88320
"""IEEE 802.3's, its coefficients from the lowest in the highest bit, as zip has it (PKWARE APPNOTE 4.4.7)."""
_ONE = 1 << 31


class Checksums:
    """The checksums of runs of bytes, by the name of the source they were read from and their offset in it."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, int], tuple[int, int]] = {}
        self._starts: dict[str, list[int]] = {}

    def add(self, name: str, offset: int, nbytes: int, crc: int) -> None:
        """Note that the *nbytes* bytes at *offset* of the source *name* have the CRC-32 *crc*."""
        if (name, offset) not in self._runs and nbytes:
            insort(self._starts.setdefault(name, []), offset)
            self._runs[name, offset] = nbytes, crc

    def of(self, source: Source) -> int:
        """The CRC-32 of all of *source*, of which only what is not known is read. Raises what reading raises."""
        crc = 0
        for root, offset, size in source.extents(0, source.size):
            end = offset + size
            starts = self._starts.get(root.name, [])
            while offset < end:
                nbytes, known = self._runs.get((root.name, offset), (0, 0))
                if 0 < nbytes <= end - offset:
                    crc = combined(crc, known, nbytes)
                    offset += nbytes
                    continue
                later = bisect_left(starts, offset + 1)
                stop = min(end, starts[later]) if later < len(starts) else end
                for chunk in root.chunks(offset, stop - offset):
                    crc = zlib.crc32(chunk, crc)
                offset = stop
        return crc


def combined(first: int, second: int, nbytes: int) -> int:
    """The CRC-32 of bytes with the CRC-32 *first* and the *nbytes* bytes with the CRC-32 *second* after them.

    Bytes that follow multiply what stands for those before by a power of x, modulo the polynomial.
    """
    return second ^ _product(first, _power(8 * nbytes)) if first else second


def _product(a: int, b: int) -> int:
    """The product of two polynomials modulo that of the CRC."""
    found = 0
    while a:
        if a & _ONE:
            found ^= b
        a = a << 1 & 0xFFFFFFFF
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return found


@lru_cache(maxsize=1024)
def _power(exponent: int) -> int:
    """The *exponent*-th power of x."""
    found, square = _ONE, _ONE >> 1
    while exponent:
        if exponent & 1:
            found = _product(found, square)
        square = _product(square, square)
        exponent >>= 1
    return found
