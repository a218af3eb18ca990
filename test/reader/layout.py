"""The structures of docs/format.md: decoders that refuse what is not canonical.
Nothing here knows a key; MACs are handed back for the caller to check."""

import hashlib
import re
from dataclasses import dataclass

from errors import Refused, Unknown

BLOCK = 4096
AREAS = (0, 16777216)
MODES = {0x81: "aes-256-gcm", 0x82: "chacha20-poly1305", 0x01: "aes-256-xts"}
HOLE, ZERO, NODE = 0, 1, 2
COMMIT, CONTINUE = 1, 2
RECORD_MAX = 1 << 20
NAME = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class Cursor:
    """Takes fields from the front of some bytes; `what` names them in errors."""

    def __init__(self, data, what):
        self.data, self.what, self.at = data, what, 0

    def refuse(self, why):
        raise Refused(f"{self.what}: {why}")

    def need(self, good, why):
        if not good:
            self.refuse(why)

    def take(self, size):
        if self.at + size > len(self.data):
            self.refuse("too short")
        self.at += size
        return bytes(self.data[self.at - size:self.at])

    def u(self, size):
        return int.from_bytes(self.take(size), "big")

    def zeros(self, size):
        self.need(not any(self.take(size)), "bytes that must be zero are not")

    def magic(self, magic):
        self.need(self.take(len(magic)) == magic, "wrong magic")

    def end(self):
        self.need(self.at == len(self.data), "trailing bytes")


@dataclass
class Superblock:
    version: int
    uuid: bytes
    ro_compat: int
    created: int
    digest: bytes


def superblock(data):
    if not data:
        raise Refused("superblock: empty: not a store")
    c = Cursor(data, "superblock")
    c.magic(b"FSXSTORE")
    version = c.u(4)
    c.need(version == 0, f"format version {version} is not known")
    c.need(c.u(4) == 12, "the block size is not 4096")
    uuid, incompat, ro, _, created = c.take(16), c.u(8), c.u(8), c.u(8), c.u(8)
    c.zeros(4000)
    digest = c.take(32)
    c.end()
    c.need(digest == hashlib.sha256(data[:4064]).digest(), "wrong checksum")
    c.need(incompat == 0, f"unknown incompat flags {incompat:#x}")
    return Superblock(version, uuid, ro, created, digest)


def keyring_area(data, area):
    """Returns (generation, body) of one area, given the file from there on."""
    c = Cursor(data, f"keyring area {area}")
    c.magic(b"FSXKRING")
    generation, size = c.u(8), c.u(4)
    c.need(size <= 16777152, "too long")
    c.zeros(12)
    digest, body = c.take(32), c.take(size)
    c.need(digest == hashlib.sha256(data[:32] + body).digest(), "wrong checksum")
    c.need(generation > 0 and generation % 2 == area, "generation of the other area")
    return generation, body


def keyring_body(path):
    """Returns the generation and the body of the area that counts."""
    good, bad = [], []
    with open(path, "rb") as file:
        for area, start in enumerate(AREAS):
            file.seek(start)
            try:
                good.append(keyring_area(file.read(AREAS[1]), area))
            except Refused as err:
                bad.append(str(err))
    if not good:
        raise Refused("keyring: no valid area: " + "; ".join(bad))
    return max(good)


@dataclass
class Position:
    segment: int
    block: int
    end: int
    sequence: int
    mac: bytes


EMPTY = Position(0, 0, 0, 0, bytes(32))


@dataclass
class Extent:
    """One seal: of an operation of a record, or of an extent record."""
    mode: int
    count: int
    first: int
    key: bytes
    nonce: bytes
    segment: int = 0
    homes: tuple = ()
    tags: tuple = ()
    present: int | None = None  # the bitmap of a partial extent, little-endian

    def place(self, index):
        """The block in the segment where block `index` of the extent lies."""
        if index >= self.count:
            raise Refused("extent: index behind its end")
        if self.present is None:
            return self.first + index
        if not self.present >> index & 1:
            raise Refused("extent: the block is not there")
        return self.first + (self.present & (1 << index) - 1).bit_count()


@dataclass
class Zero:
    kind: int
    first: int
    count: int


