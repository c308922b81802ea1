#!/usr/bin/env bash
# Starts the cluster's MLflow server on this machine if it does not run yet; `mlflow_server.sh stop` ends it. Artifacts go
# through the server too, so one URI, MLFLOW_TRACKING_URI, is enough to write and to read.
set -euo pipefail
. ~/.video-tuner/environment
folder=~/.video-tuner/mlflow
mkdir -p "$folder"
exec 9> "$folder/lock" && flock 9

pid=$(cat "$folder/pid" 2> /dev/null || true)
runs() { [ -n "$pid" ] && grep -qsa mlflow "/proc/$pid/cmdline"; }
answers() { python -c "import urllib.request as r; r.urlopen('$MLFLOW_TRACKING_URI/health', timeout=5)" 2> /dev/null; }

if [ "${1:-}" = stop ]; then
  if runs; then kill -- "-$pid"; fi
  exit
fi

if ! runs; then
  address=${MLFLOW_TRACKING_URI#http://}
  # Given by the environment: a process list must not show the URI of the database.
  export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_BACKEND_STORE_URI=$TUNER_MLFLOW_STORE
  [ "$TUNER_MLFLOW_STORE" != sqlite ] || MLFLOW_BACKEND_STORE_URI=sqlite:///$folder/mlflow.db
  (umask 077; setsid nohup mlflow server --host "${address%:*}" --port "${address##*:}" --workers 1 \
    --serve-artifacts --artifacts-destination "$folder/artifacts" < /dev/null >> "$folder/log" 2>&1 9>&- &
    echo $! > "$folder/pid")
  pid=$(cat "$folder/pid")
fi
for _ in $(seq 120); do
  answers && { echo "MLflow: $MLFLOW_TRACKING_URI"; exit; }
  runs || break
  sleep 1
done
echo "MLflow does not answer at $MLFLOW_TRACKING_URI; the end of its log, $folder/log:" >&2
tail -n 5 "$folder/log" >&2
exit 1
