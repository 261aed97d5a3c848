#!/usr/bin/env bash
# The demo, offline: paints streets, trains the head with and without Rein, evaluates on unseen weather, draws pictures.
# After an interruption the same command continues.
set -euo pipefail
cd "$(dirname "$0")/../.."
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
out=outputs/demo
python -m recipes.demo.paint_streets --output_dir "$out/data/train" --domains day --seeds 0 160
python -m recipes.demo.paint_streets --output_dir "$out/data" --domains day fog night rain snow --seeds 1000 1016
# Both trainings at a time, on one thread each: threads that wait for each other make a busy machine many times slower.
mkdir -p "$out"
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
python recipes/train.py recipes/demo/demo.yaml --tuning frozen --output_dir "$out/frozen" >"$out/frozen.log" 2>&1 &
python recipes/train.py recipes/demo/demo.yaml --tuning rein --output_dir "$out/rein"
wait $! || { cat "$out/frozen.log"; exit 1; }
python recipes/evaluate.py --models "$out/frozen" "$out/rein" --output_dir "$out/evaluation" --bf16 true \
    --sheet_rows 1 --domains "$out/data/day" "$out/data/fog" "$out/data/night" "$out/data/rain" "$out/data/snow"
echo "Pictures: $out/evaluation/contact_sheet.png and the plots beside it."
