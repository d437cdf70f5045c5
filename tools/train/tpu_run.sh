#!/usr/bin/env bash
# On a TPU VM, in each of its machines: train, and keep the run's folder and log in a bucket. tpu.sky.yaml and tpu_vm.sh
# call it.
#
#     tpu_run.sh install
#     tpu_run.sh train gs://BUCKET/RUN CONFIG KEY=VALUE ...
#     tpu_run.sh start gs://BUCKET/RUN CONFIG KEY=VALUE ...   # the same in the background, unless it runs already
#     tpu_run.sh stop
#     tpu_run.sh status                                       # running, exit CODE, or none
#
# `train` ends with the exit code of `dalle-mini train`, or with 74: done, and the last copy to the bucket failed.
# ~/run has out/ (the run's folder), and of `start` train.log, pid and exit_code; ~/run/env has variables for the run.
set -euo pipefail

NOT_COPIED=74 # EX_IOERR
run=$HOME/run
uv=$HOME/.local/bin/uv

install() {
  # The VM's own Python is older than what the package needs.
  [ -x "$uv" ] || python3 -m pip install --quiet --user uv
  [ -x "$HOME/venv/bin/python" ] || "$uv" venv --quiet --python 3.12 "$HOME/venv"
  "$uv" pip install --quiet --python "$HOME/venv/bin/python" -r requirements-tpu.txt wandb
  touch "$run/installed"
}

train() { # BUCKET CONFIG OVERRIDES...
  local bucket=$1 config=$2 code=0 pid
  shift 2
  if [ -f "$run/env" ]; then
    set -a
    # shellcheck disable=SC1091
    . "$run/env"
    set +a
  fi
  restore "$bucket" || return 1
  # 30 s are left when the VM is taken away.
  "$HOME/venv/bin/dalle-mini" train "$config" --output "$run/out" --resume auto --distributed \
    "loop.checkpoints=$bucket/checkpoints" loop.grace_seconds=28 "$@" &
  pid=$!
  trap 'kill -TERM "$pid" 2> /dev/null || true' TERM # it saves: stay until it has
  while kill -0 "$pid" 2> /dev/null; do
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12; do
      kill -0 "$pid" 2> /dev/null && sleep "${SYNC_PAUSE:-5}"
    done
    copy "$bucket" || true
  done
  wait "$pid" || code=$?
  copy_at_last "$bucket" || { [ "$code" -ne 0 ] || code=$NOT_COPIED; }
  return "$code"
}

restore() { # BUCKET: what an earlier VM left there. Without it the next copy would overwrite the log's beginning
  local answer
  mkdir -p "$run/out"
  if answer=$(gcloud storage ls "$1/out/" 2>&1); then
    gcloud storage rsync --recursive "$1/out" "$run/out"
  elif ! grep -qi 'matched no objects' <<< "$answer"; then
    echo "$answer"
    return 1
  fi
}

copy() { # BUCKET
  local log=$run/train.log worker=${SKYPILOT_NODE_RANK:-}
  [ -n "$worker" ] || worker=$(hostname | sed -n 's/.*-w-\([0-9]*\)$/\1/p')
  if [ "${worker:-0}" != 0 ]; then # the run's folder is the first worker's
    [ ! -f "$log" ] || gcloud storage cp "$log" "$1/train-$worker.log" 2> /dev/null
    return
  fi
  gcloud storage rsync --recursive --exclude='^checkpoints/' "$run/out" "$1/out" 2> /dev/null &&
    { [ ! -f "$log" ] || gcloud storage cp "$log" "$1/train.log" 2> /dev/null; }
}

copy_at_last() { # BUCKET: with patience, for the weights are in it
  local left=12
  until copy "$1"; do
    left=$((left - 1))
    echo "copying to $1 failed; $left more chances"
    [ "$left" -gt 0 ] || return 1
    sleep "${SYNC_PAUSE:-5}"
  done
}

start() {
  [ "$(status)" != running ] || { echo "already running" && return; }
  rm -f "$run/exit_code"
  nohup setsid bash tools/train/tpu_run.sh background "$@" >> "$run/train.log" 2>&1 < /dev/null &
  echo $! > "$run/pid"
}

background() {
  local code=0
  echo $$ > "$run/pid"
  bash tools/train/tpu_run.sh train "$@" || code=$?
  echo "$code" > "$run/exit_code.tmp"
  mv "$run/exit_code.tmp" "$run/exit_code" # whole when it is seen
}

stop() {
  local pid
  [ "$(status)" = running ] || return 0
  pid=$(cat "$run/pid")
  kill -TERM -- "-$pid" 2> /dev/null || true # with all it started: it leads a session
  for _ in $(seq 150); do
    [ "$(status)" = running ] || return 0
    sleep 1
  done
  kill -KILL -- "-$pid" 2> /dev/null || true
}

status() { # none: never started, or the machine was started anew
  local pid
  if [ -f "$run/exit_code" ]; then
    echo "exit $(cat "$run/exit_code")"
    return
  fi
  pid=$(cat "$run/pid" 2> /dev/null || true)
  if [ -n "$pid" ] && grep -qs tpu_run "/proc/$pid/cmdline"; then echo running; else echo none; fi
}

cd "$(dirname "$0")/../.."
mkdir -p "$run"
case "${1:-}" in
  install | train | start | background | stop | status) "$@" ;;
  *)
    sed -n "2,/^set/{/^#/s/^# \\{0,1\\}//p}" tools/train/tpu_run.sh >&2
    exit 2
    ;;
esac
