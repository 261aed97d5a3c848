#!/usr/bin/env bash
# The demo, offline: paints streets, trains the head with and without Rein, evaluates on unseen weather, draws pictures.
# After an interruption the same command continues.
set -euo pipefail
cd "$(dirname "$0")/../.."
export HF_HUB_OFFLINE=1
out=outputs/demo
python -m recipes.demo.paint_streets --output_dir "$out/data/train" --domains day --seeds 0 160
python -m recipes.demo.paint_streets --output_dir "$out/data" --domains day fog night rain snow --seeds 1000 1016
for tuning in frozen rein; do
    python recipes/train.py recipes/demo/demo.yaml --tuning "$tuning" --output_dir "$out/$tuning"
done
python recipes/evaluate.py --models "$out/frozen" "$out/rein" --output_dir "$out/evaluation" --bf16 true \
    --sheet_rows 1 --domains "$out/data/day" "$out/data/fog" "$out/data/night" "$out/data/rain" "$out/data/snow"
echo "Pictures: $out/evaluation/contact_sheet.png and the plots beside it."
