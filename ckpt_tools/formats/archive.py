"""Zip archives, read as torch reads them.

torch uses miniz: members are looked up case-insensitively by binary search, sizes come from the central
directory, CRCs and the names in local headers are not compared (caffe2/serialize/inline_container.cc,
third_party/miniz). Python's zipfile differs in each of these, hence a reader of our own. Field layouts:
PKWARE APPNOTE 4.3.7 to 4.3.16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from struct import Struct
from typing import Any, NamedTuple
from zlib import crc32

from ckpt_tools.errors import CorruptFile, UnsupportedFeature
from ckpt_tools.records import cached
from ckpt_tools.sources import Inflated, Source

_CENTRAL = Struct("<4s4x2H4x3L3H4x2L")
"""signature, flags, method, crc, compressed size, size, lengths of name, extra field and comment, attributes, offset"""

_END = Struct("<4s4H2LH")
_END64 = Struct("<4sQ2H2L4Q")
_LOCATOR64 = Struct("<4sLQL")
LOCAL = Struct("<4s5H3L2H")
"""signature, version, flags, method, time, date, crc, compressed size, size, name length, extra length"""

_KIND = Struct("<2H")
"""what an extra field is, and the length of what follows"""
STREAMED = 0x8
"""The bit in a member's flags by which its sizes and checksum stand after its bytes, not in the header before them."""

_U16 = 0xFFFF
_U32 = 0xFFFFFFFF


class Member(NamedTuple):
    """An entry of the central directory. *method* is 0 for stored, 8 for deflated; sizes are in bytes.

    *attributes* are the external ones, in whose upper half Unix programs keep a file's mode.
    """

    name: str
    header_offset: int
    size: int
    compressed_size: int
    method: int
    crc: int
    flags: int
    attributes: int = 0


class Local(NamedTuple):
    """The header before a member's bytes: its *fields* as in `LOCAL`, none where there is no header.

    *name* is the member's name there, *start* the offset of the first byte.
    """

    fields: tuple[Any, ...]
    name: str
    start: int


# what a NamedTuple is made by otherwise takes three times as long, and there are two of them for each member
_made: Callable[[type, tuple[Any, ...]], Any] = tuple.__new__


class MissingDirectory(CorruptFile):
    """There is no central directory: the archive is cut short, or no archive."""


class Payload(Source):
    """A stored member's bytes. Where they begin stands in the local header, which is read when needed."""

    __slots__ = ("_archive", "_member", "_source", "_start")

    def __init__(self, archive: Archive, member: Member) -> None:
        # without Source's own __init__: each storage of a file has a payload
        self._source = source = archive.source
        self.name = f"{source.name}: {member.name}"
        self.size = member.compressed_size
        self.memo = {}
        self._archive = archive
        self._member = member
        self._start = -1

    @property
    def start(self) -> int:
        """The offset of the first byte in the archive."""
        if self._start < 0:
            # the local header's extra field may be longer than the central directory's: torch pads there
            fields, _, start = self._archive.local(self._member)
            if not fields:
                raise CorruptFile(
                    "no local header stands where the central directory points",
                    path=self.name,
                    offset=self._member.header_offset,
                )
            if start + self.size > self._source.size:
                raise CorruptFile(
                    f"its {self.size:,} bytes reach past the end of the file", path=self.name, offset=start
                )
            self._start = start
        return self._start

    def peek(self, offset: int, count: int) -> bytes:
        return self._source.peek(self.start + offset, max(0, min(count, self.size - offset)))

    def locate(self, offset: int) -> tuple[str, int] | None:
        return self._source.locate(self.start + offset)

    def extents(self, offset: int, size: int) -> Iterable[tuple[Source, int, int]]:
        return self._source.extents(self.start + offset, size)


