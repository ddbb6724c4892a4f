#!/usr/bin/env bash
# The command that the project is for, on three hosts that are namespaces of this machine (hosts.sh); as root:
#
#   tests/end_to_end/ray_submit.sh [submit [partition] [death]]      all three phases where none is named
#   PYTHON=…  the Python with gradinversion and Ray installed (default: the checkout's .venv)
#
# submit     `ray up` with cluster/local.yaml, `ray submit … run.py -- key=value`; the report is on the head
# partition  a worker loses its link and the laptop goes; Ray gives the worker up; the link is mended
# death      a worker is killed
#
# After each fault the images must be bit-equal to those of `submit`. Needs no Internet. Any missed expectation ends
# it with a status other than 0 and the hosts' logs.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
checkout=$(cd "$here/../.." && pwd)
# shellcheck source=tests/end_to_end/hosts.sh
source "$here/hosts.sh"

PYTHON=$(realpath --no-symlinks "${PYTHON:-$checkout/.venv/bin/python}")
mapfile -t SHOWN < <("$PYTHON" -c 'import sys; print(sys.prefix, sys.base_prefix, sep="\n")'; echo "$checkout")
own_machine "$@"

readonly HEAD=head WORKERS=(worker1 worker2)
readonly HEAD_ADDRESS=10.77.0.10 WORKER_ADDRESSES=(10.77.0.11 10.77.0.12)
readonly CLUSTER=$SETUP/cluster.yaml
# One agent fills a host's only CPU, so two agents use two hosts and the third is spare.
readonly ATTACK=(agents.count=2 agents.cpus=1 agents.threads=1 agents.iterations=600 coordinator.period=50)

fail() {
    echo "FAIL: $*" >&2
    exit 1
}

pass() { printf 'PASS (%3d s): %s\n' "$SECONDS" "$*"; }

# wait_until WHAT COMMAND…: the command is tried until it succeeds, however long a busy machine takes. In vain only
# without the head's Ray, once there was one: nothing happens without it. A hang is ended by whoever began this.
wait_until() {
    local what=$1
    shift
    until "$@"; do
        ! is_lost || fail "the head's Ray is gone; waited in vain until $what"
        sleep 0.2
    done
}

is_up=no
is_lost() { [[ $is_up == yes ]] && has_no "$HEAD" "*/gcs_server *"; }

