"""Images with a label for every pixel: data sets as they are downloaded, training samples and corruptions."""

from ..images import FORMATS, IMAGE_SUFFIXES
from .checks import describe_odd_ids, label_warnings
from .corruptions import CORRUPTIONS, corrupt
from .domain import Domain, check_different_names
from .hub_datasets import Stream
from .layouts import LAYOUTS
from .loaders import load_domain, load_domains, load_folder, load_hub, load_layout
from .samples import Collator, TrainingSamples, class_masks
from .transforms import Augmentation


__all__ = [
    "Augmentation",
    "CORRUPTIONS",
    "Collator",
    "Domain",
    "FORMATS",
    "IMAGE_SUFFIXES",
    "LAYOUTS",
    "Stream",
    "TrainingSamples",
    "check_different_names",
    "class_masks",
    "corrupt",
    "describe_odd_ids",
    "label_warnings",
    "load_domain",
    "load_domains",
    "load_folder",
    "load_hub",
    "load_layout",
]
