"""A strict reader of Badger v4 databases: no compression, no encryption, all
values inline, which is what docs/format.md section 6 says a store's index is.

The format is Badger's own: table/builder.go, manifest.go, memtable.go and
structs.go of github.com/dgraph-io/badger/v4. Nothing is written, and a file
that does not look exactly as Badger leaves it is an error.
"""

import os
import re

from errors import Refused

DELETED, POINTER, MERGE, IN_TXN, END_TXN = 1, 2, 8, 64, 128
MANIFEST_VERSION = 8
LOG_HEADER = 20
INTERNAL = b"!badger!"


def _crc_table():
    table = []
    for i in range(256):
        for _ in range(8):
            i = i >> 1 ^ (0x82F63B78 if i & 1 else 0)
        table.append(i)
    return table


_CRC = _crc_table()


def crc32c(data):
    """CRC-32 with Castagnoli's polynomial, which zlib does not have."""
    crc, table = 0xFFFFFFFF, _CRC
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


def be(data):
    return int.from_bytes(data, "big")


def uvarint(data, at):
    """Returns a protobuf varint at the offset, and the offset behind it."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise Refused("index: bad varint")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def proto(data):
    """Returns the fields of a protobuf message as a list of (number, value)."""
    fields, at = [], 0
    while at < len(data):
        tag, at = uvarint(data, at)
        if tag & 7 == 0:
            value, at = uvarint(data, at)
        elif tag & 7 == 2:
            size, at = uvarint(data, at)
            value = data[at:at + size]
            if len(value) != size:
                raise Refused("index: bad protobuf")
            at += size
        else:
            raise Refused("index: bad protobuf")
        fields.append((tag >> 3, value))
    return fields


def check_sum(what, data, message):
    """Compares data with a pb.Checksum; only CRC32C, Badger's default, is known."""
    fields = dict(proto(message))
    if fields.get(1, 0) != 0 or fields.get(2, 0) != crc32c(data):
        raise Refused(f"index: {what}: wrong checksum")


class Flat:
    """A table of a FlatBuffer: fields by their slot in the schema."""

    def __init__(self, data, at):
        self.data, self.at = data, at
        self.vtable = at - int.from_bytes(self._take(at, 4), "little", signed=True)
        self.size = self._u(self.vtable, 2)

    def _take(self, at, size):
        if at < 0 or at + size > len(self.data):
            raise Refused("index: table's index: offset outside")
        return self.data[at:at + size]

    def _u(self, at, size):
        return int.from_bytes(self._take(at, size), "little")

    def _field(self, slot):
        entry = 4 + 2 * slot
        offset = self._u(self.vtable + entry, 2) if entry < self.size else 0
        return self.at + offset if offset else None

    def number(self, slot, size):
        at = self._field(slot)
        return 0 if at is None else self._u(at, size)

    def _vector(self, slot):
        at = self._field(slot)
        if at is None:
            return 0, 0
        at += self._u(at, 4)
        return at + 4, self._u(at, 4)

    def bytes(self, slot):
        at, count = self._vector(slot)
        return self._take(at, count)

    def tables(self, slot):
        at, count = self._vector(slot)
        return [Flat(self.data, at + 4 * i + self._u(at + 4 * i, 4)) for i in range(count)]


def split_key(key):
    """Splits Badger's key into the user's key and its version."""
    if len(key) < 8:
        raise Refused("index: short key")
    return key[:-8], 2**64 - 1 - be(key[-8:])


def trailer(data, what):
    """Takes `size be32, pb.Checksum, its size be32` from the end of data; returns
    the data before the checksum and verifies nothing but the bounds."""
    if len(data) < 8:
        raise Refused(f"index: {what} is too short")
    size = be(data[-4:])
    if size > len(data) - 8:
        raise Refused(f"index: {what}: bad length of its checksum")
    return data[:len(data) - 4 - size], data[len(data) - 4 - size:-4]


def table_entries(path):
    """Yields (key, version, meta, value) of a table file, in its order."""
    what = os.path.basename(path)
    with open(path, "rb") as file:
        data = file.read()
    body, checksum = trailer(data, what)
    size = be(body[-4:])
    if size > len(body) - 4:
        raise Refused(f"index: {what}: bad length of its index")
    blocks_end = len(body) - 4 - size
    index = body[blocks_end:-4]
    check_sum(what, index, checksum)
    root = Flat(index, int.from_bytes(index[:4], "little"))
    at = count = newest = 0
    before = None
    for entry in root.tables(0):
        if entry.number(1, 4) != at:
            raise Refused(f"index: {what}: a gap between blocks")
        block = body[at:at + entry.number(2, 4)]
        at += entry.number(2, 4)
        if at > blocks_end:
            raise Refused(f"index: {what}: a block reaches into the index")
        for number, (key, value) in enumerate(block_entries(block, what)):
            if number == 0 and key != entry.bytes(0):
                raise Refused(f"index: {what}: a block begins with another key")
            name, version = split_key(key)
            if before is not None and (name, -version) <= before:
                raise Refused(f"index: {what}: keys out of order")
            before = (name, -version)
            count, newest = count + 1, max(newest, version)
            yield (name, version) + decode_value(value)
    if at != blocks_end or count != root.number(3, 4) or newest != root.number(2, 8):
        raise Refused(f"index: {what}: not what its index says")


