"""A store and its volumes: docs/format.md sections 2, 6 and 7."""

import fcntl
import hashlib
import hmac
import os
import sys

import badger
import keys
import layout
from errors import Refused
from layout import BLOCK, EMPTY, NODE, Extent
from log import Folder, Log, Overlay


class Store:
    """An opened store: superblock and keyring are read; the index on demand."""

    def __init__(self, path):
        self.path, self.folders = path, {}
        try:
            self.lock = open(os.path.join(path, "fsx"), "rb")
        except (FileNotFoundError, NotADirectoryError):
            raise Refused(f"{path} is not a store") from None
        try:
            fcntl.flock(self.lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"{path} is in use") from None
        self.superblock = layout.superblock(self.lock.read())
        self.generation, body = layout.keyring_body(os.path.join(path, "keyring"))
        self.ring = keys.keyring(body)
        if self.ring.store != self.superblock.uuid:
            raise Refused("keyring: of another store")
        self.index, self.volume_keys = None, {}

    def load_index(self):
        if self.index is None:
            self.index = badger.load(os.path.join(self.path, "meta"))
        return self.index

    def unlock(self, kind, secret):
        self.volume_keys |= keys.open_slots(self.ring, kind, secret)

    def heads(self):
        """Returns the heads of the index, not authenticated."""
        found = []
        for key, value in sorted(self.load_index().items()):
            if key[:1] != b"h":
                continue
            head = layout.head(value)
            if key != b"h" + head.number.to_bytes(4, "big"):
                raise Refused(f"head of {head.name}: stored as another volume's")
            found.append(head)
        return found

    def deleted(self, number):
        return b"d" + number.to_bytes(4, "big") in self.load_index()

    def head(self, name):
        """Returns the authentic head of a volume."""
        named = [h for h in self.heads() if h.name == name and not self.deleted(h.number)]
        if len(named) != 1:
            raise Refused(f"{len(named)} volumes have the name {name}")
        self.authenticate(named[0])
        return named[0]

    def authenticate(self, head):
        what = f"head of {head.name}"
        key = self.volume_keys.get(head.key_id)
        if key is None:
            raise Refused(f"{what}: no key that was given opens volume key {head.key_id.hex()}")
        mac = keys.hmac256(key.head_key(self.superblock.uuid, head.volume_uuid), head.message)
        if not hmac.compare_digest(mac, head.mac):
            raise Refused(f"{what}: wrong MAC")
        checks = ((head.store_uuid, self.superblock.uuid, "store"),
                  (head.superblock_digest, self.superblock.digest, "superblock"),
                  (head.slots_digest, keys.slots_digest(self.ring, head.key_id), "set of slots"),
                  (head.bag_digest, hashlib.sha256(self.bag(head.volume_uuid).raw).digest(), "bag"))
        for names, there, thing in checks:
            if not hmac.compare_digest(names, there):
                raise Refused(f"{what}: names another {thing}")
        prefix = b"p" + head.number.to_bytes(4, "big")
        records = [value for key, value in sorted(self.load_index().items()) if key.startswith(prefix)]
        if (head.snapshots, head.snapshots_digest) != (len(records), hashlib.sha256(b"".join(records)).digest()):
            raise Refused(f"{what}: names other snapshots")

    def bag(self, volume_uuid):
        for bag in self.ring.bags:
            if bag.volume_uuid == volume_uuid:
                return bag
        raise Refused(f"keyring: no bag for volume {volume_uuid.hex()}")

    def folder(self, volume):
        if volume not in self.folders:
            self.folders[volume] = Folder(os.path.join(self.path, "vol", f"{volume:08x}"))
        return self.folders[volume]

    def volume(self, name):
        """Opens a volume by the index and the log behind its head."""
        head = self.head(name)
        bag = self.bag(head.volume_uuid)
        volume = Volume(self, head.number, bag, head)
        for record in volume.log.follow(head.position, volume.whole):
            volume.apply(record)
        return volume

    def volume_by_log(self, number):
        """Opens a volume by its log alone; number None means the only one."""
        found = []
        for bag in self.ring.bags:
            for owner in self.owners() if bag.key_id in self.volume_keys else []:
                volume = Volume(self, owner, bag, None)
                if any(True for n in volume.log.folder.numbers for _ in volume.log.records(n)):
                    found.append(volume)
        found = [v for v in found if number in (None, v.number)]
        if len(found) != 1:
            raise Refused(f"{len(found)} logs are authentic under the keys that were given"
                          + (f" and of volume {number}" if number else ""))
        found[0].rebuild()
        return found[0]

    def owners(self):
        """The numbers of the volumes that have a folder."""
        try:
            return sorted(int(n, 16) for n in os.listdir(os.path.join(self.path, "vol"))
                          if len(n) == 8)
        except FileNotFoundError:
            return []


