#!/usr/bin/env bash
# `ray up` runs this script on every machine before Ray starts. It makes an environment that has the project installed,
# and puts this environment and the settings (`name: value` lines on standard input) into every shell. A second run takes
# a second.
set -euo pipefail
declare -A settings=([python]=python3 [mlflow]=127.0.0.1:5000 [mlflow_store]=sqlite)
while read -r name value _comment; do settings[${name%:}]=$(printf %q "$value"); done
: "${settings[storage]:?setup.sh: the settings lack storage}"

project=$(cd "$(dirname "$0")/.." && pwd)
own=~/.video-tuner
mkdir -p "$own" && chmod 700 "$own"

# The named Python if the project is installed in it already; else our own environment.
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

# Ray's token for this cluster; nobody runs anything without it. The workers have the head's token already.
[ -s "$own/auth_token" ] || (umask 077; "$bin/python" -c 'import secrets; print(secrets.token_hex(32), end="")' > "$own/auth_token")

cat > "$own/environment" << EOF
# Written by $project/clusters/setup.sh
export PATH=$bin:\$PATH PYTHONPATH=$project
export TUNER_STORAGE=${settings[storage]}
export MLFLOW_TRACKING_URI=http://${settings[mlflow]} TUNER_MLFLOW_STORE=${settings[mlflow_store]}
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$own/auth_token
EOF
# At the top of ~/.bashrc, which Ray's launcher reads before each of its commands: many ~/.bashrc files return early.
line='. ~/.video-tuner/environment'
touch ~/.bashrc
grep -qxF "$line" ~/.bashrc || sed -i "1{h;s|.*|$line|;G}" ~/.bashrc
grep -qxF "$line" ~/.bashrc || echo "$line" > ~/.bashrc # the file was empty
