#!/usr/bin/env bash
# The emoji model, from nothing: art -> codebook -> VQGAN -> tokens -> seq2seq, twice -> CLIP -> bundle.
#
#   tools/train/emoji.sh [--things N] [--percent P] [--minutes M] [--art FOLDER] [RUNS=runs/emoji [BUNDLE]]
#
#   --things N     learn N things instead of all, spread over all kinds: a pilot
#   --percent P    so much of the training, of images as of updates (default: 100); 1 tries all stages in minutes
#   --minutes M    stop after M minutes with exit code 75; the same command goes on from there
#   --art FOLDER   where the art is kept (default: the user's cache)
#
# With a BUNDLE that this recipe made it goes on from there: with its tokenizers, its codebook, its CLIP, and its seq2seq
# model to start from.
#
# Each stage continues where a kill left it, and is passed over once its output is there: run it again until it says
# so. To make a stage anew, delete its output and those of the stages after it.
# Needs the extras `train` and `art`, and npm once.
set -euo pipefail
things=0 percent=100 minutes='' art=''
while [[ ${1:-} == --* ]]; do
  case $1 in
    --things | --percent | --minutes) [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || { echo "error: $1: a whole number" >&2; exit 2; } ;;&
    --things) things=$2 ;;
    --percent) percent=$2 ;;
    --minutes) minutes=$2 ;;
    --art) art=$(realpath -m "${2:?error: --art: a folder}") ;;
    *) echo "error: $1: no such option" >&2; exit 2 ;;
  esac
  shift 2
done
runs=${1:+$(realpath -m "$1")}
bundle=${2:+$(realpath -m "$2")}
cd "$(dirname "$0")/../.."
runs=${runs:-$PWD/runs/emoji}
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
# On a CPU, two half batches side by side run up to twice as fast as one whole one (training/engine/sharding.py).
export JAX_NUM_CPU_DEVICES=${JAX_NUM_CPU_DEVICES:-2}
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1} # as dalle_mini/runtime/huge_pages.py
limited() { # COMMAND ...: ended when the minutes are over; training keeps what it has
  echo "== ${*:2}" >&2
  if [ -z "$minutes" ]; then
    "$@"
  else
    local left=$((minutes * 60 - SECONDS))
    [ "$left" -gt 0 ] || { echo "stopped: run the same command again" >&2; exit 75; }
    timeout --foreground --preserve-status "$left" "$@"
  fi
}
run() { # SCRIPT [ARGUMENT ...]
  limited "$python" "tools/train/$1" "${@:2}"
}
seq2seq() { # NAME key=value ...
  limited "$python" -m dalle_mini.cli train emoji --output "$runs/$1" "data.train=$runs/tokens" \
    "data.validation=$runs/tokens-heldout" "data.tokenizer=$runs/tokenizers/dalle" "samples.vqgan=$runs/codebook" "${@:2}"
}
part() { # NUMBER: so much of it as --percent asks for, at least 2
  echo $(($1 * percent / 100 > 2 ? $1 * percent / 100 : 2))
}

adopt() { # FROM TO [FILE ...]: a copy without those files, there whole or not at all
  local from=$1 to=$2
  shift 2
  [ ! -e "$to" ] || return 0
  mkdir -p "$(dirname "$to")"
  rm -rf "$to.tmp"
  cp -r "$from" "$to.tmp"
  for file in "$@"; do rm -f "$to.tmp/$file"; done
  mv "$to.tmp" "$to"
}

# A run that began from a bundle goes on from it, also where it is not named again.
[ -n "$bundle" ] || [ ! -f "$runs/bundle.txt" ] || bundle=$(cat "$runs/bundle.txt")
if [ -n "$bundle" ]; then
  for part in dalle vqgan clip; do
    [ -f "$bundle/$part/config.json" ] || { echo "error: $bundle: no bundle, $part/config.json is missing" >&2; exit 2; }
  done
  grep -qs styles "$bundle/scenes.json" || { echo "error: $bundle: made by an earlier edition of this recipe" >&2; exit 2; }
  [ ! -e "$runs/codebook" ] || [ -f "$runs/bundle.txt" ] || {
    echo "error: $runs: there is a run that began from nothing: name another folder" >&2
    exit 2
  }
  [ ! -f "$runs/bundle.txt" ] || [ "$(cat "$runs/bundle.txt")" = "$bundle" ] || {
    echo "error: $runs: there is a run that began from another bundle, $(cat "$runs/bundle.txt"): name another folder" >&2
    exit 2
  }
  mkdir -p "$runs"
  echo "$bundle" >"$runs/bundle.txt"
  adopt "$bundle/vqgan" "$runs/codebook"
  adopt "$bundle/clip" "$runs/clip/final"
  adopt "$bundle/dalle" "$runs/seq2seq-where/final"
  for part in dalle clip; do
    adopt "$bundle/$part" "$runs/tokenizers/$part" config.json model.safetensors preprocessor_config.json tokens.json
  done
