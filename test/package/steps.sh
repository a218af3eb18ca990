# shellcheck shell=bash
# steps.sh - what the scripts on the machine share; to be sourced by bash
set -u -o pipefail
failed=0
begun=$SECONDS
echo() { builtin echo "$((SECONDS - begun))s $*"; }
fail() { echo "FAIL: $*"; failed=1; }

# ok TEXT COMMAND... - the command must succeed; what it says is shown if it does not
ok() {
  local text=$1 said; shift
  if said=$("$@" 2>&1); then echo "ok: $text"; else fail "$text: $* (status $?): $said"; fi
}

# refused TEXT COMMAND... - the command must fail
refused() {
  local text=$1; shift
  if "$@" >/dev/null 2>&1; then fail "$text: $* succeeded"; else echo "ok: $text"; fi
}

# says TEXT PATTERN COMMAND... - the command succeeds and prints a line like that
says() {
  local text=$1 pattern=$2 said; shift 2
  if said=$("$@" 2>&1) && grep -qE -- "$pattern" <<< "$said"; then echo "ok: $text"; else fail "$text: $* says: $said"; fi
}

# until SECONDS COMMAND... repeats it until it succeeds
until_ok() {
  local tries=$(($1 * 10)); shift
  while ! "$@" >/dev/null 2>&1; do
    tries=$((tries - 1))
    [ $tries -gt 0 ] || return 1
    sleep 0.1
  done
}

finish() { exit $failed; }
