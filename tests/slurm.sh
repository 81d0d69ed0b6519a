#!/usr/bin/env bash
# A Slurm of one node on loopback, for tests: `slurm.sh start FOLDER`, `slurm.sh stop FOLDER`. Debian, as root.
set -euo pipefail
folder=$2
export SLURM_CONF=$folder/slurm.conf

start() {
    { command -v slurmctld && command -v munged && command -v slurmd; } > "$folder/apt.log" 2>&1 ||
        { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends slurm-wlm munge; } > "$folder/apt.log" 2>&1 ||
        { tail -n 5 "$folder/apt.log" >&2; exit 3; }
    mkdir -p "$folder"/{state,spool,munge}
    chmod 755 "$folder" "$folder/munge"
    head -c 1024 /dev/urandom > "$folder/munge.key"
    chmod 600 "$folder/munge.key"
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge/socket" --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/munge.seed" 2> "$folder/munged.err"
    cat > "$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0
SchedulerTimeSlice=5
ReturnToService=2
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MpiDefault=none
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=$(getconf _NPROCESSORS_ONLN) State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=5
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
CONF
    slurmctld
    slurmd
    for _ in $(seq 50); do
        sinfo --noheader --format=%t 2> /dev/null | grep -q idle && return
        sleep .2
    done
    tail -n 5 "$folder"/slurm*.log >&2
    exit 3
}

stop() {
    scancel --user="$(id -un)" || true
    for _ in $(seq 50); do
        [ -z "$(squeue --noheader 2> /dev/null)" ] && break
        sleep .2
    done
    for program in slurmd slurmctld munged; do
        [ -f "$folder/$program.pid" ] && kill "$(cat "$folder/$program.pid")" 2> /dev/null || true
    done
}

"$1"