fi
world=$runs/world.json
[ "$things" = 0 ] || [ ! -f "$world" ] || grep -q "\"things\": $things," "$world" || {
  echo "error: $runs: there is a run of another number of things: name another folder" >&2
  exit 2
}
[ -f "$world" ] || run fetch_art.py ${art:+--folder "$art"} --world "$world" --things "$things"
[ -f "$runs/tokenizers/dalle/words.txt" ] || run make_tokenizers.py "$runs/tokenizers" --world "$world"
[ -d "$runs/codebook" ] || run make_codebook.py "$runs/codebook" --world "$world"
[ -d "$runs/vqgan/final" ] || run train_vqgan.py "$runs/vqgan" "codebook=$runs/codebook" "world=$world" \
  "loop.steps=$(part 4000)"
run encode_emoji.py "$runs/codebook" "$runs/tokens" --world "$world" --split train --rows "$(part 120000)"
run encode_emoji.py "$runs/codebook" "$runs/tokens-heldout" --world "$world" --split heldout --rows 512
# First, cheaply, what a caption says of where things are: 32 tokens of each picture, half of the pictures told from the
# caption alone. Then the pictures token by token.
if [ ! -d "$runs/seq2seq-where/final" ]; then
  [ -d "$runs/start" ] || run make_start.py "$runs/codebook" "$runs/start"
  seq2seq seq2seq-where "training.init_from=$runs/start" training.positions=32 training.prefer_changes=4 \
    training.token_noise=2.0 training.optimizer.final_rate=0.3 "loop.steps=$(part 5000)" loop.batch_size=64 \
    loop.accumulation=1
fi
[ -d "$runs/seq2seq/final" ] || seq2seq seq2seq "training.init_from=$runs/seq2seq-where/final" "loop.steps=$(part 4000)"
[ -d "$runs/clip/final" ] || [ -d "$runs/clip-first/final" ] || run train_clip.py "$runs/clip-first" \
  "tokenizer=$runs/tokenizers/clip" "world=$world" "loop.steps=$(part 1200)"
# Once it knows what is what, it learns to tell whole pictures from damaged ones.
[ -d "$runs/clip/final" ] || run train_clip.py "$runs/clip" "tokenizer=$runs/tokenizers/clip" "world=$world" \
  "training.init_from=$runs/clip-first/final" training.damage=0.3 training.optimizer.learning_rate=0.0005 \
  "loop.steps=$(part 400)" loop.batch_size=96
[ -d "$runs/bundle" ] || run make_bundle.py "$runs" "$runs/bundle"
# Beside it the second edition, which knows no styles: where it ships, or where `git archive` puts it
# (dalle_mini/weights/editions.py).
baseline=
for folder in src/dalle_mini/assets/emoji second; do
  [ -n "$baseline" ] || [ ! -f "$folder/scenes.json" ] || grep -q styles "$folder/scenes.json" || baseline=$folder
done
# All 16 candidates of 600 prompts are judged, to compare CLIP's pick with a random one and with the best. A prompt takes
# 2 to 2.5 processor seconds to draw and 2.7 to judge; the second edition's take 0.2 to judge. These are some 1,200
# prompts, 1 h 20 min of one core. A run that was ended goes on after the last kind of prompts that it finished.
[ -f "$runs/quality/quality.json" ] || limited "$python" benchmarks/styled_quality.py --model "$runs/bundle" \
  ${baseline:+--baseline "$baseline"} ${art:+--art "$art"} --prompts "$(part 100)" --everyday "$(part 200)" \
  --open "$(part 50)" --output "$runs/quality"
[ -f "$runs/bundle/README.md" ] || run make_card.py "$runs/bundle" "$runs/quality/quality.json" --runs "$runs"
echo "done: dalle-mini generate 'a 3d red apple' --model $runs/bundle" >&2
