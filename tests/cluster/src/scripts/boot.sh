# Starts a machine inside the supervisor's namespaces and returns at once: `boot.sh ID MACHINE ADDRESS`.
set -eu
id=$1 machine=$2 address=$3
home=/run/machines/$machine
cgroup=/sys/fs/cgroup/$id/$machine

mkdir -p "$home/disk/upper" "$home/disk/work" "$home/root"
if ! mountpoint -q "$home/root"; then
    mount -t overlay -o "lowerdir=/run/template:/,upperdir=$home/disk/upper,workdir=$home/disk/work" "$id" "$home/root"
fi

# A new network for each boot: it knows nothing of the connections of the last one.
ip link del "$machine" 2>/dev/null || :
if [ -e "$home/net" ]; then
    umount "$home/net" 2>/dev/null || :
fi
: >"$home/net"
unshare --net="$home/net" true
# The same hardware address at each boot, or the neighbours would go on talking to the old one.
mac=$(printf '02:%02x:%02x:%02x:%02x:01' ${address//./ })
ip link add "$machine" type veth peer name eth0 address "$mac" netns "$home/net"
nsenter --net="$home/net" ip -batch - <<BATCH
link set lo up
addr add $address/24 dev eth0
link set eth0 up
route add default via 198.18.0.1
BATCH
for mark in "$home"/lost/*; do
    [ ! -e "$mark" ] || nsenter --net="$home/net" \
        ip neigh replace "$(cat "$mark")" lladdr 02:00:00:00:00:00 dev eth0 nud permanent
done
ip link set "$machine" master muster0
[ -e "$home/cut" ] || ip link set "$machine" up

mkdir -p "$cgroup/harness"
for controller in $(cat "$cgroup/cgroup.controllers"); do
    (echo "+$controller" >"$cgroup/cgroup.subtree_control") 2>/dev/null || :
done

# The power supply: starts the machine again when it reboots (exit status 133), and pulls its network when it is off,
# or the kernel would go on answering for a machine that is not there.
setsid bash -c '
    home=$1 cgroup=$2 machine=$3
    echo 0 >"$cgroup/harness/cgroup.procs"
    while :; do
        find "$cgroup/machine" -depth -type d -exec rmdir {} + 2>/dev/null || :
        mkdir -p "$cgroup/machine"
        status=0
        bash -c '\''
            echo 0 >"$2/machine/cgroup.procs"
            exec systemd-nspawn --quiet --directory="$1/root" --machine="$3" --boot --settings=no \
                --register=no --keep-unit --network-namespace-path="$1/net" \
                --bind=/run/witness:/run/muster-witness \
                --resolv-conf=off --timezone=off --link-journal=no
        '\'' nspawn "$home" "$cgroup" "$machine" || status=$?
        [ "$status" = 133 ] || break
    done
    ip link del "$machine"
' power "$home" "$cgroup" "$machine" </dev/null >"$home/console" 2>&1 &
