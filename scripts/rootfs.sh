# shellcheck shell=bash
# rootfs.sh - a real root filesystem, for the scripts that show something with one
#
# Sourced behind lib.sh. The caller sets dir, a scratch folder that is the current
# one, and fresh, if the cache is not to be used, and may set
# rootfs, an image to take instead; tell takes lines for people.

# configured_mirror prints the mirror that apt takes this release from.
configured_mirror() {
  apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' "Created-By: Packages" 2>/dev/null |
    awk -v release="$1" '$2 == release && $3 == "main" { print $1; exit }'
}

# unpack_sources TREE adds packages that are nothing but many files: the source
# of Go's library and the headers of the kernel.
unpack_sources() {
  local package
  for package in $(apt-cache depends golang-src 2>/dev/null | grep -o 'golang-[0-9.]*-src' | head -1) \
    $(apt-cache search --names-only '^linux-headers-[0-9.-]*-common$' | awk '{ print $1 }' | sort -V | tail -1); do
    mkdir -p "$dir/debs"
    (cd "$dir/debs" && apt-get download -qq "$package" 2>/dev/null) || { tell "(no $package)"; continue; }
    dpkg-deb -x "$dir/debs/$package"_*.deb "$1"
  done
}

make_rootfs() {
  local release image tree log
  if [ -n "${rootfs:-}" ]; then
    cp --sparse=always --reflink=auto "$rootfs" rootfs.ext4
    return
  fi
  release=$(. /etc/os-release && echo "${VERSION_CODENAME:-stable}")
  image=$cache/demo/rootfs-$release.ext4
  if [ -n "$fresh" ] || [ ! -s "$image" ]; then
    tree=$dir/tree log=$dir/debootstrap.log
    tell "debootstrap $release from ${mirror:=$(configured_mirror "$release")} (about a minute) ..."
    debootstrap --variant=minbase --include=perl,python3-minimal,git,ca-certificates \
      "$release" "$tree" "${mirror:-http://deb.debian.org/debian}" > "$log" 2>&1 || { tail -20 "$log"; die "debootstrap failed"; }
    unpack_sources "$tree"
    mkdir -p "$cache/demo"
    truncate -s $(($(du -sm --apparent-size "$tree" | cut -f1) * 13 / 10 + 400))M "$image.new"
    mkfs.ext4 -q -F -L demo-root -d "$tree" "$image.new"
    tell "$(find "$tree" | wc -l) files, $(du -sh "$tree" | cut -f1)"
    mv "$image.new" "$image"
    rm -rf "$tree" "$dir/debs"
  else
    tell "taken from the cache, $image (--fresh makes it again)"
  fi
  cp --sparse=always --reflink=auto "$image" rootfs.ext4
  tell "rootfs.ext4: $(du -h --apparent-size rootfs.ext4 | cut -f1), of which $(du -h rootfs.ext4 | cut -f1) are used"
}
