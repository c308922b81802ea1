#!/usr/bin/env bash
# Runs its arguments, a `ray start` command, with our mark, after it has ended the Ray that we started here before. It
# tries three times: Ray gives its own processes 15 s, which a busy machine may exceed, and Ray's autoscaler never tries a
# machine again.
set -uo pipefail
folder=$(cd "$(dirname "$0")" && pwd)
unset OMP_NUM_THREADS # Ray's launcher sets it to 1, and trials would inherit that
for _ in 1 2 3; do
  bash "$folder/release.sh" || exit
  TUNER_RAY=$(dirname "$folder") "$@" && exit
done
exit 1
