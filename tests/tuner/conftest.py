"""What several files of tests in this folder need."""

import pytest
import torch

from tests.support.models import perturb


@pytest.fixture
def day_and_night(tunable):
    """A model with two adapters of different form, of which "day" is active, and the output of each."""
    model = tunable.tuned("day")
    model.add_adapter("night", tunable.config(r=None))
    outputs = {"day": tunable.output(model)}
    model.set_adapter("night")
    perturb(model, seed=1)
    outputs["night"] = tunable.output(model)
    assert not torch.equal(outputs["day"], outputs["night"])
    model.set_adapter("day")
    return model, outputs
