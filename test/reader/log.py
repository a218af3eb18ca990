"""The log of a volume: docs/format.md section 5.4."""

import hmac
import mmap
import os
import re

import keys
import layout
from errors import Refused, Unknown
from layout import BLOCK, COMMIT, CONTINUE, EMPTY, Control, Extent

SEGMENT = re.compile(r"[0-9a-f]{16}\.seg")


class Folder:
    """The segment files of one volume's folder, by number."""

    def __init__(self, path):
        self.path, self.maps = path, {}
        names = os.listdir(path) if os.path.isdir(path) else []
        self.numbers = sorted(int(n[:16], 16) for n in names if SEGMENT.fullmatch(n))

    def segment(self, number):
        """Returns the bytes of a segment, or None if there is no such file."""
        if number not in self.maps:
            try:
                with open(os.path.join(self.path, f"{number:016x}.seg"), "rb") as file:
                    empty = os.fstat(file.fileno()).st_size == 0
                    self.maps[number] = b"" if empty else mmap.mmap(
                        file.fileno(), 0, prot=mmap.PROT_READ)
            except FileNotFoundError:
                return None
        return self.maps[number]

    def block(self, number, block):
        """Returns a block, b"" if it is not there."""
        data = self.segment(number)
        return b"" if data is None else data[block * BLOCK:(block + 1) * BLOCK]


class Log:
    """The records of one volume, authenticated under its record key."""

    def __init__(self, folder, volume, record_key):
        self.folder, self.volume, self.key = folder, volume, record_key

    def record(self, segment, block):
        """Returns the authentic record at a place, or None. One with the right MAC
        whose type or operations are not known is an error."""
        data, at = self.folder.segment(segment), block * BLOCK
        if data is None or data[at:at + 8] != b"FSXCMT00":
            return None
        length = int.from_bytes(data[at + 8:at + 12], "big")
        raw = data[at:at + length]
        if not 192 <= length <= layout.RECORD_MAX or len(raw) != length:
            return None
        if not hmac.compare_digest(keys.hmac256(self.key, raw[:-32]), raw[-32:]):
            return None
        if (raw[16:20], raw[24:36]) != (self.volume.to_bytes(4, "big"),
                                       segment.to_bytes(8, "big") + block.to_bytes(4, "big")):
            return None  # left over from another life of the file
        try:
            return layout.record(raw, self.volume, segment, block)
        except Unknown:
            raise
        except Refused:
            return None

    def records(self, segment, start=0):
        """Yields the authentic records of a segment from a block on."""
        for block in range(start, -(-len(self.folder.segment(segment) or b"") // BLOCK)):
            if found := self.record(segment, block):
                yield found

    def follow(self, position, whole):
        """Yields the records behind a position until the log ends; `whole` tells
        whether a commit's blocks open."""
        before = None
        if position.sequence:
            before = self.record(position.segment, position.block)
            if before is None or before.position != position:
                raise Refused(f"damaged: the record {position.sequence}, which the head"
                              " names, is not there")
        while following := self.next(position, before):
            if not whole(following):
                self.must_be_last(following.position, f"commit {following.sequence} does not open")
                return
            yield following
            position, before = following.position, following

    def next(self, position, before):
        """Returns the record that follows the one at a position, or None."""
        names = (position.segment, position.block, position.mac)
        wanted = position.sequence + 1
        first = [self.record(n, 0) for n in self.folder.numbers if n > position.segment]
        found = [r for r in first if r and r.type == CONTINUE
                 and r.sequence == wanted and r.prev == names]
        if found:
            return found[-1]
        if before is None:
            self.must_be_last(EMPTY, "commit 1 is missing")
            return None
        segment, start = (before.next, 0) if before.last else (position.segment, position.end)
        if self.folder.segment(segment) is None:
            raise Refused(f"damaged: segment {segment} is missing")
        after = next(self.records(segment, start), None)
        if after is None:
            self.must_be_last(position, f"commit {wanted} is missing")
            return None
        if (after.type, after.sequence, after.prev[2], after.start) != (
                COMMIT, wanted, position.mac, start):
            raise Refused(f"damaged: segment {segment}, block {after.position.block}: record"
                          f" {after.sequence} does not continue {position.sequence}")
        return after

    def must_be_last(self, position, why):
        """Refuses if an authentic record of a later commit lies behind a position."""
        for number in self.folder.numbers:
            if number < position.segment:
                continue
            start = position.end if number == position.segment else 0
            for later in self.records(number, start):
                if later.sequence > position.sequence:
                    raise Refused(f"damaged: {why}, but commit {later.sequence} is there")


class Overlay:
    """What a replay maps: the newest operation on a home counts."""

    def __init__(self):
        self.data, self.zeros = {}, []

    def apply(self, record):
        for op in record.ops:
            if isinstance(op, Extent):
                self.data.update((home, (op, i)) for i, home in enumerate(op.homes))
                continue
            if isinstance(op, Control):
                continue
            end = op.first + op.count
            self.zeros.append((op.first, end))
            for home in [h for h in self.data if op.first <= h < end]:
                del self.data[home]

    def hides(self, home):
        """Whether the map below does not count for a home."""
        return home in self.data or any(a <= home < b for a, b in self.zeros)
