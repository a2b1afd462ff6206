#!/usr/bin/env bash
# Starts a SLURM of one machine below ROOT: munged, slurmctld and slurmd, as root.
#   tests/cluster/slurm/start.sh ROOT && . ROOT/env.sh
# ROOT should be a short path: the name of a socket has at most 107 characters.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=${1:?usage: start.sh ROOT}
cpus=${CPUS:-4} memory=${MEMORY:-16000}
export PATH=$PATH:/usr/sbin

mkdir -p "$root"/{bin,run,log,state,spool}
chmod 755 "$root" "$root"/{bin,run,log}
read -r ctld_port slurmd_port < <(python3 - <<'PY'
import socket
free = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(s.getsockname()[1] for s in free))
PY
)
sed -e "s|@ROOT@|$root|g" -e "s|@HOST@|$(hostname -s)|g" -e "s|@CPUS@|$cpus|g" \
  -e "s|@MEMORY@|$memory|g" -e "s|@CTLD_PORT@|$ctld_port|g" -e "s|@SLURMD_PORT@|$slurmd_port|g" \
  "$here/slurm.conf.in" >"$root/slurm.conf"

# Snakemake's plugin drops SLURM_CONF from the environment of a job, so the commands carry it.
for command in srun sbatch squeue scancel scontrol sinfo; do
  printf '#!/bin/sh\nSLURM_CONF=%s exec %s "$@"\n' "$root/slurm.conf" "$(command -v "$command")" \
    >"$root/bin/$command"
  chmod +x "$root/bin/$command"
done
printf 'export SLURM_CONF=%s PATH=%s:$PATH\n' "$root/slurm.conf" "$root/bin" >"$root/env.sh"
. "$root/env.sh"

wait_for() {
  local _
  for _ in $(seq 200); do
    if "$@" >/dev/null 2>&1; then return 0; fi
    sleep 0.1
  done
  echo "start.sh: gave up waiting for: $*; logs are in $root/log" >&2
  return 1
}
node_is_idle() { [ "$(sinfo --noheader --partition main --format %T)" = idle ]; }

(umask 077 && head -c 1024 /dev/urandom >"$root/run/munge.key")
munged --force --socket "$root/run/munge.socket" --key-file "$root/run/munge.key" \
  --pid-file "$root/run/munged.pid" --log-file "$root/log/munged.log" \
  --seed-file "$root/run/munged.seed" 2>>"$root/log/munged.err"
wait_for test -S "$root/run/munge.socket"
slurmctld -i
wait_for scontrol ping
slurmd -N n1
wait_for node_is_idle
