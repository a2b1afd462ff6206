#!/usr/bin/env bash
# Starts a SLURM of two nodes on this machine below ROOT: munged, slurmctld, two slurmd, as root.
#   tests/cluster/slurm/start.sh ROOT && . ROOT/env.sh
# ROOT should be a short path: the name of a socket has at most 107 characters.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=${1:?usage: start.sh ROOT}
export PATH=$PATH:/usr/sbin

mkdir -p "$root"/{bin,run,log,state,spool/n1,spool/n2}
chmod 755 "$root" "$root"/{bin,run,log}
read -r ctld_port n1_port n2_port < <(python3 - <<'PY'
import socket
free = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(s.getsockname()[1] for s in free))
PY
)
sed -e "s|@ROOT@|$root|g" -e "s|@HOST@|$(hostname -s)|g" -e "s|@CTLD_PORT@|$ctld_port|g" \
  -e "s|@N1_PORT@|$n1_port|g" -e "s|@N2_PORT@|$n2_port|g" \
  "$here/slurm.conf.in" >"$root/slurm.conf"

# Snakemake's plugin drops SLURM_CONF from the environment of a job, so the commands carry it.
for command in srun sbatch squeue scancel scontrol sinfo; do
  printf '#!/bin/sh\nSLURM_CONF=%s exec %s "$@"\n' "$root/slurm.conf" "$(command -v "$command")" \
    >"$root/bin/$command"
  chmod +x "$root/bin/$command"
done
printf 'export SLURM_CONF=%s PATH=%s:$PATH:/usr/sbin\n' "$root/slurm.conf" "$root/bin" >"$root/env.sh"
. "$root/env.sh"

wait_for() {
  local _
  for _ in $(seq 300); do
    if "$@" >/dev/null 2>&1; then return 0; fi
    sleep 0.1
  done
  echo "start.sh: gave up waiting for: $*; the ends of the logs in $root/log:" >&2
  tail -n 5 "$root"/log/* >&2
  return 1
}
nodes_are_idle() { [ "$(sinfo --noheader --Node --format %T | sort -u)" = idle ]; }

(umask 077 && head -c 1024 /dev/urandom >"$root/run/munge.key")
munged --force --socket "$root/run/munge.socket" --key-file "$root/run/munge.key" \
  --pid-file "$root/run/munged.pid" --log-file "$root/log/munged.log" \
  --seed-file "$root/run/munged.seed" 2>>"$root/log/munged.err"
wait_for test -S "$root/run/munge.socket"
slurmctld -i
wait_for scontrol ping
for node in n1 n2; do slurmd -N "$node"; done
wait_for nodes_are_idle
