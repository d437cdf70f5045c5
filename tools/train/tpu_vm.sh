#!/usr/bin/env bash
# Train on a TPU VM that may vanish at any minute, and go on until the run is done.
set -euo pipefail

usage() {
  cat <<'TEXT'
Train on a preemptible TPU VM: create it, install, start, watch, and all of that again whenever it is taken away.

    tools/train/tpu_vm.sh run --name mini --zone europe-west4-a --bucket gs://MY-BUCKET/mini \
        --config tools/train/configs/mini.yaml -- data.train=gs://MY-BUCKET/tokens
    tools/train/tpu_vm.sh run ... --dry-run        # prints every command, and runs none

Subcommands:
  run       create, install, start and watch; fetch the logs and delete the VM at the end
  create    ask for the VM and wait until it is there
  install   copy this repository (as committed) to it, and install it with requirements-tpu.txt
  start     begin or continue the run, in the background of the VM
  watch     look after the run: recreate the VM when it was taken away, start the run again when it stopped
  ssh       open a shell on the VM (what follows -- goes to gcloud)
  logs      fetch train.log, log.jsonl, report.html and config.json into ./NAME (or --logs FOLDER)
  delete    delete the VM

Options:
  --name NAME            of the VM, and of the queued resource
  --zone ZONE            such as europe-west4-a
  --project PROJECT      default: that of gcloud's configuration
  --bucket gs://B/RUN    where the run outlives the VM: its folder, its checkpoints and its log
  --config FILE          for dalle-mini train; a path in this repository
  --type TYPE            default: v3-8; of a pod, such as v4-32, every machine takes part
  --version VERSION      the VM's software; default: what goes with the type
  --spot                 taken away when others need it, with no limit in time (default)
  --preemptible          the same, and after 24 hours at the latest
  --on-demand            stays, and costs three times as much
  --queued               wait for a place in the queue (queued resources); not with --preemptible
  --env-file FILE        NAME=VALUE lines for the run's environment (WANDB_API_KEY ...); copied, never printed
  --interval SECONDS     between two looks; default: 60
  --retries N            how often a run that failed is started again; default: 3
  --keep                 leave the VM when the run is over, or has failed
  --logs FOLDER          where logs are fetched to; default: ./NAME
  --dry-run              print the commands, run none
  -- KEY=VALUE ...       overrides for dalle-mini train

The VM's service account must be allowed to write to the bucket. Files that are not committed do not come along: name
data that is in a bucket (dalle-mini encode writes there; each machine of a pod copies it to its disk, once) or on the Hub.

Exit codes: 0 the run is done, 2 the input is wrong or the run ended so, 74 it is done but its weights could not be copied and
are on the VM alone, which is kept, 130 interrupted (the run goes on without its watcher), 1 otherwise.
TEXT
}

fail() {
  echo "error: $*" >&2
  exit 2
}

say() { echo "$(date '+%H:%M:%S')  $*" >&2; }

# ---------------------------------------------------------------------------------------------------------------------
# On the VM: `tpu_vm.sh on-vm ...`, in every worker. ~/run holds the run: out/, train.log, pid, exit_code; its environment
# (env), and the marks `installed` and, in worker 0, `first`.

on_vm() {
  local what=$1
  shift
  mkdir -p "$HOME/run"
  case "$what" in
    install) vm_install ;;
    start) vm_start "$@" ;;
    stop) vm_stop ;;
    train) vm_train "$@" ;;
    status) vm_status ;;
    sync) vm_sync "$1" ;;
    *) fail "on-vm $what: no such thing" ;;
  esac
}

vm_install() {
  cd "$HOME/dalle-mini"
  # The VM's own Python is older than what the package needs.
  [ -x "$HOME/.local/bin/uv" ] || python3 -m pip install --quiet --user uv
  [ -x "$HOME/venv/bin/python" ] || "$HOME/.local/bin/uv" venv --quiet --python 3.12 "$HOME/venv"
  "$HOME/.local/bin/uv" pip install --quiet --python "$HOME/venv/bin/python" -r requirements-tpu.txt wandb
  touch "$HOME/run/installed"
}

