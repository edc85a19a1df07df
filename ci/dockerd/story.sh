# Sourced by cells.sh: what is done with a daemon, and what is noted of it.
# shellcheck shell=bash disable=SC2154

time_of_files=@1600000000
images=(imported loaded built committed final) containers=(copied ran last)

# What images are made from: a base, an archive of three layers with deletions, and a directory to build in.
fixtures() {
    local fix=$R/work/fix base=$R/work/fix/base layer=$R/work/fix/layer
    mkdir -p "$base"/{bin,dev,etc,proc,srv/deep/er,sys,tmp,usr/share,var/empty} "$layer"/{2,3,more} "$fix/context/dir"
    cp "$R/bin/busybox" "$base/bin"
    for name in sh ls cat rm mv mkdir ln chmod chown mknod mkfifo sleep touch cp sed true; do ln -s busybox "$base/bin/$name"; done
    echo root:x:0:0::/:/bin/sh >"$base/etc/passwd"
    echo a >"$base/srv/a" && ln "$base/srv/a" "$base/srv/deep/a" && ln -s ../nowhere "$base/srv/deep/er/link"
    head -c 3000000 "$R/usr/sbin/dockerd" >"$base/usr/share/large"
    truncate -s 1M "$base/usr/share/holes" && echo end >>"$base/usr/share/holes"
    mkfifo "$base/srv/fifo" && mknod "$base/dev/null" c 1 3
    : >"$base/srv/empty" && echo ü >"$base/srv/näme with blanks" && : >"$base/srv/$(printf 'l%.0s' {1..200})"
    cp "$base/bin/busybox" "$base/bin/able" && chroot "$R" setcap cap_net_raw+ep /work/fix/base/bin/able
    chown -R 1000:2000 "$base/srv/deep" && chmod 4755 "$base/bin/busybox" && chmod 1777 "$base/tmp" && chmod 0 "$base/srv/empty"
    pack "$base" "$fix/base.tar" --xattrs --xattrs-include='*'

    mkdir -p "$layer/2"/{srv/deep,etc} "$layer/3/srv"
    : >"$layer/2/srv/.wh.a" && : >"$layer/2/srv/deep/.wh.er" && echo 2 >"$layer/2/etc/two" && ln "$layer/2/etc/two" "$layer/2/srv/two"
    mkdir -p "$layer/3/srv/deep" "$layer/3/usr/share" && : >"$layer/3/srv/deep/.wh..wh..opq" && echo 3 >"$layer/3/srv/deep/new"
    ln -s large "$layer/3/usr/share/holes" && mkdir "$layer/3/srv/fifo" && echo 3 >"$layer/3/srv/fifo/in"
    pack "$layer/2" "$fix/2.tar" && pack "$layer/3" "$fix/3.tar"
    archive "$fix"

    printf 'FROM loaded\nCOPY dir /opt/dir\nADD more.tar /opt/more\nCOPY --chown=7:8 file /srv/a\n' >"$fix/context/Dockerfile"
    echo "RUN rm -r /srv/deep && mkdir /srv/deep && mv /opt/dir/one /srv/deep/one && chmod 600 /etc/two && ln /etc/two /opt/two" \
        >>"$fix/context/Dockerfile"
    echo one >"$fix/context/dir/one" && echo two >"$fix/context/dir/two" && echo file >"$fix/context/file"
    mkdir -p "$layer/more/srv/more" && echo more >"$layer/more/srv/more/file" && pack "$layer/more" "$fix/context/more.tar"
    find "$fix/context" -exec touch -d "$time_of_files" {} +
    for n in $(seq 200); do echo "$n" >"$fix/many-$n"; done
    mkdir "$fix/many" && mv "$fix"/many-* "$fix/many"
    find "$fix/many" -exec touch -d "$time_of_files" {} +
}

pack() { # directory, archive, options...
    tar -C "$1" --sort=name --mtime="$time_of_files" --numeric-owner --format=pax --pax-option=delete=atime,delete=ctime "${@:3}" -cf "$2" .
}

# The archive of an image, as `docker save` writes it.
archive() { # directory
    local n ids=() layers=() history=()
    mkdir "$1/image"
    for n in base 2 3; do
        cp "$1/$n.tar" "$1/image/$n.tar"
        ids+=("\"sha256:$(sha256sum "$1/$n.tar" | cut -d' ' -f1)\"")
        layers+=("\"$n.tar\"")
        history+=("{\"created_by\":\"$n\"}")
    done
    local IFS=,
    echo "{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{\"Cmd\":[\"/bin/sh\"]},\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[${ids[*]}]},\"history\":[${history[*]}]}" \
        >"$1/image/config.json"
    echo "[{\"Config\":\"config.json\",\"RepoTags\":[\"loaded:latest\"],\"Layers\":[${layers[*]}]}]" >"$1/image/manifest.json"
    tar -C "$1/image" -cf "$1/loaded.tar" .
}

