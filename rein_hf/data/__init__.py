"""Images with a label for every pixel: data sets as they are downloaded, training samples and corruptions."""

from .corruptions import CORRUPTIONS, corrupt
from .decoding import FORMATS
from .domain import Domain, load_domain, load_folder, load_hub, load_layout
from .folders import IMAGE_SUFFIXES
from .hub_datasets import Stream
from .layouts import LAYOUTS
from .samples import Collator, TrainingSamples
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
    "corrupt",
    "load_domain",
    "load_folder",
    "load_hub",
    "load_layout",
]