vm_start() { # BUCKET CONFIG OVERRIDES...
  [ "$(vm_status)" != running ] || { echo "already running" && return; }
  rm -f "$HOME/run/exit_code"
  nohup setsid bash "$0" on-vm train "$@" >> "$HOME/run/train.log" 2>&1 < /dev/null &
  echo $! > "$HOME/run/pid"
}

# One worker's end is not always the others': what is left of the run must be gone before it starts again.
vm_stop() {
  local pid
  [ "$(vm_status)" = running ] || return 0
  pid=$(cat "$HOME/run/pid")
  kill -TERM -- "-$pid" 2> /dev/null || true # with all it started: it leads a session
  for _ in $(seq 150); do
    [ "$(vm_status)" = running ] || return 0
    sleep 1
  done
  kill -KILL -- "-$pid" 2> /dev/null || true
}

vm_train() { # BUCKET CONFIG OVERRIDES...
  local bucket=$1 config=$2 code=0 pid
  shift 2
  echo $$ > "$HOME/run/pid"
  cd "$HOME/dalle-mini"
  if [ -f "$HOME/run/env" ]; then
    set -a
    # shellcheck disable=SC1091
    . "$HOME/run/env"
    set +a
  fi
  vm_restore "$bucket" || { vm_end 1 && return; }
  # 30 s are left when the VM is taken away.
  "$HOME/venv/bin/dalle-mini" train "$config" --output "$HOME/run/out" --resume auto --distributed \
    "loop.checkpoints=$bucket/checkpoints" loop.grace_seconds=28 "$@" &
  pid=$!
  trap : TERM # the run is told too, and saves: stay until it has
  while kill -0 "$pid" 2> /dev/null; do
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12; do
      kill -0 "$pid" 2> /dev/null && sleep "${SYNC_PAUSE:-5}"
    done
    vm_sync "$bucket" || true
  done
  wait "$pid" || code=$?
  vm_last_sync "$bucket" || { [ "$code" -ne 0 ] || code=$NOT_COPIED; }
  vm_end "$code"
}

NOT_COPIED=74 # EX_IOERR: the run is done, and what it made is on the VM alone

vm_last_sync() { # BUCKET: with patience, for the weights are in it
  local left=12
  until vm_sync "$1"; do
    left=$((left - 1))
    echo "copying to $1 failed; $left more chances"
    [ "$left" -gt 0 ] || return 1
    sleep "${SYNC_PAUSE:-5}"
  done
}

vm_end() { # CODE, whole when it is seen
  echo "$1" > "$HOME/run/exit_code.tmp"
  mv "$HOME/run/exit_code.tmp" "$HOME/run/exit_code"
}

vm_restore() { # BUCKET: what an earlier VM left there. Without it the next copy would overwrite the log's beginning
  local answer
  mkdir -p "$HOME/run/out"
  if answer=$(gcloud storage ls "$1/out/" 2>&1); then
    gcloud storage rsync --recursive "$1/out" "$HOME/run/out"
  elif ! grep -qi 'matched no objects' <<< "$answer"; then
    echo "$answer"
    return 1
  fi
}

vm_sync() { # BUCKET
  if [ ! -e "$HOME/run/first" ]; then # the run's folder is worker 0's
    gcloud storage cp "$HOME/run/train.log" "$1/train-$(hostname).log" 2> /dev/null
    return
  fi
  [ -d "$HOME/run/out" ] || return 0
  gcloud storage rsync --recursive --exclude='^checkpoints/' "$HOME/run/out" "$1/out" 2> /dev/null &&
    gcloud storage cp "$HOME/run/train.log" "$1/train.log" 2> /dev/null
}

vm_status() { # running, exit CODE, or none: never started, or the machine was started anew
  local pid
  if [ -f "$HOME/run/exit_code" ]; then
    echo "exit $(cat "$HOME/run/exit_code")"
    return
  fi
  pid=$(cat "$HOME/run/pid" 2> /dev/null || true)
  if [ -n "$pid" ] && grep -qs tpu_vm "/proc/$pid/cmdline"; then echo running; else echo none; fi
}

