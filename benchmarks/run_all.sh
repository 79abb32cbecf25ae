#!/usr/bin/env bash
# Measure this machine's part of every page that depends on the processor, within an hour on two cores.
#
#   benchmarks/run_all.sh             at the machine's own level
#   benchmarks/run_all.sh avx2        at a lower instruction set level, peers included (levels.py)
#   benchmarks/run_all.sh --quick     a few small settings, to test the scripts; pages go to build/quick-results
#
# Before it: `make model gemma`, `python scripts/make_random.py --out build/random-1.1b`, and the peers (peers/install.py).
# A model or peer that is missing is left out, with a message. Converting models is not part of the hour. A step that
# exceeds its time limit is stopped, the later steps still run, and the exit code is 1. RESULTS is the folder of the pages,
# PYTHON the interpreter that runs the benchmarks.
set -u
cd "$(dirname "$0")/.."
QUICK=; LEVEL=
for argument in "$@"; do
  case $argument in
    --quick) QUICK=1 ;;
    amx | avx512 | avxvnni | avx2) LEVEL=$argument ;;
    *) sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
done
PYTHON=${PYTHON:-.venv/bin/python}
if [ -n "$QUICK" ]; then RESULTS=${RESULTS:-build/quick-results}; else RESULTS=${RESULTS:-benchmarks/results}; fi
MODEL=build/reference-model RANDOM_MODEL=build/random-1.1b GEMMA=build/gemma3-270m
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
RUN=("$PYTHON")
if [ -n "$LEVEL" ]; then RUN=("$PYTHON" benchmarks/levels.py "$LEVEL" "$PYTHON"); fi
FAILED=()

# step SECONDS SCRIPT ARGUMENTS...: run a benchmark for at most so long
step() {
  local seconds=$1 begin=$SECONDS; shift
  echo "== $*" >&2
  timeout "$seconds" "${RUN[@]}" "benchmarks/$@" || FAILED+=("$1 (status $?)")
  echo "== took $((SECONDS - begin)) s of $seconds" >&2
}

# engine SECONDS PART MODEL ARGUMENTS...: convert the model for all contestants, then measure
engine() {
  local seconds=$1 part=$2 model=$3; shift 3
  if [ ! -f "$model/config.json" ]; then FAILED+=("$part: no $model"); return; fi
  "${RUN[@]}" benchmarks/engine.py "$model" "$@" --convert-only >&2 || FAILED+=("converting $model")
  step "$seconds" engine.py "$model" "$@" --limit $((seconds * 3 / 4)) --part "$part" --markdown "$RESULTS/engine.md"
}

mkdir -p "$RESULTS"
if [ -n "$QUICK" ]; then
  step 120 linear.py --shapes 256x128 --rows 1 8 --rounds 2 --round-ms 1 --rotate-mb 1 --markdown "$RESULTS/linear.md"
  engine 300 SmolLM2-135M $MODEL --only zeropoint:int8 llama_cpp:Q8_0 --skip nofa universal --rounds 1 --new-tokens 8
else
  SAME="zeropoint:fp16 zeropoint:int llama_cpp:F16 llama_cpp:Q8_0 llama_cpp:Q4_0 openvino"
  step 480 linear.py --rounds 5 --round-ms 12 --json build/linear.json --markdown "$RESULTS/linear.md"
  engine 540 SmolLM2-135M $MODEL --only $SAME --skip universal nofa --rounds 3 --new-tokens 48
  engine 840 "1.1B, random weights" $RANDOM_MODEL --only $SAME --skip universal nofa auto --rounds 2 --new-tokens 12
  engine 420 "Gemma 3 270M" $GEMMA --only $SAME --skip universal nofa auto --rounds 2 --new-tokens 32
  step 480 quality.py $MODEL --time zeropoint:int4/gptq zeropoint:int4/good llmcompressor:int4-g32/gptq \
    --markdown "$RESULTS/quality.md"
  rm -f "build/budgets-${LEVEL:-own}.json"  # may be results of an earlier version
  # The budgets that bound speed, and some others. The first takes minutes, because `fit` measures the model.
  step 780 budgets.py $MODEL --text examples/data/eval.txt --only 3 10 7 8 1 5 --limit 540 --part SmolLM2-135M \
    --results "build/budgets-${LEVEL:-own}.json" --markdown "$RESULTS/budgets.md"
fi
if [ ${#FAILED[@]} -gt 0 ]; then
  printf 'not measured: %s\n' "${FAILED[@]}" >&2
  exit 1
fi
