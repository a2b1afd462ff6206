#!/usr/bin/env bash
# Ends the SLURM below ROOT with all its jobs and whatever they left behind, and nothing else.
root=${1:?usage: stop.sh ROOT}

belongs() { # whether a process was started by a test or a job, or is a slurmstepd
  local environment=/proc/$1/environ
  grep -qsazE "=$root(/|$)" "$environment" || return 1
  grep -qsazE '^(TSPACE_TEST_SLURM|SLURM_JOB_ID)=' "$environment" ||
    grep -qsa '^slurmstepd: ' "/proc/$1/cmdline"
}

for file in "$root"/run/slurmctld.pid "$root"/run/slurmd.*.pid "$root"/run/munged.pid; do
  pid=$(cat "$file" 2>/dev/null) && kill -KILL "$pid" 2>/dev/null
done
for _ in $(seq 50); do
  left=
  for folder in /proc/[0-9]*; do
    pid=${folder#/proc/}
    if belongs "$pid" && kill -KILL "$pid" 2>/dev/null; then left="$left $pid"; fi
  done
  [ -z "$left" ] && exit 0
  sleep 0.1
done
echo "stop.sh: still alive:$left" >&2
exit 1
