"""Rein for the Hugging Face stack: domain-generalised semantic segmentation with a few MB of adapter.

Importing the package registers Rein with peft and the pyramid backbone with transformers. Without that import
`PeftConfig.from_pretrained` of a Rein adapter ends in `KeyError: 'REIN'`.
"""

from .backbone import ViTPyramidBackbone, ViTPyramidConfig
from .segmenter import HEAD_MODULES, add_rein, build_segmenter, from_pretrained
from .tuner import ReinConfig, ReinLayer, ReinModel, ReinQueries
