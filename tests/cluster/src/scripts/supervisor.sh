# PID 1 of a cluster's own PID, mount and network namespaces:
#   bash supervisor.sh DIR ID nspawn MACHINE…
#   bash supervisor.sh DIR ID vm HARNESS QEMU MACHINE…
# It owns everything that the cluster is made of. When it dies, the kernel kills every process in its PID namespace, and
# with the last of them the mounts, links and network namespaces go. bash reaps the orphans that fall to it.
# It ends when its standard input ends (the process that made the cluster died), unless a line `detach` came before. Then, and
# when it fails, it removes what the harness keeps in DIR, the cluster's directory.
set -eu
exec 2>&1
name=${1##*/} id=$2 backend=$3
# DIR may be where something is mounted below.
exec 4<"${1%/*}/"
shift 3
case $backend in
nspawn) machines=("$@") ;;
vm) machines=("${@:3}" host) ;;
esac

# The kernel would end the rest with this process, but nobody would remove cgroups and files.
clean_up() {
    trap - EXIT
    set +e
    exec >/dev/null 2>&1
    kill -KILL -1
    if [ "$backend" = nspawn ]; then
        for _ in {1..200}; do
            [ -e "/sys/fs/cgroup/$id" ] || break
            find "/sys/fs/cgroup/$id" -depth -type d -exec rmdir {} + && break
            read -r -t 0.02 -u 3
        done
    fi
    cd /proc/self/fd/4 && cd "./$name" || exit
    rm -rf cluster.json* supervisor.sh lock-* files
    cd /proc/self/fd/4 && rmdir "./$name"
}
trap clean_up EXIT

# Nobody writes to it: reading it waits, and bash goes on reaping.
exec 3<> <(:)

mount -t tmpfs -o mode=0755 "$id" /run
mkdir /run/machines
for machine in "${machines[@]}"; do
    mkdir -p "/run/machines/$machine/lost" "/run/machines/$machine/disk"
    # A virtual machine's disk is a file. Either takes up room only as it is filled.
    [ "$backend" != nspawn ] || mount -t tmpfs -o mode=0755,size=1G "$id" "/run/machines/$machine/disk"
done
: >/run/witness
ip link set lo up

make_cgroup() {
    # Machines see a pure cgroup v2 tree, whatever mix the host has: one tree to freeze, kill and list a machine by.
    mount -t cgroup2 "$id" /sys/fs/cgroup
    mkdir -p "/sys/fs/cgroup/$id"
    if ! [ -e "/sys/fs/cgroup/$id/cgroup.kill" ]; then
        echo "this kernel has no cgroup.kill: Linux 5.14 or later is needed"
        exit 1
    fi
    # Resource accounting in the machines: as much of it as the host gives away.
    for level in /sys/fs/cgroup "/sys/fs/cgroup/$id"; do
        for controller in $(cat "$level/cgroup.controllers"); do
            (echo "+$controller" >"$level/cgroup.subtree_control") 2>/dev/null || :
        done
    done
}

# The switch, and the host's own place at it: a QEMU without a machine passes frames between a port and `muster0`.
start_hub() {
    local harness=$1 qemu=$2
    shift 2
    ip tuntap add muster0 mode tap
    read -r ready < <("$harness" hub "$@" </dev/null 2>/run/hub.log) || :
    if [ "$ready" != ready ]; then
        cat /run/hub.log
        exit 1
    fi
    "$qemu" -M none -accel tcg -nodefaults -display none -daemonize \
        -netdev tap,id=tap,ifname=muster0,script=no,downscript=no \
        -netdev stream,id=port,server=off,addr.type=unix,addr.path=/run/machines/host/net.sock \
        -netdev hubport,id=one,hubid=0,netdev=tap -netdev hubport,id=other,hubid=0,netdev=port
}

if [ "$backend" = nspawn ]; then
    make_cgroup
    ip link add muster0 type bridge
else
    start_hub "$@"
fi
ip addr add 198.18.0.1/24 dev muster0
ip link set muster0 up

echo ready
exec >/dev/null 2>&1
if read -r line && [ "$line" = detach ]; then
    while :; do read -r -u 3 || :; done
fi
# The owner is gone.