# ---------------------------------------------------------------------------------------------------------------------
# Here.

shown() { # a command as one would type it
  local word line='' apostrophe="'" escaped="'\\''"
  for word in "$@"; do
    case "$word" in
      '' | *[!A-Za-z0-9_./:=,@%+~-]*) word="'${word//$apostrophe/$escaped}'" ;;
    esac
    line+="$word "
  done
  echo "${line% }"
}

do_it() { if [ "$dry_run" = yes ]; then shown "$@"; else "$@"; fi; }

cloud() { do_it gcloud "$@" "${place[@]}"; } # for this zone and project

vm() { cloud compute tpus tpu-vm "$@"; }

remote() { # WORKER COMMAND
  vm ssh "$name" --worker="$1" --quiet --command="$2"
}

on_all() { # on-vm's arguments
  remote all "bash $SCRIPT on-vm $(shown "$@")"
}

SCRIPT=dalle-mini/tools/train/tpu_vm.sh # from the home, where a shell on the VM begins
STATUS="if [ -e ~/run/installed ]; then bash $SCRIPT on-vm status; else echo bare; fi"

software() {
  case "$type" in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

# The VM's state in one word: READY, GONE (it is to be created anew), ABSENT (there is none), or WAITING (it will come
# to one of these by itself). A question that fails is a WAITING: it says nothing about the VM.
state() {
  local answer queue
  if [ "$queued" = yes ]; then
    queue=$(describe queued-resources 'state.state')
    case "$queue" in
      ABSENT | WAITING) echo "$queue" && return ;;
      SUSPENDED | FAILED) echo GONE && return ;;
      ACTIVE) ;;
      *) echo WAITING && return ;;
    esac
  fi
  answer=$(describe tpu-vm state)
  [ "$queued$answer" != yesABSENT ] || answer=STOPPED # its place in the queue is used up
  case "$answer" in
    READY | ABSENT | WAITING) echo "$answer" ;;
    PREEMPTED | TERMINATED | STOPPED | HIDDEN | UNKNOWN) echo GONE ;;
    *) echo WAITING ;;
  esac
}

describe() { # KIND FIELD
  local answer errors
  errors=$(mktemp)
  if answer=$(cloud compute tpus "$1" describe "$name" --format="value($2)" 2> "$errors"); then
    echo "$answer"
  elif grep -qi 'NOT_FOUND\|not found' "$errors"; then
    echo ABSENT
  else
    say "no answer: $(tail -n 1 "$errors")"
    echo WAITING
  fi
  rm -f "$errors"
}

create_once() {
  local answer
  local -a options=("--accelerator-type=$type")
  if [ "$queued" = yes ]; then
    [ "$kind" = on-demand ] || options+=(--spot)
    set -- compute tpus queued-resources create "$name" --node-id="$name" --runtime-version="$version" "${options[@]}"
  else
    [ "$kind" = on-demand ] || options+=("--$kind")
    set -- compute tpus tpu-vm create "$name" --version="$version" "${options[@]}"
  fi
  if [ "$dry_run" = yes ]; then
    cloud "$@" --quiet
  elif answer=$(cloud "$@" --quiet 2>&1); then
    return 0
  elif grep -q 'PERMISSION_DENIED\|UNAUTHENTICATED\|INVALID_ARGUMENT\|invalid choice\|unrecognized arguments' <<< "$answer"; then
    say "$answer"
    fail "the VM cannot be created: see above"
  else # no capacity, most often
    say "not created: $(tail -n 1 <<< "$answer")"
    return 1
  fi
}

create() {
  if [ "$dry_run" = yes ]; then
    create_once
    return
  fi
  while true; do
    case "$(state)" in
      READY) return ;;
      ABSENT)
        say "asking for $name, a $type"
        create_once || sleep "$interval"
        ;;
      GONE) delete || sleep "$interval" ;;
      *) sleep "$interval" ;;
    esac
  done
}

