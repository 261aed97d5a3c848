"""The stock Trainer with checkpoints that are complete or absent, and never hold pickled code."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from peft.utils import CONFIG_NAME
from transformers import Trainer

from ..hub import write_own_card, write_relative_backbone
from . import checkpoints
from .divergence import non_finite_parameters
from .moving_average import MovingAverage


# Weights of the final model: the file that a run writes last, so its presence says that the run has finished.
FINAL_WEIGHTS = ("adapter_model.safetensors", "model.safetensors")

FINAL_MODEL = "model"  # name of the hidden folder into which the final model is written


class CheckpointingTrainer(Trainer):
    """
    The stock Trainer, except for what it saves and reads again: whatever is saved is written into a hidden folder and
    renamed when it is complete (see [`rein_hf.training.checkpoints`]); the best checkpoint is kept beside the newest
    `save_total_limit`, and is saved at its evaluation even if no save is due; weights that are not finite are never
    saved as a checkpoint; nothing is pickled but tensors and numbers. Of weights with a moving average, the adapter of
    a checkpoint is the average, and the weights that training goes on with lie beside it.

    Raises:
        FloatingPointError: in training, when a weight to save is not finite.
        ValueError: in training, when the checkpoint to continue from holds pickled code.
        OSError: in training, when something cannot be written.
    """

    # parent of the checkpoint folder that is being written
    _partial_dir: Path | None = None
    moving_average: MovingAverage | None = None

    def train(self, resume_from_checkpoint: str | None = None, **kwargs):
        try:
            return super().train(resume_from_checkpoint, **kwargs)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{resume_from_checkpoint} holds more than tensors and numbers in its optimizer.pt, scheduler.pt or "
                f"rng_state.pth, which this library never writes; no code in it was run. {error}"
            ) from error

    def _averaged_weights(self) -> AbstractContextManager:
        """The model has the averaged weights in this block if there is a moving average."""
        return nullcontext() if self.moving_average is None else self.moving_average.applied()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.moving_average is not None and checkpoint is not None:
            self.moving_average.resume(self.model, self.state.global_step, Path(checkpoint))

    def _load_best_model(self) -> None:
        if self.moving_average is not None:
            self.moving_average.keep()  # of the last step; now no average follows the weights that are loaded
        super()._load_best_model()

    def _determine_best_metric(self, metrics: dict[str, float], trial) -> bool:
        is_best = super()._determine_best_metric(metrics, trial)
        if is_best and self.args.save_strategy != "no":
            self.control.should_save = True  # now: a later step has other weights
        return is_best

    def _save_checkpoint(self, model, trial) -> None:
        wrong = non_finite_parameters(self.model, self.accelerator)
        if wrong:
            raise FloatingPointError(
                f"After step {self.state.global_step} the weights {wrong[:3]} ({len(wrong)} in all) are not finite; "
                "no checkpoint is written. The last one is complete."
            )
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        best = folder.with_name(f"checkpoint-{self.state.best_global_step}")
        with self._write_then_rename(folder) as partial:
            self._partial_dir = partial.parent
            try:
                with self._averaged_weights():
                    super()._save_checkpoint(model, trial)
                if self.moving_average is not None:
                    self.moving_average.save(partial, self.args.should_save)
            finally:
                self._partial_dir = None
            # the stock method has looked for the best checkpoint in the hidden folder
            self.state.best_model_checkpoint = str(best) if best == folder or best.is_dir() else None
            if self.args.should_save:
                self.state.save_to_json(str(partial / "trainer_state.json"))
        if self.args.should_save:
            checkpoints.delete_old(folder.parent, self.args.save_total_limit, best)

    def _get_output_dir(self, trial) -> str:
        return str(self._partial_dir or super()._get_output_dir(trial))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the stock one; but the final model is written into a hidden folder, and moved when it is complete."""
        if output_dir is not None:
            return super().save_model(output_dir, _internal_call)
        output_dir = Path(self.args.output_dir)
        partial = checkpoints.partial_folder(output_dir / FINAL_MODEL)
        with checkpoints.explain_disk_errors(output_dir, "The final model"):
            super().save_model(str(partial), _internal_call=True)  # which does not push to the Hub
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                checkpoints.publish_files(partial, output_dir, last=FINAL_WEIGHTS)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save")

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if not self.args.should_save:  # the stock method is called in all processes, and writes in one
            return
        self._write_card(Path(output_dir or self.args.output_dir))
        # the stock Trainer pickles its arguments; nothing reads them, and reading them could run code
        (Path(output_dir or self.args.output_dir) / "training_args.bin").unlink(missing_ok=True)

    def _write_card(self, folder: Path) -> None:
        """Of an adapter: its card, and the path of its backbone from where the folder will be."""
        if not (folder / CONFIG_NAME).is_file():
            return
        run = final = Path(self.args.output_dir)
        if folder.parent.name != checkpoints.PARTIAL:
            final = folder
        elif folder.name != FINAL_MODEL:
            final = folder.parent.parent / folder.name
        write_relative_backbone(folder, final)
        write_own_card(folder, final, run, self.args.hub_model_id if self.args.push_to_hub else None)

    def create_model_card(self, *args, **kwargs) -> None:
        """The stock card, unless there is one already: that of an adapter says what the adapter is."""
        if not (Path(self.args.output_dir) / CONFIG_NAME).is_file():
            super().create_model_card(*args, **kwargs)

    @contextmanager
    def _write_then_rename(self, folder: Path) -> Iterator[Path]:
        """Gives all processes a hidden folder to write into, which becomes `folder` when all are done."""
        partial = checkpoints.partial_folder(folder)
        with checkpoints.explain_disk_errors(folder.parent, folder.name):
            if self.args.should_save:
                checkpoints.discard_partial(folder.parent)
                partial.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            yield partial
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                checkpoints.publish(partial, folder)
        self.accelerator.wait_for_everyone()
