#!/usr/bin/python3
"""fsxread - a reader of fsx stores, written from docs/format.md and docs/crypto.md
alone, to prove that they are complete. It shares no code with fsx.

It needs Debian's python3-cryptography and, for a passphrase, python3-argon2. It
only reads, checks all that the documents demand, and is not fast: it loads the
index whole. It leaves open what a program with secrets owes beside (locked
memory, wiping: crypto.md section 10).
"""

import argparse
import os
import sys
import time
import uuid

import keys
import layout
from errors import Refused
from store import Store


def add_keys(parser):
    parser.add_argument("--passphrase-file", metavar="FILE", help="one line: a passphrase")
    parser.add_argument("--key-file", metavar="FILE", help="32 to 64 random bytes")
    parser.add_argument("--recovery-key-file", metavar="FILE")
    parser.add_argument("--clear-key", action="store_true", help="try a slot that anyone opens")


def arguments():
    parser = argparse.ArgumentParser(prog="fsxread", description="read an fsx store")
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="tell what a store is; with a key, authenticate it")
    info.add_argument("store", metavar="STORE")
    export = commands.add_parser("export", help="copy a volume's content to a new file")
    export.add_argument("--log-only", action="store_true",
                        help="rebuild from the log, without the index; VOLUME is a number")
    export.add_argument("store", metavar="STORE[:VOLUME]")
    export.add_argument("out", metavar="OUT")
    add_keys(info), add_keys(export)
    return parser.parse_args()


def read(path):
    with open(path, "rb") as file:
        return file.read()


def unlock(store, args):
    """Opens the slots of every key that was given; returns whether one was."""
    before = len(store.volume_keys)
    if args.passphrase_file:
        store.unlock(keys.PASSPHRASE, read(args.passphrase_file).removesuffix(b"\n"))
    if args.key_file:
        store.unlock(keys.KEYFILE, keys.key_file(read(args.key_file)))
    if args.recovery_key_file:
        text = read(args.recovery_key_file).decode("ascii", "replace")
        store.unlock(keys.RECOVERY, keys.recovery_key(text))
    if args.clear_key:
        store.unlock(keys.CLEAR, bytes(32))
    return len(store.volume_keys) > before


def info(args):
    store = Store(args.store)
    unlock(store, args)
    print(f"store    {uuid.UUID(bytes=store.superblock.uuid)}, format version"
          f" {store.superblock.version}, created {stamp(store.superblock.created)}")
    memory, passes, lanes, _ = store.ring.kdf
    print(f"keyring  generation {store.generation}, argon2id {memory} KiB,"
          f" {passes} passes, {lanes} lanes")
    for slot in store.ring.slots:
        print(f"slot {slot.number:<4}{keys.TYPES.get(slot.type, slot.type)},"
              f" volume key {slot.key_id.hex()}")
    for head in store.heads():
        opened = head.key_id in store.volume_keys
        if opened:
            store.authenticate(head)
        print(f"volume   {head.name}, number {head.number}, {head.size} bytes,"
              f" {layout.MODES[head.mode]}, sequence {head.position.sequence},"
              f" {'closed cleanly' if head.clean else 'not closed'},"
              f" {'authentic' if opened else 'not authenticated: no key'}")


def stamp(seconds):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def export(args):
    path, volume = args.store, None
    if not os.path.isdir(path) and ":" in path:
        path, volume = path.rsplit(":", 1)
    store = Store(path)
    if not unlock(store, args):
        raise Refused("no key was given")
    if args.log_only:
        opened = store.volume_by_log(int(volume) if volume else None)
    else:
        opened = store.volume(volume or "main")
    opened.export(args.out)
    print(f"{opened.size} bytes, {opened.replayed} records replayed", file=sys.stderr)


def main():
    args = arguments()
    try:
        {"info": info, "export": export}[args.command](args)
    except (Refused, OSError, ValueError) as err:
        sys.exit(f"fsxread: {err}")


if __name__ == "__main__":
    main()
