#!/usr/bin/env bash
# The demo, offline: paints streets, trains Rein by day, evaluates on weather that it has not seen beside an adapter of
# the same recipe that was trained long before (recipes/demo/long), and draws pictures.
# After an interruption the same command continues.
set -euo pipefail
cd "$(dirname "$0")/../.."
# one thread: threads that wait for each other make a busy machine many times slower
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
out=outputs/demo
photo="$out/data/fog/images/fog_01000.png"
domains=("$out/data/day" "$out/data/fog" "$out/data/night" "$out/data/rain" "$out/data/snow")
python -m recipes.demo.paint_streets --output_dir "$out/data" --domains day fog night rain snow --seeds 1000 1016 &
python -m recipes.demo.paint_streets --output_dir "$out/data/train" --domains day --seeds 0 160
wait $!
python recipes/train.py recipes/demo/demo.yaml --output_dir "$out/rein"
python recipes/evaluate.py --model "$out/rein" recipes/demo/long --output_dir "$out/evaluation" --bf16 true \
    --sheet_rows 1 --domains "${domains[@]}"
python -m recipes.demo.switch --model "$out/rein" recipes/demo/long --input "$photo" --output "$out/switch.png"
python recipes/predict.py --model recipes/demo/long --input "$photo" --explain true --output_dir "$out/explained"
echo "Pictures: $out/evaluation/contact_sheet.png, $out/switch.png and those in $out/explained and $out/evaluation."
