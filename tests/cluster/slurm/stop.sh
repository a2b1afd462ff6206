#!/usr/bin/env bash
# Cancels all jobs of the SLURM below ROOT and stops its daemons, and no others.
root=${1:?usage: stop.sh ROOT}
. "$root/env.sh"
scancel --user root 2>/dev/null
for _ in $(seq 100); do
  [ -z "$(squeue --noheader --states running,completing,pending 2>/dev/null)" ] && break
  sleep 0.1
done
for daemon in slurmd slurmctld munged; do
  pid=$(cat "$root/run/$daemon.pid" 2>/dev/null) || continue
  kill "$pid" 2>/dev/null || continue
  for _ in $(seq 100); do
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
done
