"""The cryptography of docs/crypto.md: slots, bags, MACs and blocks."""

import hashlib
import hmac
import string
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from errors import Refused
from layout import BLOCK, MODES, Cursor

PASSPHRASE, KEYFILE, RECOVERY, CLEAR = 1, 2, 3, 4
TYPES = {1: "passphrase", 2: "key file", 3: "recovery key", 4: "clear"}
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def hmac512(key, message):
    return hmac.digest(key, message, "sha512")


def hmac256(key, message):
    return hmac.digest(key, message, "sha256")


def expand(prk, info, size):
    return hmac512(prk, info + b"\1")[:size]


def gcm_open(key, sealed, ad, what):
    try:
        return AESGCM(key).decrypt(bytes(12), sealed, ad)
    except InvalidTag:
        raise Refused(f"{what}: damaged: right commitment, wrong tag") from None


# ---- keyring ----

@dataclass
class Slot:
    type: int
    number: int
    key_id: bytes
    payload: bytes
    raw: bytes


@dataclass
class Bag:
    volume_uuid: bytes
    key_id: bytes
    salt: bytes
    commitment: bytes
    rest: bytes
    raw: bytes


@dataclass
class Keyring:
    store: bytes
    kdf: tuple  # memory in KiB, passes, lanes, salt
    slots: list
    bags: list


def keyring(body):
    c = Cursor(body, "keyring")
    c.magic(b"FSXK\1\1")
    c.zeros(2)
    store, memory, passes, lanes = c.take(16), c.u(4), c.u(4), c.u(1)
    c.zeros(3)
    salt, slots, bags = c.take(32), c.u(4), c.u(4)
    c.zeros(4)
    c.need(19456 <= memory <= 1048576 and 2 <= passes <= 16
           and memory * passes <= 4194304 and 1 <= lanes <= 16, "Argon2 cost out of bounds")
    c.need(slots <= 65535 and bags <= 65535, "too many slots or bags")
    ring = Keyring(store, (memory, passes, lanes, salt), [], [])
    ring.slots = [slot(c) for _ in range(slots)]
    ring.bags = [bag(c) for _ in range(bags)]
    c.end()
    c.need(ascending([s.number for s in ring.slots]), "slots out of order")
    c.need(ascending([b.volume_uuid for b in ring.bags]), "bags out of order")
    return ring


def ascending(values):
    return all(a < b for a, b in zip(values, values[1:]))


def slot(c):
    start, kind = c.at, c.u(1)
    c.zeros(1)
    number, size, key_id, salt = c.u(2), c.u(4), c.take(16), c.take(16)
    c.need(kind != 0 and number > 0 and size <= 16384 and len(salt) == 16, "bad slot")
    c.need(kind not in TYPES or size == 80, f"slot {number}: bad length")
    payload = c.take(size)
    return Slot(kind, number, key_id, payload, c.data[start:c.at])


