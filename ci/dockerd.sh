#!/usr/bin/env bash
# Debian's dockerd on our drivers as its storage plugins, and on its own: the same images, changes and sizes, and each reads the other's home.
#
#   ci/dockerd.sh [--graphtest PROGRAM] [--suite bookworm,trixie] [--driver vfs,overlay2,btrfs] [--keep DIR] [--fetch]
#
# Nothing is installed. Packages are fetched once by apt, which checks what it fetches against the digests that the archive signs, and are
# unpacked in the user's cache directory; --fetch looks for newer ones. Everything runs in namespaces of its own (mounts, processes,
# network), which end with the script, whatever ends that. --keep has logs and notes copied into a directory.
# Status: 0 all holds; 1 something does not; 3 it cannot be tried here, and the last line says why.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
suites=bookworm,trixie drivers=vfs,overlay2,btrfs fetch=no keep=
graphtest=${CARGO_TARGET_DIR:-$here/../target}/release/graphtest

cannot() {
    echo "dockerd: cannot be tried here: $*"
    exit 3
}

while [ $# -gt 0 ]; do
    case $1 in
    --graphtest) graphtest=$2 ;;
    --suite) suites=$2 ;;
    --driver) drivers=$2 ;;
    --keep) keep=$2 ;;
    --fetch) fetch=yes && shift && continue ;;
    *) echo "dockerd: unknown argument $1; see the head of $0" && exit 2 ;;
    esac
    shift 2
done

[ "$(id -u)" -eq 0 ] || cannot "it needs root"
for tool in apt-get dpkg setpriv unshare chroot losetup timeout flock; do
    command -v "$tool" >/dev/null || cannot "$tool is missing"
done
[ -x "$graphtest" ] || cannot "$graphtest is missing; cargo build --release makes it, --graphtest names another"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
cache=${GRAPHTEST_CACHE:-${XDG_CACHE_HOME:-${HOME:?}/.cache}/graphtest}/dockerd
mkdir -p "$cache"
exec 4>"$cache/lock"

apt='' child=''
work=$(mktemp -d "${TMPDIR:-/var/tmp}/graphtest-dockerd.XXXXXX")
# shellcheck disable=SC2317
cleanup() {
    # The first process of the namespaces takes all others, their mounts and loop devices with it.
    if [ -n "$child" ]; then
        kill -KILL "$child" 2>/dev/null || true
        wait "$child" 2>/dev/null || true
    fi
    if [ -n "$keep" ] && [ -d "$work/facts" ]; then
        rm -f "$work"/facts/*/*/save1
        mkdir -p "$keep" && cp -r "$work/facts/." "$keep"
    fi
    for _ in $(seq 50); do
        find /sys/fs/cgroup -depth -type d -path "*/${work##*/}*" -exec rmdir {} + 2>/dev/null && break
        sleep 0.1
    done
    rm -rf --one-file-system "$work" ${apt:+"$apt"}
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Fetches a suite's packages and unpacks them into a root of their own, which gets its name when it is whole.
obtain() { # suite
    local root=$cache/$1 client=() site dir deb
    [ "$fetch" = no ] && [ -d "$root" ] && return
    [ -f "$keyring" ] || cannot "$keyring is missing (package debian-archive-keyring)"
    # shellcheck disable=SC2016
    site=${GRAPHTEST_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' | head -n 1)}
    [ -n "$site" ] || cannot "apt is set up with no archive of Debian; GRAPHTEST_MIRROR names one"
    apt=$(mktemp -d "$cache/apt.XXXXXX")
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/root/usr/"{bin,sbin,lib,lib64}
    : >"$apt/status"
    echo "deb [signed-by=$keyring] $site $1 main" >"$apt/sources.list"
    cat >"$apt/conf" <<CONF
Dir::Etc::SourceList "$apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "$apt/lists";
Dir::State::Status "$apt/status";
Dir::Cache "$apt/cache";
APT::Sandbox::User "root";
APT::Install-Recommends "false";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
CONF
    # Debian 12 has the client in docker.io.
    [ "$1" = bookworm ] || client=(docker-cli)
    if ! APT_CONFIG=$apt/conf timeout 300 apt-get -qq --error-on=any update ||
        ! APT_CONFIG=$apt/conf timeout 900 apt-get -qqy --download-only install docker.io "${client[@]}" \
            busybox-static e2fsprogs btrfs-progs libcap2-bin usr-is-merged; then
        cannot "apt-get could not fetch docker.io of $1"
    fi
    for dir in bin sbin lib lib64; do ln -s "usr/$dir" "$apt/root/$dir"; done
    for deb in "$apt"/cache/archives/*.deb; do
        dpkg --fsys-tarfile "$deb" | tar -x --keep-directory-symlink -C "$apt/root"
    done
    rm -rf "$root"
    mv -T "$apt/root" "$root"
    rm -rf "$apt"
    apt=
}

status=0
for suite in ${suites//,/ }; do
    flock 4
    obtain "$suite"
    flock --shared 4
    setpriv --pdeathsig KILL unshare --mount --propagation private --pid --mount-proc --fork --kill-child --net --ipc --uts \
        "$here/dockerd/cells.sh" "$work" "$cache/$suite" "$graphtest" "${drivers//,/ }" &
    child=$!
    ended=0
    wait "$child" || ended=$?
    child=
    [ "$ended" -ne 3 ] || exit 3
    [ "$ended" -eq 0 ] || status=1
done
exit "$status"
