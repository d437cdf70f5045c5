#!/usr/bin/env bash
# Train on a spot TPU VM with gcloud alone: create it, install, start, and all of that again whenever it is taken away.
#     tools/train/tpu_vm.sh run --name mini --zone europe-west4-a --bucket gs://MY-BUCKET/mini \
#         --config mini -- data.train=gs://MY-BUCKET/tokens
# run     look after the run until it is done, fetch the logs, delete the VM. Started again, it goes on looking
# create  create the VM, and install this repository on it as it is committed
# logs    fetch train.log, log.jsonl, report.html and config.json into ./NAME
# delete  delete the VM
# --name NAME          of the VM
# --zone ZONE          such as europe-west4-a
# --project PROJECT    default: that of gcloud's configuration
# --bucket gs://B/RUN  where the run outlives the VM; its service account must be allowed to write there
# --config CONFIG      for dalle-mini train: a recipe, or a path in this repository
# --type TYPE          default: v3-8; of a pod, such as v4-32, every machine takes part
# --version VERSION    the VM's software; default: what goes with the type
# --on-demand          stays, and costs three times as much
# --env-file FILE      NAME=VALUE lines for the run's environment (WANDB_API_KEY ...); copied, never printed
# --interval SECONDS   between two looks; default: 60
# --retries N          how often a run that failed is started again; default: 3
# -- KEY=VALUE ...     overrides for dalle-mini train; data must be in a bucket or on the Hub
# Exit codes: 0 the run is done, 2 the input is wrong or the run ended so, 74 it is done but its weights could not be
# copied and are on the VM alone, which is kept, 130 interrupted (the run goes on without its watcher), 1 otherwise.
set -euo pipefail

ON_VM=dalle-mini/tools/train/tpu_run.sh # from the home, where a shell on the VM begins

usage() { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; }
fail() { echo "error: $*" >&2 && exit 2; }
say() { echo "$(date '+%H:%M:%S')  $*" >&2; }
vm() { gcloud compute tpus tpu-vm "$@" "${place[@]}"; }
remote() { vm ssh "$name" --worker="$1" --quiet --command="$2"; } # WORKER COMMAND
on_all() { remote all "bash $ON_VM $(printf '%q ' "$@")"; }       # ARGUMENTS...

state() { # the VM's; ABSENT: there is none; nothing: gcloud did not answer
  local answer
  answer=$(vm describe "$name" --format='value(state)' 2> "$errors") && echo "$answer" && return
  if grep -qi 'NOT_FOUND\|not found' "$errors"; then echo ABSENT; else say "no answer: $(tail -n 1 "$errors")"; fi
}

ask_for_vm() {
  local answer
  say "asking for $name, a $type"
  answer=$(vm create "$name" --version="$version" --accelerator-type="$type" ${spot:+"$spot"} --quiet 2>&1) && return
  if grep -q 'PERMISSION_DENIED\|UNAUTHENTICATED\|INVALID_ARGUMENT\|invalid choice\|unrecognized' <<< "$answer"; then
    fail "the VM cannot be created: $answer"
  fi
  say "not created: ${answer##*$'\n'}" && return 1 # no capacity, most often
}

create() {
  local now
  while now=$(state) && [ "$now" != READY ]; do
    case "$now" in
      ABSENT) ask_for_vm ;;
      PREEMPTED | TERMINATED | STOPPED | HIDDEN | UNKNOWN) say "the VM was taken away" && delete ;;
      *) false ;; # it changes by itself
    esac || sleep "$interval"
  done
  [ "$(remote 0 'test -e run/installed || echo bare')" != bare ] || install
}

install() { # chained, since bash overlooks failures where a caller looks at the result
  say "installing"
  git -C "$root" archive --format=tar.gz --output="$scratch/dalle-mini.tar.gz" HEAD &&
    vm scp "$scratch/dalle-mini.tar.gz" "$name:dalle-mini.tar.gz" --worker=all --quiet &&
    remote all "mkdir -p dalle-mini run && tar -xzf dalle-mini.tar.gz -C dalle-mini && (umask 77; : > run/env)" &&
    { [ -z "$env_file" ] || vm scp "$env_file" "$name:run/env" --worker=all --quiet; } &&
    on_all install
}

