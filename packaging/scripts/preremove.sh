#!/bin/sh
# Ends what runs of this package, unless file systems are still mounted through it.
# $1: dpkg's remove, upgrade, deconfigure or failed-upgrade; rpm's 0 (removed) or 1
# (upgraded): running servers and devices live through an upgrade
set -e

case "$1" in remove | 0) ;; *) exit 0 ;; esac

if [ -d /run/systemd/system ]; then
  systemctl stop 'fsx-attach@*.service' || true
fi

# What is attached is the kernel's to say.
for attached in /sys/block/nbd*/backend /sys/block/loop*/loop/backing_file; do
  [ -r "$attached" ] || continue
  case "$(cat "$attached")" in
    fsx:* | /run/fsx/*/attach/*)
      device=${attached#/sys/block/}
      echo "fsx: /dev/${device%%/*} is attached: unmount it, then fsximg detach /dev/${device%%/*}" >&2
      exit 1 ;;
  esac
done

if [ -d /run/systemd/system ]; then
  systemctl stop 'fsxnbd@*.socket' 'fsxnbd@*.service' || true
fi
