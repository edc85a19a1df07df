#!/usr/bin/env bash
# The gate: everything a change must pass. Runs every step even when one fails, and closes with the counts.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
logs=target/gate
mkdir -p "$logs"
results=()
failed=0

step() { # name, command...
    local name=$1 status=0 began=$SECONDS
    shift
    printf '\n== %s: %s\n' "$name" "$*"
    "$@" 2>&1 | tee "$logs/$name.log" || status=$?
    if [ "$name" = dockerd ] && [ "$status" -eq 3 ]; then
        results+=("none  $(tail -n 1 "$logs/$name.log")")
    elif [ "$status" -ne 0 ]; then
        failed=$((failed + 1))
        results+=("FAIL  $name (status $status, $((SECONDS - began)) s)")
    else
        results+=("ok    $name ($((SECONDS - began)) s)")
    fi
}

for tool in cargo cargo-fmt cargo-clippy; do
    command -v "$tool" >/dev/null || { echo "gate: $tool is missing; install Rust with rustfmt and clippy"; exit 1; }
done

# What makes and checks the backings of ci/gate.yaml and runs the guests of ci/guest.yaml, and the Debian package of each.
missing=()
while read -r tool package; do
    PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null || missing+=("$package")
done <<'EOF'
mkfs.ext4 e2fsprogs
mkfs.xfs xfsprogs
mkfs.btrfs btrfs-progs
fuse-overlayfs fuse-overlayfs
fusermount3 fuse3
qemu-system-x86_64 qemu-system-x86
EOF
# What ci/dockerd.sh checks packages with.
[ -f /usr/share/keyrings/debian-archive-keyring.gpg ] || missing+=(debian-archive-keyring)
if [ "${#missing[@]}" -gt 0 ]; then
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}" || exit 1
    else
        echo "gate: missing: ${missing[*]} (packages of Debian, installed by the gate as root); cells of ci/gate.yaml and ci/guest.yaml cannot be had without"
    fi
fi

export INSTA_UPDATE=no CARGO_TERM_COLOR=never
step format cargo fmt --check
step clippy cargo clippy --all-targets --locked -- -D warnings
step library cargo clippy --locked --no-default-features -- -D warnings
step docs env RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked
step test cargo test --locked --no-fail-fast
# Every built-in driver on every backing that a stock kernel can make; what must not be skipped stands in the file.
step run cargo run --release --locked -- run --quiet --matrix ci/gate.yaml \
    --report json="$logs/report.json" --report junit="$logs/report.xml"
# What many machines lack, under one packaged kernel. What it fetches and builds the first time stays in the cache of the user.
step guest cargo run --release --locked -- run --quiet --matrix ci/guest.yaml thin-pools zfs quotas/limit quotas/start quotas/statfs lifecycle/create \
    --report json="$logs/guest.json" --report junit="$logs/guest.xml"
# Where no dockerd can be had or run, the closing lines say so, and that is no pass.
step dockerd ci/dockerd.sh --keep "$logs/dockerd"

printf '\n== the gate\n'
printf '%s\n' "${results[@]}"
awk '/^test result:/ { for (i = 2; i <= NF; i++) { if ($i ~ /^passed/) p += $(i-1); if ($i ~ /^failed/) f += $(i-1); if ($i ~ /^ignored/) s += $(i-1) } }
    END { printf "tests: %d passed, %d failed, %d skipped\n", p, f, s }' "$logs/test.log"
for name in run guest; do
    sed -n "s/^Summary: /scenarios of $name: /p; /^Verdict:/,\$p" "$logs/$name.log"
done
exit $((failed > 0))
