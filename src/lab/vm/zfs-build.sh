# Builds the modules of zfs; run in the root of packages as root of a user namespace: build.sh RELEASE JOBS.
set -e
release=$1 jobs=$2
cd /usr/src/zfs-*/
# The packages' files came without their times: none is older than what is made from it.
find . -exec touch -h -d @1000000000 {} +
build=$(readlink -f /usr/lib/modules/"$release"/build)
source=$(readlink -f /usr/lib/modules/"$release"/source)
./configure --disable-dependency-tracking --with-config=kernel --with-linux="$source" --with-linux-obj="$build"
# Without debugging information it takes two thirds of the time, and there is nothing to make types (BTF) of.
make -j"$jobs" KCFLAGS=-g0 CONFIG_DEBUG_INFO_BTF_MODULES=
find module -name '*.ko' -exec mv {} /built/ \;
