"""Kills runs at random moments, runs them again, and compares the final weights with those of a run left alone.

    python -m tests.measure.kill_runs [--kills 20] [--seed 0]

Each run is a forked process that gets SIGKILL at a random time of a phase: a step, an evaluation, the writing of a
checkpoint or of the final model. How long phases take is measured in the run that is left alone; a process says by a
pipe which one it is in.
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


# The methods whose calls are the phases.
PHASES = {"step": "training_step", "evaluation": "evaluate", "save": "_save_checkpoint", "final save": "save_model"}


def main(args: KillArguments) -> int:
    """Prints the table, and returns how many runs did not end with equal weights."""
    rng = np.random.default_rng(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        values = {"max_steps": 6, "save_steps": 2, "eval_strategy": "steps", "eval_steps": 3, "eval_limit": 2}
        recipe = write_recipe(folder, str(write_vit(folder / "vit")), **values)
        durations = measured(recipe, folder / "straight")
        counts, failures = Counter(), []
        for index in range(args.kills):
            phase = list(PHASES)[index % len(PHASES)]
            call = int(rng.integers(len(durations[phase])))
            delay = float(rng.uniform(0, durations[phase][call]))
            out = folder / f"run-{index}"
            killed = kill(recipe, out, phase, call, delay)
            left = [path.name for path in checkpoints.list_checkpoints(out)]
            partial = (out / checkpoints.PARTIAL).exists()
            process = start(recipe, out, None)
            process.join()
            same = process.exitcode == 0 and equal_adapters(folder / "straight", out)
            when = f"{phase} {call + 1}, {1000 * delay:.0f} of {1000 * durations[phase][call]:.0f} ms"
            what = f"{'killed' if killed else 'had finished'}, left {', '.join(left) or 'nothing'}"
            what += f"{' and a partial folder' if partial else ''}: {'bit-equal' if same else 'DIFFERENT'}"
            print(f"{index + 1:3} {when:32} {what}", flush=True)
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
    """A run in a process of its own, which announces the beginnings and ends of its phases."""
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
        final = phase != "final save" or not args  # the model of a checkpoint is a part of its phase
        if final:
            pipe.send((phase, "begins", time.monotonic()))
        result = method(self, *args, **kwargs)
        if final:
            pipe.send((phase, "ends", time.monotonic()))
        return result

    return announced


def measured(recipe: Path, out: Path) -> dict[str, list[float]]:
    """Seconds of each call of each phase in a run that is left alone."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = start(recipe, out, theirs)
    theirs.close()
    begun, durations = {}, defaultdict(list)
    for phase, what, now in _received(ours):
        if what == "begins":
            begun[phase] = now
        else:
            durations[phase].append(now - begun[phase])
    process.join()
    return durations


def kill(recipe: Path, out: Path, phase: str, call: int, delay: float) -> bool:
    """Starts a run and kills it a while after the beginning of a call; whether it still ran then."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = start(recipe, out, theirs)
    theirs.close()
    for found, what, _ in _received(ours):
        if (found, what) == (phase, "begins"):
            if call == 0:
                time.sleep(delay)
                process.kill()
                break
            call -= 1
    process.join()
    ours.close()
    return process.exitcode == -signal.SIGKILL


def _received(pipe):
    while True:
        try:
            yield pipe.recv()
        except EOFError:
            return


if __name__ == "__main__":
    sys.exit(main(*HfArgumentParser(KillArguments).parse_args_into_dataclasses()))
