"""The train ids of Cityscapes by name, and their colours."""

import numpy as np

from rein_hf.labels import CITYSCAPES, IGNORE


ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN = range(10)
SKY, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = range(10, 19)
VOID = IGNORE
PALETTE = np.zeros((256, 3), np.uint8)  # colour of every id; void stays black
PALETTE[: len(CITYSCAPES)] = list(CITYSCAPES.values())
