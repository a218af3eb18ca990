#!/bin/sh
# Makes known what was removed. Stores and the trust file stay where they are.
# $1: dpkg's remove, purge, upgrade, …; rpm's 0 (removed) or 1 (upgraded)
set -e

if [ -d /run/systemd/system ]; then
  systemctl daemon-reload || true
fi
if [ -S /run/udev/control ]; then
  udevadm control --reload || true
fi
case "$1" in
  purge | 0) rmdir --ignore-fail-on-non-empty /var/lib/fsx /run/fsx 2>/dev/null || true ;;
esac
