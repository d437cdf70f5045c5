#!/usr/bin/env bash
# The second edition of the model that ships, from nothing: emoji font -> codebook -> VQGAN -> tokens -> seq2seq -> CLIP -> bundle.
#
#   tools/train/emoji.sh [RUNS=runs/emoji [BUNDLE]]
#
# With a BUNDLE that this recipe made, such as tools/train/second-edition, it goes on from there: with its tokenizers, its
# codebook, its CLIP, and its seq2seq model to start from.
#
# Each stage continues where a kill left it, and is passed over once its output is there: run it again until it says
# so. To make a stage anew, delete its output and those of the stages after it.
# Needs the extra `train` and Debian's package fonts-noto-color-emoji. Some three hours on 2 CPU cores,
# by its arithmetic: it has not been run to its end yet.
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=${1:-runs/emoji}
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
# On a CPU, two half batches side by side run up to twice as fast as one whole one (training/sharding.py).
export JAX_NUM_CPU_DEVICES=${JAX_NUM_CPU_DEVICES:-2}
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1} # as dalle_mini/huge_pages.py
run() { # SCRIPT [ARGUMENT ...]
  local script=tools/train/$1
  shift
  echo "== $script $*" >&2
  "$python" "$script" "$@"
}

if [ $# -gt 1 ] && [ ! -d "$runs/start" ]; then
  mkdir -p "$runs/tokenizers" "$runs/clip"
  cp -r "$2/vqgan" "$runs/codebook"
  cp -r "$2/clip" "$runs/clip/final"
  for part in dalle clip; do
    cp -r "$2/$part" "$runs/tokenizers/$part"
    rm "$runs/tokenizers/$part"/{config.json,model.safetensors}
  done
  rm -f "$runs/tokenizers/clip/preprocessor_config.json"
  cp -r "$2/dalle" "$runs/start" # last: it tells that the others are there
fi
[ -f "$runs/tokenizers/dalle/words.txt" ] || run make_tokenizers.py "$runs/tokenizers"
[ -d "$runs/codebook" ] || run make_codebook.py "$runs/codebook"
[ -d "$runs/vqgan/final" ] || run train_vqgan.py "$runs/vqgan" "codebook=$runs/codebook"
run encode_emoji.py "$runs/codebook" "$runs/tokens" --split train --rows 32000
run encode_emoji.py "$runs/codebook" "$runs/tokens-heldout" --split heldout --rows 512
[ -d "$runs/start" ] || run make_start.py "$runs/codebook" "$runs/start"
[ -d "$runs/seq2seq/final" ] || {
  echo "== dalle-mini train tools/train/configs/emoji.yaml --output $runs/seq2seq" >&2
  "$python" -m dalle_mini.cli train tools/train/configs/emoji.yaml --output "$runs/seq2seq" \
    "data.train=$runs/tokens" "data.validation=$runs/tokens-heldout" "data.tokenizer=$runs/tokenizers/dalle" \
    "training.init_from=$runs/start"
}
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