@dataclass
class Record:
    type: int
    last: bool
    start: int
    end: int
    sequence: int
    synced: int
    checkpoint: int
    next: int
    prev: tuple  # segment, block, MAC
    incarnation: bytes
    size: int
    ops: list
    position: Position


def record(data, volume, segment, block):
    """Decodes a record whose MAC is already verified; data is without padding.
    Unknown is a record of a later version, any other Refused is no record."""
    c = Cursor(data, f"record in segment {segment}, block {block}")
    c.magic(b"FSXCMT00")
    length, kind, flags = c.u(4), c.u(1), c.u(1)
    c.zeros(2)
    if kind not in (COMMIT, CONTINUE):
        raise Unknown(f"{c.what}: type {kind} is not known")
    c.need(length == len(data), "another length")
    c.need(flags <= 1, "unknown flags")
    c.need(c.u(4) == volume, "of another volume")
    start = c.u(4)
    c.need((c.u(8), c.u(4)) == (segment, block), "of another place")
    count, sequence, synced, checkpoint, following, prev_seg = (
        c.u(4), c.u(8), c.u(8), c.u(8), c.u(8), c.u(8))
    prev_block = c.u(4)
    c.zeros(4)
    incarnation, _, prev_mac, size = c.take(16), c.u(8), c.take(32), c.u(8)
    c.zeros(8)
    c.need(start <= block, "begins behind itself")
    c.need(size % 512 == 0 and size <= 2**63 - 4096, "bad size")
    c.need(bool(flags) == (following != 0), "names a next segment without being the last")
    ops = [operation(c, start, block, segment) for _ in range(count)]
    c.need(all(op.sequence != sequence for op in ops if isinstance(op, Control)), "deletes itself")
    c.need(not any(isinstance(op, Control) and op.name for op in ops[:-1]), "a snapshot before the end")
    if kind == CONTINUE:
        c.need(count == 0 and block == 0, "bad continue record")
    mac = c.take(32)
    c.end()
    end = block + -(-length // BLOCK)
    return Record(kind, bool(flags), start, end, sequence, synced, checkpoint, following,
                  (prev_seg, prev_block, prev_mac), incarnation, size, ops,
                  Position(segment, block, end, sequence, mac))


@dataclass
class Control:
    """A snapshot that is made (with a name) or deleted: maps nothing."""
    name: bytes
    sequence: int


def operation(c, start, block, segment):
    kind = c.u(1)
    if kind == 1:
        return extent_operation(c, start, block, segment)
    if kind == 16:
        size = c.u(1)
        c.zeros(2), c.u(8), c.u(4), c.zeros(4)
        name = c.take(size)
        c.need(NAME.fullmatch(name), "a snapshot with a bad name")
        return Control(name, 0)
    if kind == 17:
        c.zeros(3)
        op = Control(b"", c.u(8))
        c.zeros(8)
        c.need(op.sequence > 0, "deletes no snapshot")
        return op
    if kind != 2:
        raise Unknown(f"{c.what}: operation {kind} is not known")
    what = c.u(1)
    c.zeros(2)
    op = Zero(what, c.u(8), c.u(8))
    c.need(what in (0, 1) and op.count > 0, "bad zero operation")
    return op


def extent_operation(c, start, block, segment):
    mode, n, first, r = c.u(1), c.u(2), c.u(4), c.u(2)
    c.zeros(2)
    key, nonce = c.take(16), c.take(16)
    c.need(mode in MODES, f"unknown mode {mode:#x}")
    c.need(1 <= n <= 256 and 1 <= r <= n, "bad counts of an extent")
    c.need(start <= first and first + n <= block, "an extent outside its commit")
    homes = []
    for _ in range(r):
        home, count = c.u(8), c.u(4)
        c.need(0 < count <= n - len(homes), "bad run of homes")
        c.need(not homes or home != homes[-1] + 1, "runs that should be one")
        homes.extend(range(home, home + count))
    c.need(len(homes) == n and len(set(homes)) == n, "bad runs of homes")
    tags = tuple(c.take(16) for _ in range(n))
    return Extent(mode, n, first, key, nonce, segment, tuple(homes), tags)


@dataclass
class Root:
    kind: int
    height: int
    owner: int
    generation: int
    hash: bytes


@dataclass
class Head:
    volume_uuid: bytes
    number: int
    clean: bool
    epoch: int
    size: int
    position: Position
    root: Root
    snapshot: int
    snapshots: int
    snapshots_digest: bytes
    parent: int
    key_id: bytes
    bag_digest: bytes
    slots_digest: bytes
    superblock_digest: bytes
    mode: int
    name: str
    store_uuid: bytes
    message: bytes
    mac: bytes


def head(data):
    c = Cursor(data, "head")
    c.magic(b"FSXHEAD0")
    store, uuid, number, flags, epoch = c.take(16), c.take(16), c.u(4), c.u(4), c.u(8)
    size, smallest, _ = c.u(8), c.u(8), c.u(8)
    position = Position(c.u(8), c.u(4), c.u(4), c.u(8), c.take(32))
    c.u(8)
    tree = root(c)
    snapshot, snapshots, digest = c.u(8), c.u(4), c.take(32)
    parent, parent_snapshot = c.u(4), c.u(8)
    c.take(32)
    key_id, bag, slots, superblock_digest = c.take(16), c.take(32), c.take(32), c.take(32)
    epoch_of_map = c.u(8)
    mode = c.u(1)
    c.zeros(2)
    length, _ = c.u(1), c.u(8)
    name = c.take(length)
    message = data[:c.at]
    mac = c.take(32)
    c.end()
    c.need(flags <= 7, "unknown flags")
    c.need((parent == 0) == (parent_snapshot == 0) and (parent > 0 or not flags & 2), "bad parent")
    c.need(number > 0 and NAME.fullmatch(name), "bad number or name")
    c.need(size % 512 == 0 and smallest <= size <= 2**63 - 4096, "bad size")
    c.need(snapshot <= epoch_of_map and (snapshot == 0) == (snapshots == 0), "bad snapshots")
    c.need(mode in MODES, f"unknown mode {mode:#x}")
    c.need(tree.height == height(size), "the map's height is not that of the size")
    return Head(uuid, number, bool(flags & 1), epoch, size, position, tree, snapshot, snapshots,
                digest, parent, key_id, bag, slots, superblock_digest, mode, name.decode(),
                store, message, mac)


def height(size):
    blocks, level = -(-size // BLOCK), 0
    while 16 * 64**level < blocks:
        level += 1
    return level


def root(c):
    kind, level = c.u(1), c.u(1)
    c.zeros(2)
    found = Root(kind, level, c.u(4), c.u(8), c.take(32))
    c.need(kind <= NODE, "unknown kind of root")
    if kind != NODE:
        c.need((found.owner, found.generation, found.hash) == (0, 0, bytes(32)), "bad root")
    else:
        c.need(found.owner > 0, "a root without an owner")
    return found


def bits(bitmap):
    return [i for i in range(64) if bitmap >> i & 1]


def leaf(data):
    """Returns {block of the leaf: (owner, extent, index, tag)}."""
    c = Cursor(data, "leaf")
    c.magic(b"L\0")
    full, zero = c.u(2), c.u(2)
    c.need(full & zero == 0 and (full or zero not in (0, 0xFFFF)), "not canonical")
    found = {i: (c.u(4), c.u(8), c.u(1), c.take(16)) for i in bits(full)}
    c.end()
    c.need(all(owner for owner, *_ in found.values()), "a block without an owner")
    return found


def interior(data, level):
    """Returns {child: (owner, generation, hash)}."""
    c = Cursor(data, "interior node")
    c.magic(bytes((ord("I"), level)))
    full, zero = c.u(8), c.u(8)
    c.need(full & zero == 0 and (full or zero not in (0, 2**64 - 1)), "not canonical")
    found = {i: (c.u(4), c.u(8), c.take(32)) for i in bits(full)}
    c.end()
    c.need(all(owner for owner, *_ in found.values()), "a child without an owner")
    return found


def extent_record(data):
    c = Cursor(data, "extent record")
    nonce, key, mode, flags, n, first, segment = (
        c.take(16), c.take(16), c.u(1), c.u(1), c.u(2), c.u(4), c.u(8))
    c.need(mode in MODES and flags <= 1 and 1 <= n <= 256, "bad mode, flags or count")
    present = int.from_bytes(c.take(32), "little") if flags else None
    c.end()
    c.need(present is None or present >> n == 0, "bitmap behind the extent's end")
    return Extent(mode, n, first, key, nonce, segment, present=present)
