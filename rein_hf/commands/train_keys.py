"""The words of `rein-hf train`: a recipe, and values that replace its own, as `read_recipe` takes them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from transformers import TrainingArguments

from ..data import load_domain
from ..files import parse_yaml, read_yaml
from ..training import RecipeArguments, read_recipe
from .grammar import spelled
from .train_own import own_data_keys


# What other programs call them.
ALIASES = {"lr": "learning_rate", "batch_size": "total_batch_size", "steps": "max_steps"}
DATA = "data"  # stands for several keys
EPOCHS = ("epochs", "num_train_epochs")


def to_overrides(words: Sequence[str], path: str) -> list[str]:
    """Pairs of `--KEY` and a value in YAML, of words in the grammar of all verbs.

    Args:
        words: what follows the recipe.
        path: the recipe's file, to know what `--data` need not replace, and to answer in steps if a number of epochs
            is given.

    Raises:
        OSError: the folder that `--data` names is no folder of data.
        ValueError: a key has no value or too many, or is a number of epochs; nothing names data; the folder that
            `--data` names is not as it should be.
    """
    types = {**get_type_hints(RecipeArguments), **get_type_hints(TrainingArguments)}
    pairs, epochs, data = [], None, None
    for key, values in _keys(words):
        if key in EPOCHS:
            epochs = values
        elif key == DATA:
            data = _to_yaml(key, values, str)
        else:
            pairs += [f"--{key}", _to_yaml(key, values, types.get(key))]
    file, given = read_yaml(path), {key.removeprefix("--") for key in pairs[::2]}
    if data is not None:
        for key, value in own_data_keys(data, given | ({"crop"} & file.keys())).items():
            pairs += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    elif "train" not in {*file, *given}:
        raise ValueError("it names no data; expected --data DIR, a folder of your own, or --train.")
    if epochs is not None:
        raise ValueError(steps_of_epochs(epochs, path, pairs))
    return pairs


def _keys(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each key with the words that follow it."""
    key, values = None, []
    for word in words:
        if not word.startswith("--"):
            if key is None:
                raise ValueError(f"unexpected {word!r} before the first --KEY.")
            values.append(word)
            continue
        if key is not None:
            yield key, values
        name, equals, value = spelled(word)[2:].partition("=")
        key, values = ALIASES.get(name, name), [value] if equals else []
    if key is not None:
        yield key, values


def _to_yaml(key: str, words: list[str], kind: Any) -> str:
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    lists = [one for one in kinds if get_origin(one) is list]
    if not words:
        if bool in kinds or kind is None and "." in key:
            return "true"
        raise ValueError(f"--{key} has no value.")
    if len(words) == 1:
        needs_list = lists and str not in kinds and isinstance(_plain(words[0]), str | int | float)
        return json.dumps([_plain(words[0])]) if needs_list else words[0]
    if not lists and kind is not None:
        raise ValueError(f"--{key} has the values {' '.join(words)}; expected one (in quotes if it has spaces).")
    return json.dumps(words if lists == [list[str]] else [_plain(word) for word in words])


def _plain(word: str) -> Any:
    return parse_yaml(word, word)


def steps_of_epochs(epochs: list[str], path: str, overrides: list[str]) -> str:
    """What to give in the place of a number of epochs: the number of steps or, where the number of images is not known
    before the data are there, how it follows from it."""
    text = "the length of a run is counted in steps: --max_steps = epochs x images / total_batch_size"
    try:
        recipe, _ = read_recipe(path, overrides)
        text += f" ({recipe.total_batch_size} here)"
        domains = [load_domain(spec) for spec in recipe.train]
        images = sum(len(domain.dataset) for domain in domains)
        steps = math.ceil(float(epochs[0]) * images / recipe.total_batch_size)
    except (IndexError, OSError, TypeError, ValueError):  # no data yet, a stream, no number: the rule has to do
        return f"{text}. There is no --epochs."
    return f"{text}. For {epochs[0]} epochs of {images} images give --max_steps {steps}."