at_exit() {
    local status=$?
    if ((status)); then
        tail -n 40 "$SETUP"/*.out || true
        for host in "$HEAD" "${WORKERS[@]}"; do host_logs "$host" || true; done
        echo "FAIL: status $status after $SECONDS s" >&2
    fi
}

agents_on() { processes_on "$1" "ray::Agent*"; }

hosts_with_agents() {
    local host
    for host in "$HEAD" "${WORKERS[@]}"; do
        [[ -z $(agents_on "$host") ]] || echo "$host"
    done
}

# The shipped cluster/local.yaml with this network's addresses and small hosts; the environment is there already.
write_cluster() {
    "$PYTHON" - "$checkout/cluster/local.yaml" "$CLUSTER" "$SSH_KEY" "$HEAD_ADDRESS" "${WORKER_ADDRESSES[@]}" <<'PYTHON'
import sys
import yaml

shipped, derived, key, head, *workers = sys.argv[1:]
with open(shipped) as file:
    cluster = yaml.safe_load(file)
cluster["provider"] |= {"head_ip": head, "worker_ips": workers}
cluster["auth"] |= {"ssh_user": "root", "ssh_private_key": key}
installs = [command for command in cluster["setup_commands"] if "pip install" in command]
assert len(installs) == 1, installs
# What would be installed must have arrived, and a virtual environment must not.
arrived = "cd ~/gradinversion && test -f pyproject.toml -a ! -e .venv -a ! -e .git"
cluster["setup_commands"] = [arrived if command in installs else command for command in cluster["setup_commands"]]
small = " --num-cpus=1 --object-store-memory=104857600"
# A worker that answers again is started again at once.
quick = "export AUTOSCALER_UPDATE_INTERVAL_S=2 AUTOSCALER_HEARTBEAT_TIMEOUT_S=10; "
for role in ("head", "worker"):
    commands = cluster[f"{role}_start_ray_commands"]
    started = [command for command in commands if "ray start" in command]
    assert started and all("RAY_AUTH_MODE=token" in command for command in started), commands
    assert any("ray stop" in command for command in commands), commands
    cluster[f"{role}_start_ray_commands"] = [
        quick + command.replace("ray start", "ray start" + small) if command in started else command
        for command in commands
    ]
with open(derived, "w") as file:
    yaml.safe_dump(cluster, file)
PYTHON
}

prepare() {
    export PATH=${PYTHON%/*}:$PATH
    # With the autoscaler's second version only one of two workers joins a cluster of the local provider.
    export RAY_UP_enable_autoscaler_v2=0 RAY_USAGE_STATS_ENABLED=0 TERM=dumb
    echo "export PATH=${PYTHON%/*}:\$PATH RAY_USAGE_STATS_ENABLED=0" >"$SETUP/bashrc"
    mkdir "$HOME/.ray"
    # As cluster/local.yaml says.
    (umask 077 && ray get-auth-token --generate >/dev/null 2>&1)
    write_cluster
    make_hosts "$HEAD" "$HEAD_ADDRESS" "${WORKERS[0]}" "${WORKER_ADDRESSES[0]}" "${WORKERS[1]}" "${WORKER_ADDRESSES[1]}"
    local host
    for host in "$HEAD" "${WORKERS[@]}"; do wait_until "sshd of $host listens" answers "$host"; done
    cd "$checkout"
}

answers() { (exec 3<>"/dev/tcp/$1/22") 2>/dev/null; }

start_cluster() {
    local bystander
    # `ray stop`, run on every host, ends whatever has these words in its command line, if it can see it.
    (exec -a "ray::bystander raylet gcs_server" sleep 3600) &
    bystander=$!
    ray up -y "$CLUSTER" >"$SETUP/up.out" 2>&1 </dev/null || fail "ray up failed"
    is_up=yes
    wait_until "both workers have joined" has_hosts 3
    kill -0 "$bystander" 2>/dev/null || fail "ray stop on a host ended a process outside the host"
    pass "ray up: three hosts, each seeing its own processes alone"
    ! RAY_AUTH_MODE=disabled ray status --address="$HEAD_ADDRESS:6379" >"$SETUP/stranger.out" 2>&1 ||
        fail "the cluster answered without its token"
    pass "the cluster answers nobody without its token"
}

# A host has one CPU in Ray's eyes.
has_hosts() {
    RAY_AUTH_MODE=token ray status --address="$HEAD_ADDRESS:6379" >"$SETUP/status.out" 2>&1 || return 1
    grep -q "/$1.0 CPU" "$SETUP/status.out"
}

# A run named $1, seen by a viewer with the process group $viewer.
begin() {
    local host
    for host in "$HEAD" "${WORKERS[@]}"; do
        wait_until "no agent of an earlier run is left on $host" has_no "$host" "ray::Agent*"
    done
    setsid ray submit "$CLUSTER" run.py -- "out=$SHARED/$1" "${ATTACK[@]}" >"$SETUP/$1.out" 2>&1 </dev/null &
    viewer=$!
}

# The last round of a run whose checkpoint is whole; -1 before the first.
saved_round() {
    local manifest round=-1
    for manifest in "$SHARED/$1"/checkpoints/round-*/manifest.json; do
        [[ ! -f $manifest ]] || round=$((10#$(basename "${manifest%/*}" | tr -cd 0-9)))
    done
    echo "$round"
}

has_passed() { (($(saved_round "$1") > $2)); }
has_gone_on() { has_passed "$@" || [[ -f $SHARED/$1/checkpoints/result.json ]]; }

wait_for_first_round() {
    wait_until "the first round of the run '$1' is saved" has_passed_or_ended "$1"
    has_passed "$1" -1 || fail "the run '$1' ended before its first round was saved"
}

has_passed_or_ended() { has_passed "$1" -1 || is_gone "$viewer"; }

require_report() {
    local name file
    for file in report.json report.html reconstruction.safetensors; do
        on_host "$HEAD" "test -s $SHARED/$1/$file" || fail "$file of the run '$1' is not on the head"
    done
    "$PYTHON" - "$SHARED/$1/report.json" <<'PYTHON' || fail "report.json of the run '$1' is not that of a whole run"
import json
import sys

with open(sys.argv[1]) as file:
    report = json.load(file)
assert report["outcome"] == "all steps done", report["outcome"]
assert report["agents"] == 2, report["agents"]
assert report["psnr_mean"] > report["constant_image_psnr"] + 3, (report["psnr_mean"], report["constant_image_psnr"])
PYTHON
    pass "$1: the report is on the head, and all steps are done"
}

require_same_images() {
    cmp "$SHARED/submit/reconstruction.safetensors" "$SHARED/$1/reconstruction.safetensors" ||
        fail "the images of the run '$1' differ from those of the undisturbed run"
    pass "$1: images bit-equal to those of the undisturbed run"
}

submit() {
    local hosts most=""
    begin submit
    while kill -0 "$viewer" 2>/dev/null; do
        hosts=$(hosts_with_agents | tr '\n' ' ')
        ((${#hosts} <= ${#most})) || most=$hosts
        sleep 0.2
    done
    wait "$viewer" || fail "ray submit failed"
    (($(wc -w <<<"$most") >= 2)) || fail "agents ran on '$most', not on two hosts"
    pass "submit: agents ran on $most"
    require_report submit
}

# A worker with an agent, and the host without one: where the agent will have to go.
choose_victim() {
    local host
    victim="" spare=""
    for host in "$HEAD" "${WORKERS[@]}"; do
        if [[ -z $(agents_on "$host") ]]; then spare=$host; elif [[ $host != "$HEAD" ]]; then victim=$host; fi
    done
    [[ -n $victim && -n $spare ]] || fail "expected agents on two hosts: $(hosts_with_agents)"
}

has_agent() { [[ -n $(agents_on "$1") ]]; }
is_gone() { ! kill -0 "$1" 2>/dev/null; }
has_no() { [[ -z $(processes_on "$1" "$2") ]]; }

partition() {
    local stale since
    begin partition
    wait_for_first_round partition
    # In sync mode the run waits for the agent that is cut off, so it cannot end too early for what follows.
    choose_victim
    stale=$(agents_on "$victim")
    cut_link "$victim"
    since=$SECONDS
    # The laptop is closed.
    kill -KILL -- "-$viewer"
    wait "$viewer" 2>/dev/null || true
    wait_until "the viewer is gone" has_no "$HEAD" "*run.py*"
    wait_until "the agent of $victim is started again on $spare" has_agent "$spare"
    kill -0 "$stale" || fail "the agent on $victim should be alive and cut off"
    mend_link "$victim"
    pass "partition: the agent of $victim moved to $spare in $((SECONDS - since)) s while the old one was alive"
    wait_until "the run goes on alone" has_gone_on partition "$(saved_round partition)"
    pass "partition: the run goes on without the laptop"
    ray submit "$CLUSTER" run.py -- watch "out=$SHARED/partition" >"$SETUP/watch.out" 2>&1 </dev/null ||
        fail "run.py watch failed"
    require_report partition
    require_same_images partition
    wait_until "the old agent on $victim is gone" is_gone "$stale"
    wait_until "$victim joins again" has_hosts 3
    pass "partition: the old agent is gone, and $victim has joined again"
}

death() {
    local since
    begin death
    wait_for_first_round death
    choose_victim
    kill_host "$victim"
    since=$SECONDS
    wait_until "the agent of $victim is started again on $spare" has_agent "$spare"
    pass "death: the agent of $victim moved to $spare in $((SECONDS - since)) s"
    wait "$viewer" || fail "ray submit failed"
    require_report death
    require_same_images death
}

trap at_exit EXIT
prepare
start_cluster
(($#)) || set -- submit partition death
for phase in "$@"; do "$phase"; done
