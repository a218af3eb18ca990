# shellcheck shell=bash
# lib.sh - what the scripts share. To be sourced, by bash:
#
#   . "$(dirname "$0")/lib.sh"
#
# It sets the shell's strict mode, `root` (the top of the source tree), `bin`
# (where the programs are; FSX_BIN overrides) and `cache` (downloads worth
# keeping; FSX_CACHE overrides), and defines the functions below.
#
# Exit codes of every script here: 0 ok, 1 failed, 2 usage, 77 skipped because
# this machine cannot do it (the last line on stderr says why).
set -euo pipefail
export LC_ALL=C
export FSX_TRUST_FILE=${FSX_TRUST_FILE:-none} # not this user's
PATH=$PATH:/usr/sbin:/sbin

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bin=${FSX_BIN:-$root/bin}
cache=${FSX_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/fsx}
me=$(basename "$0")

say() { echo "$*"; }
warn() { echo "$me: $*" >&2; }
die() { warn "$*"; exit 1; }
usage_error() { warn "$*"; echo "try: $0 --help" >&2; exit 2; }
skip() { echo "SKIP: $*" >&2; exit 77; }

# help prints the comment block at the top of the running script.
help() { awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"; }

now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f", b - a }'; }

have() { command -v "$1" >/dev/null 2>&1; }

# ---- things to undo ----
# undo COMMAND... registers a command that runs when the script ends, however it
# ends; the last registered runs first. Arguments are kept as they are.
undo_list=()
undo() {
  if [ ${#undo_list[@]} -eq 0 ]; then trap run_undo EXIT; trap 'exit 130' INT; trap 'exit 143' TERM; fi
  local q; printf -v q '%q ' "$@"
  undo_list+=("$q")
}
run_undo() {
  local status=$? i
  trap - EXIT; trap '' INT TERM
  set +e
  for ((i = ${#undo_list[@]} - 1; i >= 0; i--)); do eval "${undo_list[i]}"; done
  exit "$status"
}

# end_process PID [SIGNAL] ends one process of ours and waits until it is gone.
end_process() {
  local pid=$1 sig=${2:-TERM} i
  kill -"$sig" "$pid" 2>/dev/null || return 0
  for ((i = 0; i < 300; i++)); do
    kill -0 "$pid" 2>/dev/null || break
    # a zombie of this shell is gone too, only not yet waited for
    case $(sed 's/.*) //' "/proc/$pid/stat" 2>/dev/null) in Z*) break ;; esac
    sleep 0.1
  done
  kill -9 "$pid" 2>/dev/null || true
  wait "$pid" 2>/dev/null || true
  return 0
}

# wait_for SECONDS COMMAND... repeats the command until it succeeds.
wait_for() {
  local tries=$(($1 * 20)); shift
  while ! "$@" >/dev/null 2>&1; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || return 1
    sleep 0.05
  done
}

# wait_socket SOCKET PID LOG waits until a server listens on its unix socket.
wait_socket() {
  wait_for 60 eval "[ -S $(printf %q "$1") ] || ! kill -0 $2"
  kill -0 "$2" 2>/dev/null || { cat "$3" >&2; die "the server ended before it listened"; }
  [ -S "$1" ] || die "no socket $1 after 60 s"
}

uri() { echo "nbd+unix:///${2:-}?socket=$1"; }

# need_programs builds the programs unless FSX_BIN names a folder that has them.
need_programs() {
  [ -n "${FSX_BIN:-}" ] || "$root/scripts/build" >&2
  [ -x "$bin/fsximg" ] && [ -x "$bin/fsxnbd" ] || die "no fsximg and fsxnbd in $bin"
}
