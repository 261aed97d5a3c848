"""What an adapter is, before gigabytes are downloaded for it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import EvalResult, HfApi, ModelCard, parse_local_safetensors_file_metadata
from huggingface_hub.utils import SafetensorsFileMetadata
from peft import LoraConfig, PeftConfig
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from ..adaptformer import AdaptFormerConfig
from ..tuner import BackboneTunerConfig, ReinConfig
from ..vpt import VPTConfig
from .base_config import read_adapter_config
from .errors import name_in_errors, say_no_such_folder


CARD_NAME = "README.md"


@dataclass
class Description:
    """What [`describe`] tells; `print` it.

    Attributes:
        name: folder or Hub id of the adapter.
        base: folder or Hub id of the backbone that it needs.
        base_bytes: size of the backbone's weights; `None` if the Hub did not tell.
        base_config: configuration of the whole model, as in [`ReinConfig`].
        classes: names, by class id; none if the adapter is of a bare backbone.
        crop, patch_size: sides in pixels of the training crops and of a patch.
        rank: of Rein's tokens, `None` for full ones; of a LoRA.
        num_tokens: Rein's, per block; `linked`: whether they are the object queries.
        rein_parameters, head_parameters: parameters in the adapter, of its method, whichever it is, and of the head;
            Rein's W_F is counted with the head, as in the paper.
        bytes: size of its tensors.
        license, results: from its model card; `EvalResult` of huggingface_hub.
        method: Rein, AdaptFormer, VPT, LoRA (SoMA is saved as one), or another of peft.
        settings: of the method, in words.
        model_types: of the head and of the vision transformer, as in their configurations; of a bare backbone its own.

    Example:

    ```py
    >>> from rein_hf import Description
    >>> sizes = {"crop": 512, "patch_size": 16, "rank": 16, "num_tokens": 100, "linked": True}
    >>> counts = {"rein_parameters": 2_990_081, "head_parameters": 20_579_796, "bytes": 94_279_508}
    >>> origin = {"base": "facebook/dinov2-large", "base_bytes": 1_217_524_200, "license": "mit", "results": ()}
    >>> print(Description(name="user/adapter", classes=("road", "sky"), **sizes, **counts, **origin))
    adapter:     user/adapter, 94.28 MB
    backbone:    facebook/dinov2-large, 1.22 GB
    classes:     2: road, sky
    crop, patch: 512, 16 pixels
    Rein:        100 tokens per block, rank 16, which are the object queries
    parameters:  2,990,081 of Rein, 20,579,796 of the head
    licence:     mit
    results:     none stated

    ```
    """

    name: str
    base: str | None
    base_bytes: int | None
    classes: tuple[str, ...]
    crop: int | None
    patch_size: int | None
    rank: int | None
    num_tokens: int
    linked: bool
    rein_parameters: int
    head_parameters: int
    bytes: int
    license: str | None
    results: tuple[EvalResult, ...]
    method: str = "Rein"
    settings: str = ""
    model_types: tuple[str, ...] = ()

    def __str__(self) -> str:
        base_size = "" if self.base_bytes is None else f", {_megabytes(self.base_bytes)}"
        rank = "full tokens" if self.rank is None else f"rank {self.rank}"
        link = "which are the object queries" if self.linked else "not linked to object queries"
        settings = self.settings or f"{self.num_tokens} tokens per block, {rank}, {link}"
        lines = {
            "adapter": f"{self.name}, {_megabytes(self.bytes)}",
            "backbone": f"{self.base or 'not named'}{base_size}",
            "classes": f"{len(self.classes)}: {', '.join(self.classes)}" if self.classes else "none, no head",
            "crop, patch": f"{self.crop}, {self.patch_size} pixels",
            self.method: settings,
            "parameters": f"{self.rein_parameters:,} of {self.method}, {self.head_parameters:,} of the head",
            "licence": self.license or "not stated",
            "results": "none stated",
        }
        if self.results:
            rows = [f"{found.metric_name or found.metric_type} {found.metric_value}" for found in self.results]
            names = [found.dataset_name for found in self.results]
            lines["results"] = "; ".join(f"{name}: {row}" for name, row in zip(names, rows, strict=True))
        return "\n".join(f"{title + ':':<13}{text}" for title, text in lines.items())


def describe(
    pretrained: str | os.PathLike,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> Description:
    """What an adapter is: base, classes, sizes, parameters, results. Downloads its configuration, its card and the
    header of its weights, some kB, and nothing of the backbone.

    Args:
        pretrained: folder or Hub id.
        revision (`str`, *optional*): branch, tag or commit.
        token, cache_dir: of the Hub.

    Raises:
        OSError: there is no adapter.
        ValueError: it is of neither a segmenter nor a method of this package, or one of its files is damaged.

    Example:

    ```py
    >>> import tempfile
    >>> from rein_hf import add_rein, build_segmenter, describe
    >>> folder = tempfile.mkdtemp()
    >>> base = build_segmenter("recipes/demo/vit", {0: "road", 1: "sky"}, image_size=256, num_queries=10)
    >>> add_rein(base).save_pretrained(folder)
    >>> found = describe(folder)
    >>> found.classes, found.crop, found.rein_parameters
    (('road', 'sky'), 256, 346241)

    ```
    """
    with name_in_errors(pretrained):
        return _describe(pretrained, revision, token, cache_dir)


def _describe(pretrained: str | os.PathLike, revision: str | None, token, cache_dir) -> Description:
    hub = {"token": token, "cache_dir": cache_dir}
    with say_no_such_folder(pretrained):
        path = cached_file(pretrained, CONFIG_NAME, revision=revision, **hub)
    commit = extract_commit_hash(path, None) or revision
    config = read_adapter_config(Path(path).parent)
    card = cached_file(pretrained, CARD_NAME, revision=commit, _raise_exceptions_for_missing_entries=False, **hub)
    metadata = ModelCard.load(card, ignore_metadata_errors=True).data if card else None
    found = describe_files(pretrained, config, _weights_header(pretrained, commit, **hub))
    return replace(
        found,
        base_bytes=_weights_bytes(config.base_model_name_or_path, config.revision, token),
        license=metadata.license if metadata else None,
        results=tuple(metadata.eval_results or ()) if metadata else (),
    )


def describe_folder(folder: Path) -> Description:
    """What the adapter in a folder is, without its card and the size of its backbone; asks no Hub."""
    header = parse_local_safetensors_file_metadata(folder / SAFETENSORS_WEIGHTS_NAME)
    return describe_files(folder, read_adapter_config(folder), header)


def describe_files(name: str | os.PathLike, config: PeftConfig, weights: SafetensorsFileMetadata) -> Description:
    """What the configuration of an adapter and the header of its weights say.

    Raises:
        ValueError: the adapter is no segmenter's and no method of this package.
    """
    base_config = getattr(config, "base_config", None) or {}
    pyramid = base_config.get("backbone_config")
    if not pyramid and not isinstance(config, BackboneTunerConfig):
        raise ValueError(
            f"{name}: {CONFIG_NAME} is a {type(config).__name__} that records no segmenter; expected an adapter that "
            "rein-hf train or rein_hf.add_adapter made, or a ReinConfig, AdaptFormerConfig or VPTConfig."
        )
    is_rein, is_lora = isinstance(config, ReinConfig), isinstance(config, LoraConfig)
    parameters = {name: info.parameter_count for name, info in weights.tensors.items()}
    # the paper counts W_F, from query positions to contents, with the head; a LoRA may bring biases of the backbone
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING.get(config.peft_type)
    of_method = {name for name in parameters if prefix and f".{prefix}" in name or ".vit." in name}
    of_method -= {name for name in of_method if ".rein_query_content." in name}
    vit = pyramid["backbone_config"] if pyramid else base_config
    id2label = base_config["id2label"] if pyramid else {}
    return Description(
        name=str(name),
        base=config.base_model_name_or_path,
        base_bytes=None,
        classes=tuple(id2label[index] for index in sorted(id2label, key=int)),
        crop=vit.get("image_size"),
        patch_size=vit.get("patch_size"),
        rank=config.r or None if is_rein or is_lora else None,
        num_tokens=config.num_tokens if is_rein else 0,
        linked=is_rein and config.link_queries and pyramid is not None,
        rein_parameters=sum(parameters[name] for name in of_method),
        head_parameters=sum(parameters[name] for name in parameters.keys() - of_method),
        bytes=max(info.data_offsets[1] for info in weights.tensors.values()),
        license=None,
        results=(),
        method="LoRA" if is_lora else type(config).__name__.removesuffix("Config"),
        settings=_settings(config),
        model_types=(base_config["model_type"], vit["model_type"]) if pyramid else (vit.get("model_type") or "",),
    )


def _settings(config: PeftConfig) -> str:
    """The settings of a method in words; empty for Rein, whose are attributes of the description."""
    if isinstance(config, AdaptFormerConfig):
        return f"a bottleneck of {config.bottleneck_size} beside every MLP, scale {config.scale}"
    if isinstance(config, VPTConfig):
        return f"{config.num_prompts} prompts per block"
    if isinstance(config, LoraConfig):
        scale = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
        return f"rank {config.r}, scale {scale:g}" + ("" if config.bias == "none" else ", biases too")
    return "" if isinstance(config, ReinConfig) else f"a {type(config).__name__} of peft"


def _weights_header(pretrained: str | os.PathLike, revision: str | None, token, cache_dir) -> SafetensorsFileMetadata:
    """The header of the weights: read from the file if it is on the disk, else from the first 100 kB on the Hub."""
    local = Path(pretrained, SAFETENSORS_WEIGHTS_NAME)
    if not Path(pretrained).is_dir():
        arguments = {"revision": revision, "cache_dir": cache_dir, "local_files_only": True}
        no_errors = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        cached = cached_file(pretrained, SAFETENSORS_WEIGHTS_NAME, **arguments, **no_errors)
        if cached is None:
            api = HfApi(token=token)
            return api.parse_safetensors_file_metadata(str(pretrained), SAFETENSORS_WEIGHTS_NAME, revision=revision)
        local = Path(cached)
    return parse_local_safetensors_file_metadata(local)


def _weights_bytes(base: str | None, revision: str | None, token) -> int | None:
    """Bytes of the safetensors of a folder or repository; `None` if the Hub does not tell. A description
    does not depend on it."""
    if not base:
        return None
    if Path(base).is_dir():
        return sum(path.stat().st_size for path in Path(base).glob("*.safetensors")) or None
    try:
        files = HfApi(token=token).model_info(base, revision=revision, files_metadata=True).siblings or []
    except Exception:  # of the network, the Hub or its client; the adapter can be described all the same
        return None
    return sum(file.size or 0 for file in files if file.rfilename.endswith(".safetensors")) or None


def _megabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