look_after() { # until the run is over; returns how it ended
  local left=$retries status
  while create || sleep "$interval"; do
    status=$(remote 0 "bash $ON_VM status" 2> /dev/null) || true # the first worker's: the processes stop together
    case "$status" in
      'exit 0') say "the run is done" && return 0 ;;
      'exit 74') say "the run is done, but its weights could not be copied to $bucket" && return 74 ;;
      'exit 75' | none) say "starting the run" ;; # it was asked to stop, or the machine is new
      exit*)                                      # 2 too may pass: a bucket or the Hub that could not be reached
        [ "$left" -gt 0 ] || break
        left=$((left - 1))
        say "the run failed with exit code ${status#exit }; $left more chances"
        ;;
      *) sleep "$interval" && continue ;; # running, or no answer
    esac
    { on_all stop && on_all start "$bucket" "$config" ${overrides[@]+"${overrides[@]}"}; } || say "that failed"
    sleep "$interval"
  done
  say "the run failed with exit code ${status#exit }, too often: see train.log"
  return "$((${status#exit } == 2 ? 2 : 1))"
}

logs() {
  mkdir -p "$name"
  for file in train.log out/log.jsonl out/report.html out/config.json; do
    gcloud storage cp "$bucket/$file" "$name/" 2> /dev/null || say "no $file yet"
  done
  say "logs are in ./$name"
}

delete() {
  local answer
  say "deleting $name"
  answer=$(vm delete "$name" --quiet 2>&1) || grep -qi 'NOT_FOUND\|not found' <<< "$answer" ||
    { say "$name may still be there, and cost: ${answer##*$'\n'}" && return 1; }
}

run() {
  local code=0
  look_after || code=$?
  logs
  if [ "$code" -ne 74 ]; then delete || code=1; else say "$name is kept, and costs: fetch ~/run/out, then delete it"; fi
  return "$code"
}

name='' zone='' project='' bucket='' config='' type=v3-8 version='' spot=--spot env_file='' interval=60 retries=3
overrides=() what=${1:-}
case "$what" in
  -h | --help | help) usage && exit 0 ;;
  run | create | logs | delete) shift ;;
  *) fail "$what: no such subcommand; see tpu_vm.sh --help" ;;
esac
while [ $# -gt 0 ]; do
  case "$1" in
    --) shift && overrides=("$@") && break ;;
    --on-demand) spot='' && shift && continue ;;
    --name | --zone | --project | --bucket | --config | --type | --version | --env-file | --interval | --retries) ;;
    *) fail "$1: no such option; see tpu_vm.sh --help" ;;
  esac
  [ $# -gt 1 ] || fail "$1: its value is missing"
  option=${1#--} && printf -v "${option//-/_}" %s "$2" && shift 2
done
root=$(cd "$(dirname "$0")/../.." && pwd) bucket=${bucket%/}
[[ "$name" =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || fail "--name '$name': lower-case letters, digits and dashes"
[ -n "$zone" ] || fail "--zone is missing, such as europe-west4-a"
[[ "$interval$retries" =~ ^[0-9.]+$ ]] || fail "--interval '$interval' --retries '$retries': they must be numbers"
[ -z "$env_file" ] || [ -f "$env_file" ] || fail "--env-file $env_file: no such file"
[[ ! "$what" =~ ^(run|logs)$ || "$bucket" =~ ^gs://[^/]+ ]] || fail "--bucket '$bucket': gs://BUCKET/RUN"
[[ "$what" != run || -f $root/$config || -f $root/src/dalle_mini/recipes/$config.yaml ]] || fail "--config '$config': no such recipe or file"
case "$type" in
  v5litepod-*) : "${version:=v2-alpha-tpuv5-lite}" ;;
  v5p-*) : "${version:=v2-alpha-tpuv5}" ;;
  v6e-*) : "${version:=v2-alpha-tpuv6e}" ;;
  *) : "${version:=tpu-ubuntu2204-base}" ;;
esac
place=("--zone=$zone" ${project:+"--project=$project"})
scratch=$(mktemp -d) && errors=$scratch/errors
trap 'rm -rf "$scratch"' EXIT
trap 'say "interrupted: the VM and its run go on; tpu_vm.sh run looks after them again"; exit 130' INT
"$what"
