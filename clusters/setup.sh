#!/usr/bin/env bash
# What `ray up` runs on every machine before Ray starts: makes an environment that has the project, and puts it and
# the settings (standard input, `name: value` lines) into every shell. A second run takes a second.
set -euo pipefail
declare -A settings=([python]=python3 [mlflow]=127.0.0.1:5000 [mlflow_store]=sqlite)
while read -r name value _comment; do settings[${name%:}]=$(printf %q "$value"); done
: "${settings[storage]:?setup.sh: the settings lack storage}"

project=$(cd "$(dirname "$0")/.." && pwd)
own=~/.video-tuner
mkdir -p "$own" && chmod 700 "$own"

# The Python that was named, if the project is installed in it already; else an environment of our own.
has_project='import importlib.metadata as m; m.version("video-tuner")'
bin=$(dirname "$(command -v "${settings[python]}")")
if [ "$bin" = "$own/venv/bin" ] || ! "${settings[python]}" -c "$has_project" 2> /dev/null; then
  [ -x "$own/venv/bin/python" ] || "${settings[python]}" -m venv "$own/venv"
  bin=$own/venv/bin
  case ${settings[storage]} in s3://*) store=s3 ;; gs://*) store=gcs ;; *) store= ;; esac # the library for a bucket
  if ! sha256sum --check --status "$own/installed$store" 2> /dev/null; then
    "$bin/pip" install -q -e "$project${store:+[$store]}"
    sha256sum "$project/pyproject.toml" > "$own/installed$store"
  fi
fi

# A token of Ray's for this cluster: only who has it may run anything. Workers have the head's by now.
[ -s "$own/auth_token" ] || (umask 077; "$bin/python" -c 'import secrets; print(secrets.token_hex(32), end="")' > "$own/auth_token")

cat > "$own/environment" << EOF
# Written by $project/clusters/setup.sh
export PATH=$bin:\$PATH PYTHONPATH=$project
export TUNER_STORAGE=${settings[storage]}
export MLFLOW_TRACKING_URI=http://${settings[mlflow]} TUNER_MLFLOW_STORE=${settings[mlflow_store]}
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$own/auth_token
EOF
# First in ~/.bashrc, which the launcher reads before each of its commands: many a ~/.bashrc returns early.
line='. ~/.video-tuner/environment'
touch ~/.bashrc
grep -qxF "$line" ~/.bashrc || sed -i "1{h;s|.*|$line|;G}" ~/.bashrc
grep -qxF "$line" ~/.bashrc || echo "$line" > ~/.bashrc # it was empty