install() { # chained, since bash looks away from failures where a caller looks at them
  local folder code=0
  folder=$(mktemp -d)
  say "installing"
  do_it git -C "$root" archive --format=tar.gz --output="$folder/dalle-mini.tar.gz" HEAD &&
    vm scp "$folder/dalle-mini.tar.gz" "$name:dalle-mini.tar.gz" --worker=all --quiet &&
    remote all 'mkdir -p ~/dalle-mini ~/run && tar -xzf ~/dalle-mini.tar.gz -C ~/dalle-mini' &&
    remote 0 'touch ~/run/first' &&
    copy_environment &&
    on_all install || code=$?
  rm -rf "$folder"
  return "$code"
}

copy_environment() {
  [ -n "$env_file" ] || return 0
  remote all 'touch ~/run/env && chmod 600 ~/run/env' && vm scp "$env_file" "$name:run/env" --worker=all --quiet
}

start() {
  say "starting the run"
  on_all start "$bucket" "$config" ${overrides[@]+"${overrides[@]}"}
}

begin() { create && install && start; } # all that a new VM needs

restart() { on_all stop && start; }

watch() {
  local left=$retries code status
  if [ "$dry_run" = yes ]; then
    describe_dry_run
    return
  fi
  while true; do
    case "$(state)" in
      READY)
        # The first worker's is the run's: the processes stop together.
        status=$(remote 0 "$STATUS" 2> /dev/null | tail -n 1) || status=silent
        case "$status" in
          'exit 0')
            say "the run is done"
            return 0
            ;;
          "exit $NOT_COPIED")
            say "the run is done, but its weights could not be copied to $bucket: they are in ~/run/out of $name alone"
            return "$NOT_COPIED"
            ;;
          'exit 75' | none) # asked to stop, or the machine was started anew
            say "the run has stopped"
            restart || say "that failed; looking again"
            ;;
          exit*)
            code=${status#exit } # 2 too may pass: a bucket or the Hub that could not be reached
            if [ "$left" -eq 0 ]; then
              if [ "$code" -eq 2 ]; then
                say "the run cannot go on (wrong settings, a full disk, or a bad loss): see train.log"
                return 2
              fi
              say "the run failed with exit code $code, too often: see train.log"
              return 1
            fi
            left=$((left - 1))
            say "the run failed with exit code $code; $left more chances"
            restart || say "that failed; looking again"
            ;;
          bare) # whoever installed was interrupted, or the VM was
            if ! { install && start; }; then say "that failed; looking again"; fi
            ;;
          *) ;; # running, or no answer
        esac
        ;;
      GONE)
        say "the VM was taken away"
        if ! { delete && begin; }; then say "that failed; looking again"; fi
        ;;
      ABSENT)
        say "there is no VM"
        begin || say "that failed; looking again"
        ;;
    esac
    sleep "$interval"
  done
}

describe_dry_run() {
  echo "# every $interval s, until the run is done:"
  [ "$queued" = no ] || cloud compute tpus queued-resources describe "$name" '--format=value(state.state)'
  vm describe "$name" '--format=value(state)'
  remote 0 "$STATUS"
  echo "# when the run has stopped:"
  restart
  echo "# when the VM was taken away:"
  delete
  begin
  echo "# when the run is done:"
}

delete() {
  local errors code=0
  say "deleting $name"
  errors=$(mktemp)
  if [ "$queued" = yes ]; then
    cloud compute tpus queued-resources delete "$name" --force --quiet 2> "$errors" || code=1
  else
    vm delete "$name" --quiet 2> "$errors" || code=1
  fi
  if [ "$code" -ne 0 ]; then
    # One that was taken away may be gone by itself.
    if grep -qi 'NOT_FOUND\|not found' "$errors"; then code=0; else say "not deleted: $(tail -n 1 "$errors")"; fi
  fi
  rm -f "$errors"
  return "$code"
}

logs() {
  local file
  # What is newer than the last copy in the bucket, if the VM is still there.
  on_all sync "$bucket" 2> /dev/null || true
  do_it mkdir -p "$logs_folder"
  for file in train.log out/log.jsonl out/report.html out/config.json; do
    do_it gcloud storage cp "$bucket/$file" "$logs_folder/" 2> /dev/null || say "no $file yet"
  done
  case "$type" in
    *-8 | *-4 | *-1) ;; # one machine
    *) do_it gcloud storage cp "$bucket/train-*.log" "$logs_folder/" 2> /dev/null || true ;; # the other workers'
  esac
  say "logs are in $logs_folder"
}

