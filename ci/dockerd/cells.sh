#!/usr/bin/env bash
# The inside of ci/dockerd.sh: runs in namespaces of its own, for one suite's dockerd. Arguments: work directory, unpacked packages,
# graphtest, drivers.
set -Eeuo pipefail
work=$1 packages=$2 graphtest=$3 drivers=$4
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=ci/dockerd/daemon.sh
. "$here/daemon.sh"
# shellcheck source=ci/dockerd/story.sh
. "$here/story.sh"

exec 3>&1
failures=0 cell=
fails() {
    failures=$((failures + 1))
    echo "FAIL  $cell: $*" >&3
}

trap 'fails "ended by line $LINENO of ${BASH_SOURCE[0]##*/}: $BASH_COMMAND"' ERR

cannot() {
    echo "dockerd: cannot be tried here: $*" >&3
    trap - ERR
    exit 3
}

# Says that two files of facts are the same, or shows where they differ.
same() { # what, file, file
    if diff -u "$2" "$3" >"$out/difference"; then
        echo "ok    $cell: $1"
    else
        fails "$1"
        head -n 40 "$out/difference"
    fi
}

# A plugin has a name of its own: the daemon takes a driver of its own where it has one of the name.
rename() { # data root, from, to: the home, what the daemon keeps beside it, and which driver its containers are of
    mv -T "$R$1/$2" "$R$1/$3"
    mv -T "$R$1/image/$2" "$R$1/image/$3"
    sed -i "s/\"Driver\":\"$2\"/\"Driver\":\"$3\"/" "$R$1"/containers/*/config.v2.json
}

root_of() { # driver, whose
    if [ "$1" = btrfs ]; then echo "/btrfs/$2"; else echo "/ext4/$1-$2"; fi
}

told() { # whose it is
    if [ "$1" = own ]; then echo "$driver"; else echo "our-$driver"; fi
}

one_driver() {
    local whose other
    for whose in own ours; do
        cell="docker $version, $(told "$whose")"
        out=$facts/$driver-$whose
        mkdir -p "$out"
        begin "$driver" "$(told "$whose")" "$(root_of "$driver" "$whose")"
        story
    done
    cell="docker $version, $driver"
    same "our plugin gives the same images, changes and sizes" "$facts/$driver-own/facts" "$facts/$driver-ours/facts"
    differences "$facts/$driver-own" "$facts/$driver-ours"
    for whose in own ours; do
        if [ "$whose" = own ]; then other=ours; else other=own; fi
        cell="docker $version, home of $(told "$whose")"
        out=$facts/$driver-$whose
        begin "$driver" "$(told "$whose")" "$(root_of "$driver" "$whose")"
        exchange "$(told "$whose")" "$(told "$other")"
        cell="docker $version, $(told "$whose")"
        empty
    done
}

set_up
version=$(chroot "$R" /usr/sbin/dockerd --version | sed 's/^Docker version \([0-9.]*\).*/\1/')
facts=$work/facts/$version
fixtures
for driver in $drivers; do
    began=$SECONDS
    one_driver
    echo "      docker $version, $driver: $((SECONDS - began)) s"
done
tear_down
exit "$((failures > 0))"