# A line for each entry of an archive, with what is in its files; the time comes last.
listing() { # archive on standard input
    local dir=$R/tmp/listing
    rm -rf "$dir" && mkdir "$dir"
    tar -x -C "$dir" --xattrs --xattrs-include='*' --numeric-owner --same-permissions
    find "$dir" -mindepth 1 -printf '%P\t%y %m %U:%G %n\t%l\t%T@\n' | sed 's/\.0000000000$//' | sort
    (cd "$dir" && find . -type f -print0 | sort -z | xargs -0r sha256sum)
    chroot "$R" getcap -r /tmp/listing | sort
}

# Everything that a daemon says of its images and containers.
survey() {
    local container
    d image inspect --format '{{.RepoTags}} {{.Id}} {{.Size}} {{json .RootFS.Layers}}' "${images[@]}"
    d history --no-trunc --human=false --format '{{.ID}} {{.Size}} {{.CreatedBy}}' final
    d inspect --size --format '{{.Name}} {{.SizeRw}} {{.SizeRootFs}} {{.State.Status}}' "${containers[@]}"
    for container in "${containers[@]}"; do
        d diff "$container" | sort -k 2
        d export "$container" | listing
    done
}

# What must be the same whichever driver did it. The time of what was written just now is not.
facts() {
    local image container
    # Which key a daemon's driver has depends on the daemon's release, and on its btrfs library, which ours does not use.
    d info --format '{{range .DriverStatus}}{{println .}}{{end}}' | tee "$out/info" |
        grep -vE '^\[(Using metacopy|Extended file attributes|Build Version|Library Version|Btrfs|Backing Filesystem btrfs)' || true
    d image inspect --format '{{.RepoTags}} {{json .RootFS.Layers}}' imported loaded
    for image in imported loaded final; do sizes "$image"; done
    d inspect --size --format '{{.Name}} {{.SizeRw}} {{.State.Status}}' "${containers[@]}"
    for container in "${containers[@]}"; do
        d diff "$container" | sort -k 2
        d export "$container" | listing | sed "/\t${time_of_files#@}\$/!s/\t[^\t]*\$//"
    done
    layers <"$out/save1" >"$out/layers"
    local -a but=(cat)
    [ "$driver" != overlay2 ] || but=(grep -v '/\.wh\.')
    "${but[@]}" "$out/layers" | sed -E '/ 2020-09-13 12:26 /!s/ [0-9-]{10} [0-9:]{5} / /'
    d image inspect --format '{{.Size}}' final >"$out/size"
}

