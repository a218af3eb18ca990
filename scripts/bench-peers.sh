# shellcheck shell=bash
# bench-peers.sh - the servers that scripts/bench compares, for sourcing after lib.sh.
#
# Uses `size`, `qemu_args`, `profile` and `bin`. A target's volume lies in the folder that it
# is given, its socket there too: FOLDER/TARGET.sock.

all_targets=(fsx qemu qemu-raw qemu-luks memory nbdkit-luks)
title_of() {
  case $1 in
    fsx) echo fsxnbd ;;
    qemu) echo "qemu-nbd qcow2+LUKS" ;;
    qemu-raw) echo "qemu-nbd raw" ;;
    qemu-luks) echo "qemu-nbd raw+LUKS" ;;
    memory) echo "nbdkit memory" ;;
    nbdkit-luks) echo "nbdkit file+LUKS" ;;
  esac
}

# server_of TARGET is the program it needs.
server_of() {
  case $1 in
    fsx) ;;
    qemu*) echo qemu-nbd ;;
    *) echo nbdkit ;;
  esac
}

# command_of TARGET FOLDER sets `command`, the server's command line.
command_of() {
  local d=$2 secret="secret,id=key0,file=$2/pw"
  case $1 in
    fsx) command=("$bin/fsxnbd" serve --passphrase-file "$d/pw" --socket "$d/fsx.sock" "$d/bench.fsx")
      if [ -n "$profile" ] && "$bin/fsxnbd" serve --help 2>&1 | grep -q -- --debug-pprof; then
        command+=(--debug-pprof 127.0.0.1:6061)
      fi ;;
    # shellcheck disable=SC2206
    qemu) command=(qemu-nbd $qemu_args -k "$d/qemu.sock" --object "$secret"
      --image-opts "driver=qcow2,encrypt.format=luks,encrypt.key-secret=key0,file.driver=file,file.filename=$d/bench.qcow2") ;;
    # shellcheck disable=SC2206
    qemu-raw) command=(qemu-nbd $qemu_args -k "$d/qemu-raw.sock" -f raw "$d/bench.raw") ;;
    # shellcheck disable=SC2206
    qemu-luks) command=(qemu-nbd $qemu_args -k "$d/qemu-luks.sock" --object "$secret"
      --image-opts "driver=luks,key-secret=key0,file.driver=file,file.filename=$d/bench.luks") ;;
    memory) command=(nbdkit -f -U "$d/memory.sock" memory "$size") ;;
    nbdkit-luks) command=(nbdkit -f -U "$d/nbdkit-luks.sock" file "$d/bench.luks" --filter=luks "passphrase=+$d/pw") ;;
  esac
}

# create_of TARGET FOLDER sets `command`, what makes its volume; empty if it needs none.
create_of() {
  local d=$2 secret="secret,id=key0,file=$2/pw"
  case $1 in
    fsx) command=("$bin/fsximg" create -q --size "$size" --passphrase-file "$d/pw" "$d/bench.fsx") ;;
    qemu) command=(qemu-img create -q -f qcow2 --object "$secret" -o encrypt.format=luks,encrypt.key-secret=key0 "$d/bench.qcow2" "$size") ;;
    qemu-raw) command=(qemu-img create -q -f raw "$d/bench.raw" "$size") ;;
    qemu-luks | nbdkit-luks) command=(qemu-img create -q -f luks --object "$secret" -o key-secret=key0 "$d/bench.luks" "$size") ;;
    memory) command=() ;;
  esac
}

# volume_of TARGET names its volume: the two that read the same file share it.
volume_of() { case $1 in nbdkit-luks) echo qemu-luks ;; *) echo "$1" ;; esac; }

# create TARGET FOLDER makes the empty volume.
create() {
  local try
  printf 'benchmark passphrase' > "$2/pw"
  chmod 600 "$2/pw"
  create_of "$1" "$2"
  # qemu-img times PBKDF2 first, and gives up on a clock that is too coarse
  for try in 1 2 3 4 5 6 7 8; do
    "${command[@]}" && return 0
  done
  die "${command[*]}: failed $try times"
}

# start TARGET FOLDER sets `pid` and `socket`.
start() {
  socket=$2/$1.sock
  rm -f "$socket"
  command_of "$1" "$2"
  "${command[@]}" > "$2/$1.log" 2>&1 &
  pid=$!
  current=$pid
  wait_socket "$socket" "$pid" "$2/$1.log"
  # qemu-nbd listens first and derives its key then, which is no part of any job
  wait_for 60 nbdinfo --size "$(uri "$socket")" || { cat "$2/$1.log" >&2; die "$1 does not answer"; }
}
current=""

# stop sets `close_seconds`: how long the server took to end after SIGTERM.
stop() {
  local from
  from=$(now)
  end_process "$pid"
  current=""
  close_seconds=$(since "$from")
}
