"""Kills runs at random moments, runs them again, and compares the final weights with those of a run left alone.

    python -m tests.measure.kill_runs [--kills 20] [--seed 0]

Each run is a forked process that gets SIGKILL at a random moment of a phase: of a step, of an evaluation, or while a
checkpoint or the final model is written. The durations of the phases are measured in the run that is left alone. A
process says through a pipe when a phase begins and ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import HfArgumentParser

from rein_hf.training import SegmentationTrainer, checkpoints
from tests.support.runs import equal_adapters, run_recipe, write_recipe, write_vit


@dataclass
class KillArguments:
    kills: int = 20
    seed: int = 0


# The phases, and the methods whose calls they are.
PHASES = {"step": "training_step", "evaluation": "evaluate", "save": "_save_checkpoint", "final save": "save_model"}


def main(args: KillArguments) -> int:
    """Prints a table, and returns how many runs did not end with equal weights."""
    rng = np.random.default_rng(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        values = {"max_steps": 6, "save_steps": 2, "eval_strategy": "steps", "eval_steps": 3, "eval_limit": 2}
        recipe = write_recipe(folder, str(write_vit(folder / "vit")), **values)
        durations = measure_phases(recipe, folder / "uninterrupted")
        counts, failures = Counter(), []
        for index in range(args.kills):
            phase = list(PHASES)[index % len(PHASES)]
            call = int(rng.integers(len(durations[phase])))
            delay = float(rng.uniform(0, durations[phase][call]))
            out = folder / f"run-{index}"
            killed = kill(recipe, out, phase, call, delay)
            kept = [path.name for path in checkpoints.list_checkpoints(out)]
            partial = (out / checkpoints.PARTIAL).exists()
            process = start(recipe, out, None)
            process.join()
            same = process.exitcode == 0 and equal_adapters(folder / "uninterrupted", out)
            moment = f"{phase} {call + 1}, {1000 * delay:.0f} of {1000 * durations[phase][call]:.0f} ms"
            outcome = f"{'killed' if killed else 'had finished'}, left {', '.join(kept) or 'nothing'}"
            outcome += f"{' and a partial folder' if partial else ''}: {'bit-equal' if same else 'DIFFERENT'}"
            print(f"{index + 1:3} {moment:32} {outcome}", flush=True)
            counts[phase, killed, same] += 1
            failures += [] if same else [index]
    print("\n| killed in | runs | had finished already | bit-equal in the end |\n|---|---|---|---|")
    for phase in PHASES:
        mine = {key: count for key, count in counts.items() if key[0] == phase}
        late = sum(count for (_, killed, _), count in mine.items() if not killed)
        same = sum(count for (_, _, same), count in mine.items() if same)
        print(f"| {phase} | {sum(mine.values())} | {late} | {same} |")
    return len(failures)


def start(recipe: Path, out: Path, pipe) -> multiprocessing.Process:
    """Starts a run in a process of its own, which says through the pipe when its phases begin and end."""
    process = multiprocessing.get_context("fork").Process(target=_run, args=(recipe, out, pipe))
    process.start()
    return process


def _run(recipe: Path, out: Path, pipe) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    if pipe is not None:
        for phase, name in PHASES.items():
            setattr(SegmentationTrainer, name, _announced(getattr(SegmentationTrainer, name), phase, pipe))
    run_recipe(recipe, "--output_dir", str(out))


def _announced(method, phase: str, pipe):
    def announced(self, *args, **kwargs):
        is_phase = phase != "final save" or not args  # with arguments, save_model is a part of a checkpoint's save
        if is_phase:
            pipe.send((phase, "begins", time.monotonic()))
        result = method(self, *args, **kwargs)
        if is_phase:
            pipe.send((phase, "ends", time.monotonic()))
        return result

    return announced


def measure_phases(recipe: Path, out: Path) -> dict[str, list[float]]:
    """The seconds that each call of each phase takes in a run that is left alone."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = start(recipe, out, sender)
    sender.close()
    begun, durations = {}, defaultdict(list)
    for phase, what, now in _received(receiver):
        if what == "begins":
            begun[phase] = now
        else:
            durations[phase].append(now - begun[phase])
    process.join()
    return durations


def kill(recipe: Path, out: Path, phase: str, call: int, delay: float) -> bool:
    """Starts a run and kills it `delay` seconds after a call of a phase has begun; returns whether it still ran."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = start(recipe, out, sender)
    sender.close()
    for found, what, _ in _received(receiver):
        if (found, what) == (phase, "begins"):
            if call == 0:
                time.sleep(delay)
                process.kill()
                break
            call -= 1
    process.join()
    receiver.close()
    return process.exitcode == -signal.SIGKILL


def _received(pipe):
    while True:
        try:
            yield pipe.recv()
        except EOFError:
            return


if __name__ == "__main__":
    sys.exit(main(*HfArgumentParser(KillArguments).parse_args_into_dataclasses()))
