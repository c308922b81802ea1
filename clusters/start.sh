#!/usr/bin/env bash
# Runs what it is given, a `ray start`, with our mark, after the Ray of ours that ran here has ended. Three times at the
# most: on a busy machine Ray gives its own processes 15 s, and its autoscaler never tries a machine again.
set -uo pipefail
folder=$(cd "$(dirname "$0")" && pwd)
unset OMP_NUM_THREADS # the launcher sets it to 1, and trials would inherit it
for _ in 1 2 3; do
  bash "$folder/release.sh" || exit
  TUNER_RAY=$(dirname "$folder") "$@" && exit
done
exit 1