def block_entries(block, what):
    """Yields the (key, value) of a block, both still as Badger encodes them."""
    body, checksum = trailer(block, what)
    check_sum(f"a block of {what}", body, checksum)
    count = be(body[-4:])
    end = len(body) - 4 - 4 * count
    if count == 0 or end < 0:
        raise Refused(f"index: {what}: bad number of entries")
    # the offsets are the one thing that Badger stores in the machine's order
    starts = [int.from_bytes(body[end + 4 * i:end + 4 * i + 4], "little") for i in range(count)]
    base = None
    for start, stop in zip(starts, starts[1:] + [end]):
        entry = body[start:stop]
        if stop < start + 4 or stop > end:
            raise Refused(f"index: {what}: bad offset of an entry")
        overlap, diff = (int.from_bytes(entry[i:i + 2], "little") for i in (0, 2))
        if 4 + diff > len(entry) or overlap > len(base or b""):
            raise Refused(f"index: {what}: bad entry")
        key = (base or b"")[:overlap] + entry[4:4 + diff]
        base = key if base is None else base
        yield key, entry[4 + diff:]


def decode_value(data):
    if len(data) < 3:
        raise Refused("index: short value")
    expires, at = uvarint(data, 2)
    return check_meta(data[0], expires), data[at:]


def check_meta(meta, expires):
    if meta & (POINTER | MERGE) or expires:
        raise Refused("index: a value that is not inline, merged or expires")
    return meta


def log_entries(path):
    """Yields (key, version, meta, value) of a memtable's log, whole transactions
    only; the log ends at the first thing that is not an entry, as for Badger."""
    with open(path, "rb") as file:
        data = file.read()
    if len(data) < LOG_HEADER:
        return
    if be(data[:8]) != 0:
        raise Refused(f"index: {os.path.basename(path)} is encrypted")
    at, pending, version = LOG_HEADER, [], None
    while entry := log_entry(data, at):
        at, meta, key, value = entry
        if meta & END_TXN:
            if str(version).encode() != value:
                return
            yield from pending
            pending, version = [], None
            continue
        name, own = split_key(key)
        if not meta & IN_TXN:
            if version is not None:
                return
            yield name, own, meta, value
            continue
        if version not in (None, own):
            return
        version = own
        pending.append((name, own, meta, value))


def log_entry(data, at):
    """Returns (offset behind it, meta, key, value), or None at the log's end."""
    start = at
    try:
        klen, at = uvarint(data, at + 2)
        vlen, at = uvarint(data, at)
        expires, at = uvarint(data, at)
    except Refused:
        return None
    end = at + klen + vlen
    if klen == 0 or klen > 1 << 16 or end + 4 > len(data):
        return None
    if be(data[end:end + 4]) != crc32c(data[start:end]):
        return None
    meta = check_meta(data[start], expires)
    return end + 4, meta, data[at:at + klen], data[at + klen:end]


def live_tables(folder):
    """Returns the numbers of the tables that MANIFEST says there are."""
    with open(os.path.join(folder, "MANIFEST"), "rb") as file:
        data = file.read()
    if data[:4] != b"Bdgr" or be(data[6:8]) != MANIFEST_VERSION:
        raise Refused("index: MANIFEST is not that of Badger v4")
    tables, at = set(), 8
    while at + 8 <= len(data):
        size = be(data[at:at + 4])
        changes = data[at + 8:at + 8 + size]
        if len(changes) != size:
            break  # a torn append: Badger cuts it off
        if crc32c(changes) != be(data[at + 4:at + 8]):
            raise Refused("index: MANIFEST: wrong checksum")
        for number, message in proto(changes):
            change = dict(proto(message)) if number == 1 else {}
            if change.get(4, 0) or change.get(6, 0):
                raise Refused("index: an encrypted or compressed table")
            if change.get(2, 0) == 0:
                tables.add(change[1])
            else:
                tables.discard(change[1])
        at += 8 + size
    return tables


def load(folder):
    """Returns the database in a folder as a dict: of every key the newest
    version's value, without the deleted ones."""
    best = {}

    def add(entries):
        for name, version, meta, value in entries:
            if name not in best or best[name][0] <= version:
                best[name] = (version, meta, value)

    try:
        for number in sorted(live_tables(folder)):
            add(table_entries(os.path.join(folder, f"{number:06d}.sst")))
        for name in sorted(os.listdir(folder)):
            if re.fullmatch(r"\d+\.mem", name):
                add(log_entries(os.path.join(folder, name)))
    except FileNotFoundError as err:
        raise Refused(f"index: {err.filename} is missing") from err
    return {name: value for name, (_, meta, value) in best.items()
            if not meta & DELETED and not name.startswith(INTERNAL)}
