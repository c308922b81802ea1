#!/usr/bin/env bash
# Ends the Ray that this project started on this machine, and no other: the mark is in the environment of its processes.
# If another Ray runs here, the script says so and fails, because both would hand out the same CPUs and GPUs.
set -uo pipefail
mark=TUNER_RAY=$(cd "$(dirname "$0")/.." && pwd)

ours() { grep -lzxF "$mark" /proc/[0-9]*/environ 2> /dev/null | cut -d/ -f3; }
others() { comm -23 <(grep -lxE 'raylet|gcs_server' /proc/[0-9]*/comm 2> /dev/null | cut -d/ -f3 | sort) <(ours | sort); }

for signal in TERM KILL; do
  for _ in $(seq 50); do
    pids=$(ours)
    [ -n "$pids" ] || break 2
    kill -$signal $pids 2> /dev/null
    sleep 0.2
  done
done

for pid in $(others); do
  echo "$(hostname): a Ray that this cluster did not start runs here ($(< "/proc/$pid/comm"), process $pid, user" \
    "$(stat -c %U "/proc/$pid")); stop it, or take this machine out of the cluster file" >&2
  exit 1
done
