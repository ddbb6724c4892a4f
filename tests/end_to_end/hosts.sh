# shellcheck shell=bash
# Hosts on one machine: network, process and mount namespaces, each with an sshd; to be sourced, as root.
#
# Everything is made inside namespaces that belong to the sourcing script, so the kernel takes all of it away (hosts,
# bridge, mounts, processes) when the script ends, however it ends; nothing is made on the machine itself, and nothing
# of the machine's own Ray, /tmp or home is seen.
#
#   own_machine "$@"           run the script again inside; the one that called it becomes the "laptop" of the hosts
#   make_hosts NAME ADDRESS …  hosts that see each other and the laptop (LAPTOP_ADDRESS), by ssh with the key SSH_KEY
#   processes_on NAME PATTERN  ids of the host's processes whose command line matches the shell pattern
#   on_host NAME COMMAND       by ssh
#   cut_link NAME, mend_link NAME
#   kill_host NAME             the link, then every process, as a power failure does
#   host_logs NAME             what a person would look at first
#
# The hosts share the Python install and the folder SHARED, as they would by NFS; /tmp, the home, /run and /dev/shm
# are each host's own. SHOWN is set by the caller: folders that must stay visible wherever they lie.

readonly LAPTOP_ADDRESS=10.77.0.1
readonly SHARED=/mnt/shared
readonly SETUP=/mnt/setup
readonly SSH_KEY=$SETUP/key
SHOWN=()

own_machine() {
    [[ ${OWN_MACHINE:-} == yes ]] && { enter_machine; return; }
    # Whichever process is killed first, the kernel kills the next one inwards.
    OWN_MACHINE=yes setpriv --pdeathsig KILL unshare --mount --net --ipc --uts --pid --fork --kill-child=KILL \
        --mount-proc -- "$BASH" "$0" "$@" &
    local status=0
    wait "$!" || status=$?
    exit "$status"
}

enter_machine() {
    HOME=$(getent passwd root | cut -d: -f6)
    export HOME
    # Ray's settings of the machine's user mean another cluster.
    local name
    for name in "${!RAY_@}"; do unset "$name"; done
    hide /mnt "$HOME" /tmp /dev/shm /run
    [[ -L /var/run ]] || hide /var/run
    mkdir -p "$SHARED" "$SETUP"
    # Names of the hosts, no name server, and a root account that is not locked for ssh.
    echo "127.0.0.1 localhost" >"$SETUP/hosts"
    : >"$SETUP/resolv.conf"
    sed 's/^root:[^:]*:/root:*:/' /etc/shadow >"$SETUP/shadow"
    chmod 600 "$SETUP/shadow"
    for name in hosts resolv.conf shadow; do
        [[ ! -f /etc/$name ]] || mount --bind "$SETUP/$name" "/etc/$name"
    done
    ip link set lo up
    ip link add switch type bridge
    ip address add "$LAPTOP_ADDRESS/24" dev switch
    ip link set switch up
    ssh-keygen -q -t ed25519 -N '' -f "$SSH_KEY"
    ssh-keygen -q -t ed25519 -N '' -f "$SETUP/host_key"
}

# An empty folder over each; what of SHOWN lies below it stays visible.
hide() {
    local folder path handle
    for folder in "$@"; do
        local -a kept=() handles=()
        for path in "${SHOWN[@]}"; do
            [[ $path == "$folder"/* ]] || continue
            exec {handle}<"$path"
            kept+=("$path")
            handles+=("$handle")
        done
        mount -t tmpfs -o mode=755 hidden "$folder"
        for path in "${kept[@]}"; do
            mkdir -p "$path"
            # The open handle leads to the folder below the new mount.
            handle=${handles[0]}
            handles=("${handles[@]:1}")
            mount --no-canonicalize --bind "/proc/$$/fd/$handle" "$path"
            exec {handle}<&-
        done
    done
}

make_hosts() {
    local name address
    while (($#)); do
        name=$1 address=$2
        shift 2
        echo "$address $name" >>"$SETUP/hosts"
        ip netns add "$name"
        ip link add "$name" type veth peer name eth0 netns "$name"
        ip link set "$name" master switch up
        ip -n "$name" link set lo up
        ip -n "$name" address add "$address/24" dev eth0
        ip -n "$name" link set eth0 up
        ip -n "$name" route add default via "$LAPTOP_ADDRESS"
        # shellcheck disable=SC2016
        HOST_SHOWN=$(printf '%s\n' "${SHOWN[@]}") nsenter --net="/run/netns/$name" unshare --mount --ipc --uts --pid \
            --fork --kill-child=KILL --mount-proc -- "$BASH" -c 'set -euo pipefail; source "$0"; run_host "$1"' \
            "${BASH_SOURCE[0]}" "$name" >"$SETUP/$name.sshd.log" 2>&1 &
        disown "$!"
    done
}

# The first process of a host: it ends as sshd.
run_host() {
    mapfile -t SHOWN <<<"$HOST_SHOWN"
    unset HOST_SHOWN OWN_MACHINE
    echo "$1" >/proc/sys/kernel/hostname
    hide "$HOME" /tmp /dev/shm /run
    mkdir /run/sshd "$HOME/.ssh"
    chmod 700 "$HOME" "$HOME/.ssh"
    cp "$SSH_KEY.pub" "$HOME/.ssh/authorized_keys"
    cp "$SETUP/bashrc" "$HOME/.bashrc"
    exec "$(type -P sshd || echo /usr/sbin/sshd)" -D -e -f /dev/null -h "$SETUP/host_key" \
        -o UsePAM=no -o StrictModes=no -o PidFile=none -o PermitRootLogin=prohibit-password \
        -o MaxStartups=100 -o MaxSessions=100
}

processes_on() {
    local process command
    for process in $(ip netns pids "$1"); do
        # A process that ends meanwhile has no command line any more.
        command=$(tr '\0' ' ' 2>/dev/null <"/proc/$process/cmdline") || continue
        # shellcheck disable=SC2053
        [[ $command != $2 ]] || echo "$process"
    done 2>/dev/null
}

on_host() {
    local host=$1
    shift
    ssh -i "$SSH_KEY" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR "root@$host" "$@"
}

cut_link() { ip link set "$1" down; }
mend_link() { ip link set "$1" up; }

kill_host() {
    local process
    cut_link "$1"
    for process in $(ip netns pids "$1"); do
        kill -KILL "$process" 2>/dev/null || true
    done
}

host_logs() {
    local process file
    printf '\n===== %s: sshd\n' "$1"
    tail -n 5 "$SETUP/$1.sshd.log"
    process=$(ip netns pids "$1" | head -n 1)
    if [[ -z $process ]]; then
        echo "$1 has no process left"
        return
    fi
    for file in "/proc/$process/root/tmp/ray/session_2"*/logs/{monitor.log,monitor.err,gcs_server.*,raylet.*,worker-*.err}; do
        [[ -s $file ]] || continue
        printf '\n===== %s: %s\n' "$1" "${file#"/proc/$process/root"}"
        grep -v state-dump "$file" | tail -n 15
    done
}