def bag(c):
    start, uuid, key_id, salt, commitment = c.at, c.take(16), c.take(16), c.take(32), c.take(32)
    size = c.u(4)
    c.need(size >= 24 and (size - 24) % 128 == 0 and (size - 24) // 128 <= 4096, "bad bag")
    rest = c.take(size)
    return Bag(uuid, key_id, salt, commitment, rest, c.data[start:c.at])


def slots_digest(ring, key_id):
    named = b"".join(s.raw for s in ring.slots if s.key_id == key_id)
    return hashlib.sha256(b"FSXD\1\0\0\0" + named).digest()


class VolumeKey:
    """A volume key, and what is derived from it for a store's volume."""

    def __init__(self, key):
        self.prk = hmac512(bytes(64), key)
        self.id = expand(self.prk, b"fsx\0\x20", 16)

    def derive(self, label, store, volume, size, more=b""):
        return expand(self.prk, b"fsx\0" + bytes((label,)) + store + volume + more, size)

    def head_key(self, store, volume):
        return self.derive(0x23, store, volume, 32)

    def record_key(self, store, volume):
        return self.derive(0x24, store, volume, 32)


def open_slot(ring, one, kek):
    """Returns the VolumeKey in a slot, or None if the kek is not the slot's."""
    ad = b"FSXS\1\0\0\0" + ring.store + one.raw[:40]
    okm = expand(hmac512(b"fsx-slot-v1", kek), ad, 64)
    if not hmac.compare_digest(okm[32:], one.payload[:32]):
        return None
    what = f"slot {one.number}"
    key = VolumeKey(gcm_open(okm[:32], one.payload[32:], ad, what))
    if not hmac.compare_digest(key.id, one.key_id):
        raise Refused(f"{what}: wraps another volume key than it names")
    return key


def open_slots(ring, kind, secret):
    """Returns the volume keys, by identifier, of the slots that the secret opens."""
    slots = [s for s in ring.slots if s.type == kind]
    if not slots:
        raise Refused(f"no slot of type {TYPES[kind]}")
    kek = argon2id(secret, ring.kdf) if kind == PASSPHRASE else secret
    opened = [open_slot(ring, one, kek) for one in slots]
    found = {key.id: key for key in opened if key}
    if not found:
        raise Refused(f"no {TYPES[kind]} slot opens: wrong secret, or an altered keyring")
    return found


def argon2id(secret, kdf):
    from argon2.low_level import Type, hash_secret_raw
    memory, passes, lanes, salt = kdf
    return hash_secret_raw(secret, salt, passes, memory, lanes, 32, Type.ID, version=0x13)


def key_file(data):
    if not 32 <= len(data) <= 64:
        raise Refused("key file: it must have 32 to 64 bytes")
    if all(byte in string.printable.encode() for byte in data):
        raise Refused("key file: only text: that is a passphrase")
    return data


def recovery_key(text):
    """Decodes a recovery key (crypto.md, section 9)."""
    folded = text.upper().translate(str.maketrans("OIL", "011"))
    chars = [c for c in folded if c != "-" and not c.isspace()]
    if len(chars) != 65 or any(c not in ALPHABET for c in chars):
        raise Refused("recovery key: it must be 13 groups of five characters")
    values = [ALPHABET.index(c) for c in chars]
    bits = 0
    for group in range(13):
        *data, check = values[5 * group:5 * group + 5]
        want = times_a(1, group)
        for power, value in enumerate(data):
            want ^= times_a(value, power + 1)
            bits = bits << 5 | value
        if want != check:
            raise Refused(f"recovery key: a mistake in group {group + 1}")
    key = (bits >> 4).to_bytes(32, "big")
    if bits & 15 != hashlib.sha256(key).digest()[0] >> 4:
        raise Refused("recovery key: wrong checksum")
    return key


def times_a(value, times):
    """Multiplies by a = 2 in GF(32), modulo x^5 + x^2 + 1."""
    for _ in range(times):
        value <<= 1
        value ^= 0b100101 if value & 32 else 0
    return value


# ---- bag ----

def open_bag(ring, sealed, key):
    """Returns {KID: DataKey} of a bag."""
    what = f"bag of volume {sealed.volume_uuid.hex()}"
    okm = key.derive(0x21, ring.store, sealed.volume_uuid, 64, sealed.salt)
    if not hmac.compare_digest(okm[32:], sealed.commitment):
        raise Refused(f"{what}: wrong commitment")
    ad = b"FSXB\1\0\0\0" + ring.store + sealed.raw[:100]
    c = Cursor(gcm_open(okm[:32], sealed.rest, ad, what), what)
    c.magic(b"\1\0")
    count, following = c.u(2), c.u(4)
    c.need(count <= 4096, "too many data keys")
    entries = [data_key(c) for _ in range(count)]
    c.end()
    numbers = [number for number, _, _ in entries]
    c.need(ascending([0] + numbers + [following]), "data keys out of order")
    c.need(sum(current for _, current, _ in entries) <= 1, "two current data keys")
    keys = {one.id: one for _, _, one in entries}
    c.need(len(keys) == count, "a data key twice")
    return keys


def data_key(c):
    mode, current = c.u(1), c.u(1)
    c.zeros(2)
    number, _, kid, commit = c.u(4), c.u(8), c.take(16), c.take(32)
    c.need(mode in MODES and current <= 1, "bad mode or flag of a data key")
    one = DataKey(mode, c.take(64))
    c.need(hmac.compare_digest(one.id, kid) and hmac.compare_digest(one.commit, commit),
           "a data key does not match its identifier")
    return number, current, one


# ---- blocks ----

class DataKey:
    """A data key, which opens blocks."""

    def __init__(self, mode, key):
        self.mode = mode
        self.prk = hmac512(bytes(64), key)
        self.id = expand(self.prk, b"fscrypt\0\1", 16)
        self.commit = expand(self.prk, b"fsx\0\1", 32)
        self.cached = (None, None)

    def extent_keys(self, nonce):
        """Derives the keys of an extent; the last one's are kept."""
        if self.cached[0] != nonce:
            if self.mode == 0x01:
                keys = (expand(self.prk, b"fscrypt\0\x09" + nonce, 64),
                        expand(self.prk, b"fsx\0\x11" + nonce, 32))
            else:
                okm = expand(self.prk, b"fsx\0\x10" + bytes((self.mode, 12)) + nonce, 64)
                keys = okm[:32], int.from_bytes(okm[32:44], "big")
            self.cached = nonce, keys
        return self.cached[1]

    def open(self, nonce, index, count, home, tag, ciphertext):
        """Returns the block's plaintext, or None if it does not open."""
        ad = b"FSXE\1" + bytes((self.mode, 12, 0)) + home.to_bytes(8, "big") \
            + index.to_bytes(4, "big") + count.to_bytes(4, "big")
        if len(ciphertext) != BLOCK:
            return None
        first, second = self.extent_keys(nonce)
        if self.mode == 0x01:
            return open_xts(first, second, index, ad, tag, ciphertext)
        aead = AESGCM if self.mode == 0x81 else ChaCha20Poly1305
        try:
            return aead(first).decrypt((second ^ index).to_bytes(12, "big"), ciphertext + tag, ad)
        except InvalidTag:
            return None


def open_xts(key, mac_key, index, ad, tag, ciphertext):
    if not hmac.compare_digest(hmac256(mac_key, ad + ciphertext)[:16], tag):
        return None
    tweak = index.to_bytes(8, "little") + bytes(8)
    cipher = Cipher(algorithms.AES(key), modes.XTS(tweak)).decryptor()
    return cipher.update(ciphertext) + cipher.finalize()