class Archive:
    """The central directory of a zip file.

    Raises `MissingDirectory` where there is none, `CorruptFile` where it contradicts the file.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        count, self.directory_offset, self.directory_size = _find_directory(source)
        self.members: tuple[Member, ...] = tuple(_parse(source, self.directory_offset, self.directory_size, count))
        self._by_name = {_fold(member.name): member for member in self.members}
        self._sorted: list[int] | None = None
        self._locals: dict[int, Local] = {}

    @classmethod
    def of(cls, source: Source) -> Archive:
        """The archive in *source*, parsed once."""
        known = source.memo.get(cls)
        if not isinstance(known, Archive):
            known = source.memo[cls] = cls(source)
        return known

    def local(self, member: Member) -> Local:
        """The other header of *member*, read when it is first asked for."""
        found = self._locals.get(member.header_offset)
        if found is None:
            found = self._locals[member.header_offset] = _local(self.source, member)
        return found

    @cached
    def placed(self) -> tuple[tuple[Member, Local], ...]:
        """The members in the order in which they lie in the file, each with its other header."""
        ordered = sorted(self.members, key=attrgetter("header_offset"))
        return tuple((member, self.local(member)) for member in ordered)

    @cached
    def is_plain(self) -> bool:
        """Whether it is as programs write it: members follow each other, and the two headers of each agree.

        The second may leave sizes and checksum to what follows the member's bytes.
        """
        end = 0
        for (name, place, size, packed, method, crc, flags, _), (fields, own_name, start) in self.placed:
            if not fields or own_name != name or fields[2] != flags or fields[3] != method:
                return False
            sizes = fields[6:9]
            if sizes != (0, 0, 0) if flags & STREAMED else sizes != (crc, packed, size):
                return False
            gap, extra = place - end, fields[10]
            if gap and (gap < 0 or not self._is_descriptor(end, gap)):
                return False
            if extra > _SHORT_EXTRA and not _is_filler(self.source.peek(start - extra, extra)):
                return False
            end = start + packed
        return True

    @cached
    def listing(self) -> str:
        """All names, each on a line: what none of them has is seen at one look."""
        return "\n".join(["", *(member.name for member in self.members), ""])

    @cached
    def endings(self) -> frozenset[str]:
        """What the names end with from their last dot on, in lower case."""
        return frozenset([name[name.rindex(".") :].lower() for name in self.listing.splitlines() if "." in name])

    @property
    def root(self) -> str:
        """The first entry's outermost folder, with its slash, as torch takes it; "" of an empty archive."""
        return self.members[0].name.partition("/")[0] + "/" if self.members else ""

    @property
    def duplicates(self) -> tuple[tuple[str, ...], ...]:
        """Groups of member names that torch takes for the same."""
        if len(self._by_name) == len(self.members):
            return ()
        groups: dict[str, list[str]] = {}
        for member in self.members:
            groups.setdefault(_fold(member.name), []).append(member.name)
        return tuple(tuple(group) for group in groups.values() if len(group) > 1)

    def find(self, name: str) -> Member | None:
        """The member that torch opens as *name*; None where there is none."""
        found = self._by_name.get(name.lower() if name.isascii() else _fold(name))
        if found is None or len(self._by_name) == len(self.members):
            return found
        if self._sorted is None:
            self._sorted = _heap_order([_sort_key(member.name) for member in self.members])
        return self.members[_binary_search(self.members, self._sorted, _sort_key(name))]

    def open(self, member: Member) -> Source:
        """The bytes of *member*; nothing is read yet."""
        if member.flags & 0x1:
            raise UnsupportedFeature("the member is encrypted", path=self.source.name, member=member.name)
        payload = Payload(self, member)
        if member.method == 0:
            return payload
        if member.method == 8:
            return Inflated(payload, member.size, payload.name)
        raise UnsupportedFeature(
            f"the member is compressed by method {member.method}; only stored and deflated ones can be read",
            path=self.source.name,
            member=member.name,
        )

    def asides(self) -> Iterator[tuple[str, int, int]]:
        """The bytes that belong to no member and are no record: where they are, their offset and their size.

        Comments, of members and of the archive, bytes between members and records, and extra fields where they
        take more than those that programs write, such as times and owners.
        """
        source, position = self.source, 0
        if self.is_plain and self.placed:
            member, (_, _, start) = self.placed[-1]
            position = start + member.compressed_size
        for member, (fields, _, start) in () if self.is_plain else self.placed:
            gap = member.header_offset - position
            if gap > 0 and not self._is_descriptor(position, gap):
                yield _between(position), position, gap
            extra = fields[10] if fields else 0
            if extra > _SHORT_EXTRA and not _is_filler(source.peek(start - extra, extra)):
                yield f"in the extra field of {member.name}", start - extra, extra
            end = start + member.compressed_size
            if end > position:
                position = end
        if not self._is_descriptor(position, self.directory_offset - position):
            yield _between(position), position, self.directory_offset - position
        yield from self._notes()

    def aliases(self) -> Iterator[tuple[Member, str]]:
        """Members that some readers know by a name other than that in their headers, with that name.

        It stands in the extra field 0x7075 (APPNOTE 4.6.9), which Python's zipfile goes by since 3.12 and torch does
        not. Packers write it for names that ASCII does not have, and then it says the same.
        """
        if self.directory_size == len(self.members) * _CENTRAL.size + len(self.listing) - 1 - len(self.members):
            return
        data, at = self.source.read(self.directory_offset, self.directory_size), 0
        for member in self.members:
            name_size, extra_size, comment_size = _CENTRAL.unpack_from(data, at)[6:9]
            start = at + _CENTRAL.size
            name = data[start : start + name_size]
            extra = data[start + name_size : start + name_size + extra_size]
            at = start + name_size + extra_size + comment_size
            place = 0
            known = {member.name, name.decode("cp437")}
            while place + 4 <= len(extra):
                kind, length = _KIND.unpack_from(extra, place)
                body = extra[place + 4 : place + 4 + length]
                other = body[5:].decode("utf-8", "surrogateescape")
                # it is written for names in some code page, and then is what that code page cannot say
                plain = name.isascii() or other.isascii() or bool(member.flags & _UTF8)
                valid = kind == 0x7075 and body[:5] == b"\1" + crc32(name).to_bytes(4, "little")
                if valid and plain and other not in known:
                    yield member, other
                place += 4 + length

    def _is_descriptor(self, start: int, size: int) -> bool:
        """Whether bytes are none, or the checksum and the sizes that may follow a member's bytes."""
        return size <= 0 or size in (12, 20) or (size in (16, 24) and self.source.peek(start, 4) == b"PK\x07\x08")

    def _notes(self) -> Iterator[tuple[str, int, int]]:
        """Those of `asides` in the directory and behind it."""
        source, at = self.source, self.directory_offset
        # the listing has a line end for each name, and one more
        if self.directory_size > len(self.members) * (_CENTRAL.size - 1) + len(self.listing) - 1:
            data = source.read(at, self.directory_size)
            for member in self.members:
                name_size, extra_size, comment_size = _CENTRAL.unpack_from(data, at - self.directory_offset)[6:9]
                at += _CENTRAL.size + name_size
                if extra_size > _SHORT_EXTRA:
                    yield f"in the extra field of {member.name}", at, extra_size
                at += extra_size
                if comment_size:
                    yield f"in the comment of {member.name}", at, comment_size
                at += comment_size
        end_at = _find_end(source)
        *_, records_at = _end_record(source)
        position = self.directory_offset + self.directory_size
        for record, size in ((records_at, _END64.size), (end_at - _LOCATOR64.size, _LOCATOR64.size), (end_at, 0)):
            if records_at == end_at or position > record:
                continue  # without the records of zip64
            if record > position:
                yield "behind the directory", position, record - position
            position = record + size
        if end_at > position:
            yield "behind the directory", position, end_at - position
        behind = end_at + _END.size
        if behind < source.size:
            declared = int.from_bytes(source.peek(behind - 2, 2), "little")
            is_comment = behind + declared == source.size
            where = "in the comment of the archive" if is_comment else "behind the end of the archive"
            yield where, behind, source.size - behind


