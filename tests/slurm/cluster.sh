#!/usr/bin/env bash
# A real Slurm of one node for tests, in a folder of its own: munged, slurmctld and slurmd, with ports, socket and key
# that no other Slurm of the machine uses. Needs root and the packages slurm-wlm and munge.
#
#   cluster.sh start DIR    starts it
#   cluster.sh stop DIR     ends its jobs, its daemons and whatever they left; DIR stays, with the logs
#
# Commands reach it with SLURM_CONF=DIR/slurm.conf in their environment.
set -uo pipefail

die() {
    printf 'cluster.sh: %s\n' "$@" >&2
    exit 4
}

# start_daemon NAME COMMAND...: starts a daemon that puts itself into the background.
start_daemon() {
    local name=$1
    shift
    "$@" >>"$dir/log/$name.out" 2>&1 </dev/null || die "$name does not start: see $dir/log" "$(tail -n 3 "$dir/log/$name.out")"
}

# wait_for SECONDS COMMAND...: until the command succeeds.
wait_for() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.2
    done
}

free_ports() {
    python3 - <<'END'
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(s.getsockname()[1] for s in sockets))
END
}

write_conf() {
    local host controller_port node_port
    host=$(hostname -s)
    read -r controller_port node_port < <(free_ports)
    cat >"$dir/slurm.conf" <<END
ClusterName=hetlora-test
SlurmctldHost=$host(127.0.0.1)
# PMIx keeps a folder in /tmp by the number of job and step: no two clusters of a machine may count the same jobs.
FirstJobId=$((controller_port * 100))
SlurmctldPort=$controller_port
SlurmdPort=$node_port
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire (5 at least) is also how long a requeued job waits before it starts again: 120 s on ordinary clusters.
AuthInfo=socket=$dir/munge.socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/log/slurmctld
SlurmdLogFile=$dir/log/slurmd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,sched_min_interval=0,batch_sched_delay=0,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=20
UnkillableStepTimeout=10
MinJobAge=300
MessageTimeout=60
SlurmdParameters=config_overrides
ReturnToService=2
MailProg=/bin/true
# More CPUs than the machine may have: the tests are about starting and ending, not about speed.
NodeName=$host NodeAddr=127.0.0.1 CPUs=4 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=$host MaxTime=INFINITE State=UP PriorityTier=10
END
    # Nothing here uses cgroups. The plugin for version 2 would want systemd, which containers seldom have.
    echo "CgroupPlugin=cgroup/v1" >"$dir/cgroup.conf"
}

start() {
    [ "$(id -u)" = 0 ] || die "only root can start slurmd"
    command -v slurmctld slurmd munged scontrol >/dev/null || die "slurmctld, slurmd or munged is not installed: apt-get install slurm-wlm munge"
    [ ! -e "$dir/slurm.conf" ] || die "$dir holds a Slurm already"
    mkdir -p "$dir"/{log,state,spool} || die "cannot write to $dir"
    chmod 755 "$dir"
    dd if=/dev/urandom of="$dir/munge.key" bs=128 count=1 status=none
    chmod 400 "$dir/munge.key"
    write_conf
    export SLURM_CONF=$dir/slurm.conf
    trap 'stop' ERR EXIT
    start_daemon munged munged --force --num-threads=2 --socket="$dir/munge.socket" --key-file="$dir/munge.key" \
        --pid-file="$dir/munged.pid" --log-file="$dir/log/munged" --seed-file="$dir/munge.seed"
    start_daemon slurmctld slurmctld -c -f "$dir/slurm.conf"
    start_daemon slurmd slurmd -c -f "$dir/slurm.conf" -N "$(hostname -s)"
    wait_for 60 node_is_idle || die "the node did not become idle: $(sinfo -h -o '%T %E' 2>&1): see $dir/log"
    trap - ERR EXIT
}

node_is_idle() { [ "$(sinfo -h -o %T 2>/dev/null | sort -u)" = idle ]; }

# Processes that have this Slurm's slurm.conf in their environment: its daemons, its jobs and their steps.
processes() {
    local file pid
    for file in /proc/[0-9]*/environ; do
        pid=${file#/proc/}
        pid=${pid%/environ}
        [ "$pid" != $$ ] || continue
        if tr '\0' '\n' 2>/dev/null <"$file" | grep -qxF "SLURM_CONF=$dir/slurm.conf"; then echo "$pid"; fi
    done
}

nothing_left() { [ -z "$(squeue -h 2>/dev/null)" ]; }

end_process() {  # file with a process id
    local pid
    pid=$(cat "$1" 2>/dev/null) || return 0
    kill "$pid" 2>/dev/null || return 0
    wait_for 10 process_is_gone "$pid" || kill -KILL "$pid" 2>/dev/null
}

process_is_gone() { ! kill -0 "$1" 2>/dev/null; }

stop() {
    trap - ERR EXIT
    export SLURM_CONF=$dir/slurm.conf
    if [ -s "$dir/slurmctld.pid" ] && timeout 10 scontrol ping >/dev/null 2>&1; then
        # KILL at once, to steps and batch scripts: nothing may requeue itself now.
        timeout 10 scancel --state=PENDING --user=root 2>/dev/null
        timeout 10 scancel --full --signal=KILL --user=root 2>/dev/null
        timeout 10 scancel --user=root 2>/dev/null
        wait_for 15 nothing_left
    fi
    end_process "$dir/slurmctld.pid"
    end_process "$dir/slurmd.pid"
    local pid
    for pid in $(processes); do
        case $(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline") in
            *munged*) ;;
            *) is_ours "$pid" && kill -KILL "$pid" 2>/dev/null ;;
        esac
    done
    end_process "$dir/munged.pid"
    return 0
}

# Never this script's own ancestors: a shell or a test that exported SLURM_CONF.
is_ours() {
    local ancestor=$$
    while [ "${ancestor:-0}" -gt 1 ]; do
        [ "$ancestor" != "$1" ] || return 1
        ancestor=$(awk '/^PPid:/ {print $2}' "/proc/$ancestor/status" 2>/dev/null)
    done
    return 0
}

[ $# = 2 ] || die "usage: cluster.sh start|stop DIR"
verb=$1
mkdir -p "$2" && dir=$(cd -- "$2" && pwd) || die "no folder $2"
case $verb in
    start) start ;;
    stop) stop ;;
    *) die "unknown verb $verb: start or stop" ;;
esac
