"""A reader for the zip archives that traced modules come in; it extracts nothing to disk.

Every length and offset of the archive is checked against the file before it is used, and an entry never yields more
bytes than its caller allows, so that a small file cannot ask for a large memory. What is not needed is refused:
encryption, several disks, other methods than stored and deflate, names that leave their folder, duplicate names.
"""

import os
import stat
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from simplear_engine.errors import CheckpointError

_MAX_DIRECTORY_BYTES = 16 << 20
_MAX_ENTRIES = 1 << 16
_STORED, _DEFLATED = 0, 8

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")


@dataclass(frozen=True)
class Entry:
    name: str
    size: int  # after decompression, as declared
    is_stored: bool
    stored_size: int
    offset: int  # of its local header
    crc32: int


class ZipFile:
    """An open archive. `entries` maps names to entries; `read` gives the bytes of one."""

    def __init__(self, path):
        self.path = Path(path)
        self._fd = None
        try:
            # Asked before opening, because opening a pipe would wait for its writer.
            if not stat.S_ISREG(os.stat(self.path).st_mode):
                raise CheckpointError(f"{self.path}: not a regular file")
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            self._size = os.fstat(self._fd).st_size
            self.entries = self._read_directory()
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error.strerror}") from None

    def __del__(self):
        if getattr(self, "_fd", None) is not None:
            os.close(self._fd)

    def read(self, entry: Entry, max_bytes: int) -> bytes:
        if entry.size > max_bytes:
            self._fail(f"{entry.name}: declares {entry.size} bytes, at most {max_bytes} are expected")
        local = _LOCAL.unpack(self._bytes_at(entry.offset, _LOCAL.size, entry.name))
        if local[0] != b"PK\3\4":
            self._fail(f"{entry.name}: no local header at byte {entry.offset}")
        start = entry.offset + _LOCAL.size + local[9] + local[10]
        data = self._bytes_at(start, entry.stored_size, entry.name)
        if not entry.is_stored:
            data = self._inflate(data, entry)
        # Some writers leave the checksum out and store 0.
        if entry.crc32 and zlib.crc32(data) != entry.crc32:
            self._fail(f"{entry.name}: checksum does not match, the file is damaged")
        return data

    def _inflate(self, data: bytes, entry: Entry) -> bytes:
        decoder = zlib.decompressobj(-15)
        try:
            # One byte more than declared is enough to notice a lie.
            result = decoder.decompress(data, entry.size + 1)
        except zlib.error as error:
            self._fail(f"{entry.name}: {error}")
        if len(result) != entry.size or not decoder.eof:
            self._fail(f"{entry.name}: does not hold the {entry.size} bytes that it declares")
        return result

    def _read_directory(self) -> dict[str, Entry]:
        offset, size, count = self._find_directory()
        if size > _MAX_DIRECTORY_BYTES or count > _MAX_ENTRIES:
            self._fail(f"directory of {count} entries and {size} bytes is too large")
        directory = self._bytes_at(offset, size, "directory")
        entries: dict[str, Entry] = {}
        position = 0
        for _ in range(count):
            entry, position = self._parse_entry(directory, position)
            if entry.name in entries:
                self._fail(f"{entry.name!r} occurs twice")
            entries[entry.name] = entry
        return entries

    def _find_directory(self) -> tuple[int, int, int]:
        """(offset, bytes, entries) of the central directory, from the end record (and its 64-bit companion)."""
        tail_size = min(self._size, _END.size + 0xFFFF)
        tail = self._bytes_at(self._size - tail_size, tail_size, "end record")
        at = tail.rfind(b"PK\5\6")
        if at < 0 or len(tail) - at < _END.size:
            self._fail("not a zip archive, or truncated")
        _, disk, first_disk, here, count, size, offset, _ = _END.unpack_from(tail, at)
        position = self._size - tail_size + at
        if 0xFFFF in (disk, here, count) or 0xFFFFFFFF in (size, offset):
            locator = position - _END64_LOCATOR.size
            mark, _, end64, _ = _END64_LOCATOR.unpack(self._bytes_at(locator, _END64_LOCATOR.size, "64-bit locator"))
            record = _END64.unpack(self._bytes_at(end64, _END64.size, "64-bit end record"))
            if mark != b"PK\6\7" or record[0] != b"PK\6\6":
                self._fail("64-bit end record is damaged")
            disk, first_disk, here, count, size, offset = record[4:10]
        if disk or first_disk or here != count:
            self._fail("archives of several disks are not supported")
        return offset, size, count

    def _parse_entry(self, directory: bytes, position: int) -> tuple[Entry, int]:
        if position + _ENTRY.size > len(directory):
            self._fail("directory is truncated")
        fields = _ENTRY.unpack_from(directory, position)
        mark, flags, method, crc32 = fields[0], fields[3], fields[4], fields[7]
        stored_size, size, name_size, extra_size, comment_size = fields[8:13]
        offset = fields[16]
        start = position + _ENTRY.size
        end = start + name_size + extra_size + comment_size
        if mark != b"PK\1\2" or end > len(directory):
            self._fail("directory is damaged")
        try:
            name = directory[start : start + name_size].decode("utf-8")
        except UnicodeDecodeError:
            self._fail("an entry's name is not UTF-8")
        if not _is_plain(name):
            self._fail(f"{name!r:.200}: entry names must stay inside the archive's folder")
        if flags & 0x2041:
            self._fail(f"{name!r}: encrypted entries are not supported")
        if method not in (_STORED, _DEFLATED):
            self._fail(f"{name!r}: compression method {method} is not supported")
        if 0xFFFFFFFF in (size, stored_size, offset):
            extra = directory[start + name_size : start + name_size + extra_size]
            size, stored_size, offset = self._wide_sizes(extra, size, stored_size, offset, name)
        if method == _STORED and size != stored_size:
            self._fail(f"{name!r}: stored size {stored_size} contradicts size {size}")
        if offset + _LOCAL.size + stored_size > self._size:
            self._fail(f"{name!r}: reaches past the end of the file: truncated?")
        return Entry(name, size, method == _STORED, stored_size, offset, crc32), end

    def _wide_sizes(self, extra: bytes, size: int, stored_size: int, offset: int, name: str):
        while len(extra) >= 4:
            kind, length = struct.unpack_from("<2H", extra)
            if kind == 1:
                body = extra[4 : 4 + length]
                numbers = iter(struct.unpack(f"<{len(body) // 8}Q", body[: len(body) // 8 * 8]))
                try:
                    # Only the fields that did not fit are here, in this order.
                    return tuple(next(numbers) if v == 0xFFFFFFFF else v for v in (size, stored_size, offset))
                except (StopIteration, RuntimeError):
                    break
            extra = extra[4 + length :]
        self._fail(f"{name!r}: 64-bit sizes are missing")

    def _bytes_at(self, offset: int, count: int, what: str) -> bytes:
        if offset < 0 or offset + count > self._size:
            self._fail(f"{what}: reaches past the end of the file: truncated?")
        parts, wanted = [], count
        while wanted:
            part = os.pread(self._fd, min(wanted, 1 << 30), offset + count - wanted)
            if not part:
                self._fail(f"{what}: the file was shortened while being read")
            parts.append(part)
            wanted -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _fail(self, reason: str):
        raise CheckpointError(f"{self.path}: {reason}")


def _is_plain(name: str) -> bool:
    return (
        bool(name)
        and not name.startswith("/")
        and "\\" not in name
        and "\0" not in name
        and ".." not in PurePosixPath(name).parts
    )
