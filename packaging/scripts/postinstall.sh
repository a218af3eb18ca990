#!/bin/sh
# Makes known what was installed. Nothing is enabled or started.
# $1: dpkg's configure or abort-…; rpm's 1 (installed) or 2 (upgraded)
set -e

case "$1" in abort-*) exit 0 ;; esac

if command -v systemd-tmpfiles >/dev/null 2>&1; then
  systemd-tmpfiles --create fsx.conf || true
fi
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload || true
fi
if [ -S /run/udev/control ]; then
  udevadm control --reload || true
fi
