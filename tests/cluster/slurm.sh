#!/bin/bash
# A real Slurm of one node on this machine: slurm.sh start | stop
#
# For root on Debian or Ubuntu. `start` prints the path of its slurm.conf: commands with SLURM_CONF
# set to it use this Slurm, whose ports and munge socket are its own. It ends with 77 where this
# cannot be: not root, no packages, or another Slurm runs here. `stop` leaves nothing behind, nor
# does it mind what a killed `start` left.
set -euo pipefail

folder=${TMPDIR:-/tmp}/charrnn-slurm
export SLURM_CONF=$folder/slurm.conf
daemons=(slurmd slurmctld munged)

cannot() {
  echo "no Slurm here: $*" >&2
  exit 77
}

is_alive() { # PID NAME; one that nobody has waited for is not
  grep -qsE "^$1 \($2\) [^Z]" "/proc/$1/stat"
}

pid_of() { # NAME: of the daemon that this script started
  local pid
  pid=$(cat "$folder/$1.pid" 2>/dev/null) && is_alive "$pid" "$1" && echo "$pid"
}

have_programs() {
  local program
  for program in slurmctld slurmd sbatch munged; do
    command -v "$program" >/dev/null || return 1
  done
}

stop() {
  local daemon pid
  if pid_of slurmctld >/dev/null; then
    timeout 5 scancel --quiet --user="$(id -un)" || true
    for _ in {1..60}; do # a job gets KillWait seconds to end by itself
      [ -z "$(timeout 5 squeue --noheader || true)" ] && break
      sleep 0.5
    done
  fi
  for daemon in "${daemons[@]}"; do
    pid=$(pid_of "$daemon") || continue
    kill "$pid"
    for _ in {1..50}; do is_alive "$pid" "$daemon" && sleep 0.1; done
    ! is_alive "$pid" "$daemon" || kill -KILL "$pid"
  done
  rm -rf "$folder"
}

start() {
  [ "$(id -u)" = 0 ] || cannot "not root"
  stop
  ! grep -qsE "^[0-9]+ \((slurmd|slurmctld)\) [^Z]" /proc/[0-9]*/stat || cannot "another one runs"
  if ! have_programs; then
    command -v apt-get >/dev/null || cannot "slurmctld, slurmd, slurm-client, munge are missing"
    { apt-get -qq update &&
      DEBIAN_FRONTEND=noninteractive apt-get -qq install -y \
        slurmctld slurmd slurm-client munge; } >&2 || cannot "its packages cannot be installed"
  fi
  mkdir -m 755 "$folder" "$folder/state" "$folder/spool"
  head -c 128 /dev/urandom >"$folder/munge.key"
  chmod 400 "$folder/munge.key"
  host=$(hostname -s)
  megabytes=$(awk "/MemTotal/ {print int(\$2 / 2048)}" /proc/meminfo)
  echo "Name=gpu File=/dev/null,/dev/zero" >"$folder/gres.conf" # what counts as cards
  cat >"$SLURM_CONF" <<CONF
ClusterName=charrnn
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=26817
SlurmdPort=26818
SlurmUser=root
AuthType=auth/munge
# A requeued job waits until the credentials of its first run have expired.
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=10
ReturnToService=2
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$megabytes Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=60 PriorityTier=1 GraceTime=20 State=UP
PartitionName=urgent Nodes=ALL MaxTime=60 PriorityTier=2 State=UP
CONF
  # Nothing may keep our caller's output open.
  {
    munged --socket="$folder/munge.socket" --key-file="$folder/munge.key" \
      --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/seed"
    slurmctld -c
    slurmd
  } </dev/null >"$folder/start.log" 2>&1 || { cat "$folder/start.log" >&2; stop; exit 1; }
  for _ in {1..100}; do
    if [ "$(timeout 5 sinfo --noheader --format=%T --partition=main 2>/dev/null)" = idle ]; then
      echo "$SLURM_CONF"
      return
    fi
    sleep 0.2
  done
  tail -n 20 "$folder"/*.log >&2
  stop
  exit 1
}

case ${1:-} in
  start | stop) "$1" ;;
  *) echo "usage: $0 start|stop" >&2; exit 2 ;;
esac