run() {
  local code=0
  begin || say "that failed; looking again"
  watch || code=$?
  logs
  if [ "$code" -eq "$NOT_COPIED" ]; then
    say "$name is kept, and costs: tpu_vm.sh logs copies once more, then tpu_vm.sh delete"
  elif [ "$keep" = yes ]; then
    say "$name is kept, and costs: tpu_vm.sh delete"
  elif ! delete; then
    say "$name may still be there, and cost: tpu_vm.sh delete"
    code=1
  fi
  return "$code"
}

# ---------------------------------------------------------------------------------------------------------------------

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
[ $# -gt 0 ] || { usage >&2 && exit 2; }
what=$1
shift
case "$what" in
  -h | --help | help) usage && exit 0 ;;
  on-vm)
    on_vm "$@"
    exit 0
    ;;
  run | create | install | start | watch | ssh | logs | delete) ;;
  *) fail "$what: no such subcommand; see tpu_vm.sh --help" ;;
esac

name='' zone='' project='' bucket='' config='' type=v3-8 version='' kind=spot queued=no env_file='' interval=60 retries=3
keep=no logs_folder='' dry_run=no
overrides=()
while [ $# -gt 0 ]; do
  given=2
  case "$1" in
    --name | --zone | --project | --bucket | --config | --type | --version | --env-file | --interval | --retries | --logs)
      [ $# -gt 1 ] || fail "$1: its value is missing"
      ;;
    *) given=1 ;;
  esac
  case "$1" in
    --name) name=$2 ;;
    --zone) zone=$2 ;;
    --project) project=$2 ;;
    --bucket) bucket=${2%/} ;;
    --config) config=$2 ;;
    --type) type=$2 ;;
    --version) version=$2 ;;
    --env-file) env_file=$2 ;;
    --interval) interval=$2 ;;
    --retries) retries=$2 ;;
    --logs) logs_folder=$2 ;;
    --spot) kind=spot ;;
    --preemptible) kind=preemptible ;;
    --on-demand) kind=on-demand ;;
    --queued) queued=yes ;;
    --keep) keep=yes ;;
    --dry-run) dry_run=yes ;;
    -h | --help) usage && exit 0 ;;
    --)
      shift
      overrides=(${1+"$@"})
      break
      ;;
    *) fail "$1: no such option; see tpu_vm.sh --help" ;;
  esac
  shift "$given"
done

[[ "$name" =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || fail "--name '$name': lower-case letters, digits and dashes"
[ -n "$zone" ] || fail "--zone is missing, such as europe-west4-a"
[[ "$interval" =~ ^[0-9.]+$ ]] || fail "--interval '$interval': seconds"
[[ "$retries" =~ ^[0-9]+$ ]] || fail "--retries '$retries': a whole number"
[ "$queued$kind" != yespreemptible ] || fail "--preemptible: queued resources are --spot or --on-demand"
[ -z "$env_file" ] || [ -f "$env_file" ] || fail "--env-file $env_file: no such file"
if [[ "$what" =~ ^(run|start|watch|logs)$ ]]; then
  [[ "$bucket" =~ ^gs://[^/]+ ]] || fail "--bucket '$bucket': gs://BUCKET/RUN, where the run outlives its VM"
fi
if [[ "$what" =~ ^(run|start|watch)$ ]]; then
  [ -f "$root/$config" ] || fail "--config '$config': no such file in $root"
fi
case "$type" in v5e-*) type=v5litepod-${type#v5e-} ;; esac # as gcloud calls it
version=${version:-$(software)}
logs_folder=${logs_folder:-./$name}
place=("--zone=$zone")
[ -z "$project" ] || place+=("--project=$project")

trap 'say "interrupted: the VM and its run go on; tpu_vm.sh watch looks after them again"; exit 130' INT
case "$what" in
  ssh) vm ssh "$name" ${overrides[@]+"${overrides[@]}"} ;;
  *) "$what" ;;
esac
