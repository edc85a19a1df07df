# Sourced by cells.sh: starts and stops dockerd and the plugin, in a root made of the packages.
# shellcheck shell=bash disable=SC2154

R=$work/root
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C TZ=UTC DOCKER_BUILDKIT=0

set_up() {
    rm -rf --one-file-system "$work/disk"
    mkdir -p "$work/layer" "$work/disk" "$R"
    mount -t tmpfs tmpfs "$work/layer"
    mkdir "$work/layer/upper" "$work/layer/work"
    mount -t overlay -o "lowerdir=$packages,upperdir=$work/layer/upper,workdir=$work/layer/work" overlay "$R"
    mkdir -p "$R"/{proc,sys,dev,run,tmp,root,work,ext4,btrfs,graphtest}
    mount -t proc proc "$R/proc"
    mount --rbind /sys "$R/sys"
    mount --rbind /dev "$R/dev"
    mount -t tmpfs tmpfs "$R/run"
    mount -t tmpfs tmpfs "$R/tmp"
    mount --bind "$work/disk" "$R/work"
    local fs
    for fs in ext4 btrfs; do
        rm -f "$R/work/$fs.img"
        truncate -s 2G "$R/work/$fs.img"
        chroot "$R" "mkfs.$fs" -q "/work/$fs.img" >"$work/mkfs"
        mount -o loop "$R/work/$fs.img" "$R/$fs"
    done
    # graphtest was made for the C library of this machine, which is not always that of the packages.
    program=(/graphtest/graphtest)
    cp "$graphtest" "$R/graphtest/graphtest"
    local libraries
    if libraries=$(ldd "$graphtest" 2>/dev/null | grep -o '/[^ ]*'); then
        echo "$libraries" | xargs -I{} cp -L {} "$R/graphtest"
        program=("/graphtest/$(basename "$(echo "$libraries" | grep '/ld-')")" --library-path /graphtest "${program[@]}")
    fi
}

tear_down() {
    stop
    umount --recursive "$R/ext4" "$R/btrfs" || fails "something is still mounted: $(grep -E " $R/(ext4|btrfs)" /proc/mounts)"
}

# Which driver the daemon gets from now on.
begin() { # driver, what the daemon calls it, data root
    served=$1 name=$2 data=$3
    mkdir -p "$R$data"
}

ours() { [ "$name" != "$served" ]; }

start() {
    if ours; then start_plugin; fi
    start_daemon
}

start_plugin() {
    mkdir -p "$R/run/docker/plugins" "$R$data/$name"
    chroot "$R" "${program[@]}" serve --driver "$served" \
        --home "$data" --plugin "/run/docker/plugins/$name.sock" >>"$out/plugin.log" 2>&1 &
    plugin=$!
    until_true 30 test -S "$R/run/docker/plugins/$name.sock" || fails "the plugin does not start: $(tail -n 3 "$out/plugin.log")"
}

start_daemon() {
    chroot "$R" /usr/sbin/dockerd --experimental --storage-driver "$name" --data-root "$data" --exec-root /run/docker-exec \
        --pidfile /run/dockerd.pid --host unix:///run/docker.sock --bridge none --iptables=false --ip6tables=false \
        --ip-forward=false --ip-masq=false --cgroup-parent "/${work##*/}" >>"$out/dockerd.log" 2>&1 &
    dockerd=$!
    until_true 60 d version >/dev/null 2>&1 || { fails "dockerd does not start" && tail -n 5 "$out/dockerd.log" && exit 1; }
}

stop_one() { # pid
    local n
    kill -TERM "$1" 2>/dev/null || return 0
    for n in $(seq 300); do
        [ -d "/proc/$1" ] || break
        sleep 0.1
    done
    if [ "$n" -eq 300 ]; then
        kill -KILL "$1"
        fails "process $1 does not end within 30 s of SIGTERM"
    fi
}

stop() {
    if [ -n "${dockerd:-}" ]; then
        stop_one "$dockerd"
        wait "$dockerd" || fails "dockerd ended with status $?"
    fi
    dockerd=
    if [ -n "${plugin:-}" ]; then
        stop_one "$plugin"
        wait "$plugin" || fails "the plugin ended with status $?: $(tail -n 3 "$out/plugin.log")"
        ! grep " $R$data/$name/" /proc/mounts >"$out/mounts" || fails "the plugin left mounts: $(cat "$out/mounts")"
    fi
    plugin=
}

# All at once, as when the machine loses its power, but for what the kernel holds.
crash() {
    local pids=("$dockerd" "$(cat "$R/run/docker-exec/containerd/containerd.pid")")
    [ -z "${plugin:-}" ] || pids+=("$plugin")
    # containerd may have ended with the daemon already.
    kill -KILL "${pids[@]}" 2>/dev/null
    # The shell tells what was killed.
    { wait "$dockerd" "${plugin:-$dockerd}"; } 2>/dev/null || true
    dockerd='' plugin=''
}

until_true() { # seconds, command...
    local until=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$until" ] || return 1
        sleep 0.05
    done
}

d() { timeout 60 chroot "$R" /usr/bin/docker --host unix:///run/docker.sock "$@"; }