_UTF8 = 0x800
"""The bit in a member's flags by which its name is UTF-8."""
_SHORT_EXTRA = 68
"""Bytes of an extra field that programs fill: with sizes, times, owners, and what aligns the bytes that follow."""


def _is_filler(extra: bytes) -> bool:
    """Whether an extra field holds one byte over and over, as torch pads with to align what follows."""
    return not extra[4:].strip(extra[4:5])


def _find_end(source: Source) -> int:
    """The offset of the last end record, which a comment of up to 64 KiB may follow."""
    farthest = max(0, source.size - _END.size - _U16)
    for start in (max(farthest, source.size - 4096), farthest):  # a comment is rare: look near the end first
        tail = source.peek(start, source.size - start)
        at = tail.rfind(b"PK\x05\x06", 0, max(0, len(tail) - _END.size + 4))
        if at >= 0:
            return start + at
    raise MissingDirectory("the zip archive has no central directory", path=source.name)


def _find_directory(source: Source) -> tuple[int, int, int]:
    """The number of entries, the offset and the size of the central directory."""
    count, offset, size, _ = _end_record(source)
    if offset + size > source.size:
        raise CorruptFile(
            f"the central directory would take the bytes {offset:,} to {offset + size:,}, "
            f"but the file ends at byte {source.size:,}",
            path=source.name,
        )
    if count * _CENTRAL.size > size:
        raise CorruptFile(f"the central directory declares {count:,} entries in {size:,} bytes", path=source.name)
    return count, offset, size


def _end_record(source: Source) -> tuple[int, int, int, int]:
    """The number of entries, the offset and the size of the central directory, and where the record of them is."""
    end_at = _find_end(source)
    _, _, _, _, count, size, offset, _ = _END.unpack(source.read(end_at, _END.size))
    locator_at = end_at - _LOCATOR64.size
    if locator_at >= _END64.size:
        # where there is a zip64 record, it counts, whether or not the fields here are at their limits
        signature, _, record_at, _ = _LOCATOR64.unpack(source.read(locator_at, _LOCATOR64.size))
        if signature == b"PK\x06\x07":
            # its place may count from the archive's beginning, too; then it stands just before the locator
            for at in (record_at, locator_at - _END64.size):
                raw = source.peek(at, _END64.size)
                if len(raw) == _END64.size and raw.startswith(b"PK\x06\x06"):
                    fields = _END64.unpack(raw)
                    return fields[7], fields[9], fields[8], at
    return count, offset, size, end_at