class Volume:
    """A volume's content: a map tree (of `head`, if there is one) under an overlay."""

    def __init__(self, store, number, bag, head):
        self.store, self.number, self.head = store, number, head
        key = store.volume_keys[bag.key_id]
        self.keys = keys.open_bag(store.ring, bag, key)
        self.log = Log(store.folder(number), number,
                       key.record_key(store.superblock.uuid, bag.volume_uuid))
        self.overlay, self.extents = Overlay(), {}
        self.size = head.size if head else 0
        self.replayed = 0

    def apply(self, record):
        self.overlay.apply(record)
        self.size = record.size
        self.replayed += 1

    def rebuild(self):
        """Replays the log from sequence 0. A block that was overwritten may have
        been punched since, so only what counts in the end has to open: in the last
        commit it decides whether the commit is whole."""
        records = list(self.log.follow(EMPTY, lambda record: True))
        if not records:
            raise Refused("log: nothing follows sequence 0")
        self.replay(records)
        mine = [e for e in records[-1].ops if isinstance(e, Extent)]
        last = [(h, e, i) for h, (e, i) in self.overlay.data.items() if any(e is m for m in mine)]
        if any(self.open(self.number, e, i, h, e.tags[i]) is None for h, e, i in last):
            print(f"fsxread: commit {records[-1].sequence}, the last, is not whole:"
                  " left out", file=sys.stderr)
            self.replay(records[:-1])

    def replay(self, records):
        self.overlay, self.size, self.replayed = Overlay(), 0, 0
        for record in records:
            self.apply(record)

    def whole(self, record):
        """Whether every block of every extent of a commit opens."""
        return all(self.open(self.number, op, i, home, op.tags[i]) is not None
                   for op in record.ops if isinstance(op, Extent)
                   for i, home in enumerate(op.homes))

    def open(self, owner, extent, index, home, tag):
        """Returns the plaintext of a block of an extent, or None."""
        key = self.keys.get(extent.key)
        if key is None or key.mode != extent.mode:
            return None
        data = self.store.folder(owner).block(extent.segment, extent.place(index))
        return key.open(extent.nonce, index, extent.count, home, tag, data)

    def extent(self, owner, number):
        """Returns the extent record of an extent."""
        if (owner, number) not in self.extents:
            name = b"e" + owner.to_bytes(4, "big") + number.to_bytes(8, "big")
            if name not in self.store.load_index():
                raise Refused(f"index: extent {number:#x} of volume {owner} is missing")
            self.extents[owner, number] = layout.extent_record(self.store.index[name])
        return self.extents[owner, number]

    def node(self, level, index, owner, generation, digest):
        name = b"n" + owner.to_bytes(4, "big") + bytes((level,)) \
            + index.to_bytes(8, "big") + generation.to_bytes(8, "big")
        data = self.store.load_index().get(name)
        if data is None or hashlib.sha256(data).digest() != digest:
            raise Refused(f"map: node {index} of level {level} is missing or has another hash")
        return data

    def walk(self, level, index, *pointer):
        """Yields (home, owner, extent, index, tag) of the tree below a pointer."""
        data = self.node(level, index, *pointer)
        if level == 0:
            for i, place in layout.leaf(data).items():
                yield (index * 16 + i, *place)
            return
        for i, child in layout.interior(data, level).items():
            yield from self.walk(level - 1, index * 64 + i, *child)

    def blocks(self):
        """Yields (home, plaintext) of every block that holds data."""
        end = -(-self.size // BLOCK)
        root = self.head.root if self.head else None
        if root and root.kind == NODE:
            tree = self.walk(root.height, 0, root.owner, root.generation, root.hash)
            for home, owner, number, index, tag in tree:
                if home < end and not self.overlay.hides(home):
                    yield home, self.must_open(owner, self.extent(owner, number), index, home, tag)
        for home, (extent, index) in sorted(self.overlay.data.items(), key=lambda item: item[0]):
            if home < end:
                yield home, self.must_open(self.number, extent, index, home, extent.tags[index])

    def must_open(self, owner, extent, index, home, tag):
        data = self.open(owner, extent, index, home, tag)
        if data is None:
            raise Refused(f"block {home} is damaged: it does not open")
        return data

    def export(self, path):
        """Writes the content to a new sparse file, which is removed on failure."""
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            try:
                out.truncate(self.size)
                for home, data in self.blocks():
                    out.seek(home * BLOCK)
                    out.write(data[:self.size - home * BLOCK])
            except BaseException:
                os.unlink(path)
                raise
