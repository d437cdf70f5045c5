#!/usr/bin/env bash
# The model that ships, from nothing: emoji font -> codebook -> VQGAN -> tokens -> seq2seq, twice -> CLIP -> bundle.
#
#   tools/train/emoji.sh [RUNS=runs/emoji [BUNDLE]]
#
# With a BUNDLE that this recipe made, such as the one that ships, src/dalle_mini/assets/emoji, it goes on from there: with
# its tokenizers, its codebook, its CLIP, and its seq2seq model to start from.
#
# Each stage continues where a kill left it, and is passed over once its output is there: run it again until it says
# so. To make a stage anew, delete its output and those of the stages after it.
# Needs the extra `train` and Debian's package fonts-noto-color-emoji. From nothing it took 2 h 15 min of 2 CPU cores, for
# 97 % right emoji and 83 % right relations of two; what ships took an hour and a detour more (its card tells).
set -euo pipefail
runs=${1:+$(realpath -m "$1")}
bundle=${2:+$(realpath -m "$2")}
cd "$(dirname "$0")/../.."
runs=${runs:-runs/emoji}
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
# On a CPU, two half batches side by side run up to twice as fast as one whole one (training/engine/sharding.py).
export JAX_NUM_CPU_DEVICES=${JAX_NUM_CPU_DEVICES:-2}
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1} # as dalle_mini/runtime/huge_pages.py
run() { # SCRIPT [ARGUMENT ...]
  local script=tools/train/$1
  shift
  echo "== $script $*" >&2
  "$python" "$script" "$@"
}
seq2seq() { # NAME key=value ...
  local out=$runs/$1
  shift
  echo "== dalle-mini train emoji --output $out $*" >&2
  "$python" -m dalle_mini.cli train emoji --output "$out" "data.train=$runs/tokens" \
    "data.validation=$runs/tokens-heldout" "data.tokenizer=$runs/tokenizers/dalle" "samples.vqgan=$runs/codebook" "$@"
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
[ -f "$runs/tokenizers/dalle/words.txt" ] || run make_tokenizers.py "$runs/tokenizers"
[ -d "$runs/codebook" ] || run make_codebook.py "$runs/codebook"
[ -d "$runs/vqgan/final" ] || run train_vqgan.py "$runs/vqgan" "codebook=$runs/codebook"
run encode_emoji.py "$runs/codebook" "$runs/tokens" --split train --rows 32000
run encode_emoji.py "$runs/codebook" "$runs/tokens-heldout" --split heldout --rows 512
# First, cheaply, what a caption says of where things are: 32 tokens of each picture, half of the pictures told from the
# caption alone. Then the pictures token by token.
if [ ! -d "$runs/seq2seq-where/final" ]; then
  [ -d "$runs/start" ] || run make_start.py "$runs/codebook" "$runs/start"
  seq2seq seq2seq-where "training.init_from=$runs/start" training.positions=32 training.token_noise=2.0 \
    training.optimizer.final_rate=0.3 loop.steps=2000 loop.batch_size=64 loop.accumulation=1
fi
[ -d "$runs/seq2seq/final" ] || seq2seq seq2seq "training.init_from=$runs/seq2seq-where/final"
[ -d "$runs/clip/final" ] || [ -d "$runs/clip-first/final" ] || run train_clip.py "$runs/clip-first" "tokenizer=$runs/tokenizers/clip"
# Once it knows what is what, it learns to tell whole pictures from damaged ones.
[ -d "$runs/clip/final" ] || run train_clip.py "$runs/clip" "tokenizer=$runs/tokenizers/clip" \
  "training.init_from=$runs/clip-first/final" training.damage=0.3 training.optimizer.learning_rate=0.0005 \
  loop.steps=400 loop.batch_size=96
[ -d "$runs/bundle" ] || run make_bundle.py "$runs" "$runs/bundle"
[ -f "$runs/quality/quality.json" ] || {
  echo "== benchmarks/emoji_quality.py" >&2
  "$python" benchmarks/emoji_quality.py --model "$runs/bundle" --output "$runs/quality"
}
[ -f "$runs/bundle/README.md" ] || run make_card.py "$runs/bundle" "$runs/quality/quality.json" --runs "$runs"
echo "done: dalle-mini generate 'a red apple' --model $runs/bundle" >&2