def prefix(source: Source) -> int:
    """How many bytes stand before the archive, if the directory ends where the record of it begins.

    The offsets in such an archive count from its own beginning. Raises `CorruptFile` as `Archive` does.
    """
    _, offset, size, end_at = _end_record(source)
    return end_at - size - offset


def _parse(source: Source, offset: int, size: int, count: int) -> list[Member]:
    data = source.read(offset, size)
    members: list[Member] = []
    at, end = 0, source.size - LOCAL.size
    for _ in range(count):
        if at + _CENTRAL.size > size:
            raise CorruptFile("the central directory breaks off", path=source.name, offset=offset + at)
        signature, flags, method, crc, packed, unpacked, name_size, extra_size, comment_size, attributes, place = (
            _CENTRAL.unpack_from(data, at)
        )
        if signature != b"PK\x01\x02":
            raise CorruptFile("the central directory is damaged", path=source.name, offset=offset + at)
        start = at + _CENTRAL.size
        name = str(data[start : start + name_size], "utf-8", "surrogateescape")
        if packed == _U32 or unpacked == _U32 or place == _U32:
            extra = data[start + name_size : start + name_size + extra_size]
            unpacked, packed, place = _zip64(extra, unpacked, packed, place)
        at = start + name_size + extra_size + comment_size
        if place + packed > end:
            raise CorruptFile(
                f"its {packed:,} bytes at {place:,} reach past the end of the file",
                path=source.name,
                member=name,
            )
        if method == 0 and packed != unpacked:
            raise CorruptFile(
                f"it is stored, but has {packed:,} bytes in the file and {unpacked:,} as such",
                path=source.name,
                member=name,
            )
        members.append(_made(Member, (name, place, unpacked, packed, method, crc, flags, attributes)))
    return members


def _between(position: int) -> str:
    return "before the first member" if position == 0 else "between members"


def _local(source: Source, member: Member) -> Local:
    # one read where the name here is as long as in the directory
    at = member.header_offset
    raw = source.peek(at, LOCAL.size + len(member.name))
    if len(raw) < LOCAL.size or not raw.startswith(b"PK\x03\x04"):
        return Local((), "", at)
    fields = LOCAL.unpack_from(raw)
    end = LOCAL.size + fields[9]
    name = raw[LOCAL.size : end] if end <= len(raw) else source.peek(at + LOCAL.size, fields[9])
    found: Local = _made(Local, (fields, str(name, "utf-8", "surrogateescape"), at + end + fields[10]))
    return found


def _zip64(extra: bytes, size: int, packed: int, header_offset: int) -> tuple[int, int, int]:
    """The fields that are too large for 32 bits, from the extra field 0x0001, which has just those."""
    at = 0
    while at + 4 <= len(extra):
        kind = int.from_bytes(extra[at : at + 2], "little")
        length = int.from_bytes(extra[at + 2 : at + 4], "little")
        if kind == 1:
            body = extra[at + 4 : at + 4 + length]
            values = [int.from_bytes(body[i : i + 8], "little") for i in range(0, len(body) - 7, 8)]
            wanted = [size, packed, header_offset]
            for i, value in enumerate(wanted):
                if value == _U32 and values:
                    wanted[i] = values.pop(0)
            return wanted[0], wanted[1], wanted[2]
        at += 4 + length
    return size, packed, header_offset


# --- miniz's lookup, for archives in which several members answer to one name


def _fold(name: str) -> str:
    """*name* with ASCII letters lowered, as miniz compares."""
    return name.lower() if name.isascii() else "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in name)


def _sort_key(name: str) -> bytes:
    return _fold(name).encode("utf-8", "surrogateescape")


def _heap_order(keys: Sequence[bytes]) -> list[int]:
    """Indexes of *keys* as miniz's (unstable) heap sort leaves them."""
    order = list(range(len(keys)))

    def sift(root: int, end: int) -> None:
        while (child := 2 * root + 1) < end:
            if child + 1 < end and keys[order[child]] < keys[order[child + 1]]:
                child += 1
            if not keys[order[root]] < keys[order[child]]:
                return
            order[root], order[child] = order[child], order[root]
            root = child

    for start in range((len(keys) - 2) >> 1, -1, -1):
        sift(start, len(keys))
    for end in range(len(keys) - 1, 0, -1):
        order[end], order[0] = order[0], order[end]
        sift(0, end)
    return order


def _binary_search(members: Sequence[Member], order: Sequence[int], key: bytes) -> int:
    low, high = 0, len(order) - 1
    while low <= high:
        middle = low + ((high - low) >> 1)
        found = _sort_key(members[order[middle]].name)
        if found == key:
            return order[middle]
        if found < key:
            low = middle + 1
        else:
            high = middle - 1
    raise KeyError(key)