# The sizes of an image's layers, from the last one on, and their sum, with the links that are left out of some (see `differences`).
sizes() { # image
    local links
    links=$(d save "$1" | layers | awk '/^layer$/ { n++; t[n] = 0 } /^l[rwx]/ { sub(/.* -> /, ""); t[n] += length($0) } END { while (n) print t[n--] }')
    if ours || [ "$name" = overlay2 ]; then links=${links//[0-9]/}; fi
    paste -d+ <(echo "$links") <(d history --human=false --format '{{.Size}}' "$1") |
        awk -F+ -v image="$1" '{ sum += $1 + $2; print image, $1 + $2 } END { print image, sum }'
}

# The layers of a saved image, as the driver gives them, from the first on.
layers() { # archive on standard input
    local dir=$R/tmp/layers layer
    rm -rf "$dir" && mkdir "$dir"
    tar -x -C "$dir"
    for layer in $(grep -o '"Layers":\[[^]]*\]' "$dir/manifest.json" | grep -o '"[^"]*/[^"]*"' | tr -d '"'); do
        echo layer
        tar --numeric-owner -tvf "$dir/$layer"
    done
}

# What differs between the daemon's driver and ours, by how much here, and why.
differences() { # facts of its own, facts of ours
    local own ours
    own=$(cat "$1/size") ours=$(cat "$2/size")
    [ "$own" -eq "$ours" ] || echo "      an image has $own bytes on $driver, $ours on ours: what symbolic links hold is counted by ours, by overlay2," \
        "and by the DiffSize of all, but not by the ApplyDiff of the daemon's vfs and btrfs"
    own=$(grep -c '/\.wh\.' "$1/layers") ours=$(grep -c '/\.wh\.' "$2/layers")
    [ "$own" -eq "$ours" ] || echo "      its layers have $own marks of deletion on $driver, $ours on ours: where a directory was replaced, ours says what is" \
        "deleted, as vfs and btrfs do, and the daemon's overlay2 hides all that is below; the trees are the same"
    echo "      times in layers that are committed: ours keeps fractions of seconds, the daemon's drivers cut them"
    cmp -s "$1/info" "$2/info" || echo "      docker info: $driver says $(paste -sd' ' "$1/info"), ours $(paste -sd' ' "$2/info")"
}

# Every byte of a saved image; but daemons since 25 put the time of saving on the index and the directories.
saved() { # archive on standard input
    if [ "${version%%.*}" -lt 25 ]; then
        sha256sum
    else
        cat >"$R/tmp/saved"
        tar --full-time -tvf "$R/tmp/saved" | sed -E '/ (index\.json|blobs\/|blobs\/sha256\/)$/s/ [0-9-]{10} [0-9:]{8} / /'
        tar -xOf "$R/tmp/saved" | sha256sum
    fi
}

# Whether what was noted before still holds.
again() { # after what
    survey >"$out/survey2"
    d save final | saved >>"$out/survey2"
    same "nothing is lost $1" "$out/survey" "$out/survey2"
}

story() {
    local fix=$R/work/fix
    start
    d import --change 'CMD ["/bin/sh"]' - imported <"$fix/base.tar" >/dev/null
    d load --quiet <"$fix/loaded.tar" >/dev/null
    d run --rm --network none loaded /bin/true 2>"$out/run" || cannot "runc runs no containers: $(tail -n 1 "$out/run")"
    d build --quiet --network none --no-cache --tag built /work/fix/context >/dev/null 2>"$out/build" || fails "build: $(tail -n 3 "$out/build")"
    d create --name copied --network none built /bin/sh >/dev/null
    d cp /work/fix/many copied:/srv/many
    d cp /work/fix/context/file copied:/etc/motd
    rm -rf "$R/tmp/many"
    d cp copied:/srv/many /tmp/many
    diff -r "$fix/many" "$R/tmp/many" || fails "cp out"
    d commit copied committed >/dev/null
    d run --name ran --network none committed /bin/sh -c 'set -e
        rm -r /srv/many /opt/two; mkdir /srv/many; echo x >/srv/many/x; mv /opt/more/srv /opt/moved; touch /usr/share/large
        mkfifo /tmp/fifo; chmod 711 /var/empty; chown 5:6 /etc/two; rm /bin/ls; ln -s sh /bin/ls; rm /srv/fifo/in; echo in >>/srv/a' || fails run
    d commit ran final >/dev/null
    d create --name last --network none final >/dev/null
    d save final >"$out/save1"
    d save final | saved >"$out/saved2"
    saved <"$out/save1" >"$out/saved"
    same "save twice gives the same bytes" "$out/saved" "$out/saved2"
    survey >"$out/survey"
    cat "$out/saved" >>"$out/survey"
    facts >"$out/facts"
    stop
    start_daemon_again
}

start_daemon_again() {
    start
    again "when the daemon and its driver are restarted"
    d run --detach --name runs --network none --stop-signal KILL final /bin/sh -c 'echo y >/y; sleep 1000' >/dev/null
    until_true 5 changed runs /y || fails "the container does not run"
    crash
    start
    d rm -f runs >/dev/null || fails "a container that ran when all was killed cannot be removed"
    again "when the daemon and its driver are killed"
    stop
}

# The other of the two drivers on this home, and this one again.
exchange() { # this, the other
    local new
    rename "$data" "$1" "$2"
    local was=$name
    name=$2
    start
    again "when $2 reads what $1 wrote"
    d create --name more --network none final /bin/sh >/dev/null
    d cp /work/fix/many more:/srv/more
    new=$(d commit more new)
    d rm more >/dev/null
    d save new | saved >"$out/saved-new"
    survey >"$out/survey"
    cat "$out/saved" >>"$out/survey"
    stop
    rename "$data" "$2" "$1"
    name=$was
    start
    again "when $1 reads what $2 wrote"
    d save new | saved >"$out/saved-new2"
    same "save gives the bytes that it gave on $2" "$out/saved-new" "$out/saved-new2"
    [ "$(d images --quiet --no-trunc new)" = "$new" ] || fails "the image of $2"
    stop
}

changed() { d diff "$1" | grep -q " $2\$"; }

# The layers that the driver holds, wherever in its home it has them.
held() { find "$R$data/$name" -mindepth 1 -maxdepth 2 -type d | grep -oE '/[0-9a-f]{64}(-init)?$' | sort -u; }

# Everything is removed, and of its layers nothing is left.
empty() {
    start
    # shellcheck disable=SC2046
    d rm -f $(d ps -aq) >/dev/null
    d image prune --all --force >/dev/null
    d load --quiet <"$out/save1" >/dev/null || fails "what was saved cannot be loaded"
    # shellcheck disable=SC2046
    d rmi -f $(d images -aq) >/dev/null
    stop
    held >"$out/held" || true
    same "nothing is left of what was removed" /dev/null "$out/held"
}
