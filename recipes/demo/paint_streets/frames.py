"""Frames: the maps of a painted street at picture size, from which the weather makes pictures."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from .canvas import DEPTH_CODE, SCALE
from .chance import cloud_noise
from .labels import ROAD, SIDEWALK, TERRAIN
from .street import Street


class Frame(NamedTuple):
    """All maps of a scene at picture size; colours are float32 in 0..1, masks float32 in 0..1, lengths in metres."""

    rgb: np.ndarray  # [H, W, 3] painted colours under an even light
    label: np.ndarray  # [H, W] uint8
    glow: np.ndarray  # [H, W] uint8, index into GLOW
    snow: np.ndarray  # [H, W, 1] how much snow stays on the surface
    sky: np.ndarray  # [H, W, 1] share of sky in the pixel
    dome: np.ndarray  # [H, W, 3] the sky of a clear day, also where it is hidden
    depth: np.ndarray  # [H, W]
    x: np.ndarray  # [H, W] metres to the right of the camera
    across: np.ndarray  # [H, W] metres to the right of the middle of the road, following its bend
    sun: np.ndarray  # [H, W, 1] share of direct sunlight taken away
    contact: np.ndarray  # [H, W, 1] darkening where things touch the ground
    grain: np.ndarray  # [H, W, 1] coarse noise fixed to the ground, around 0
    street: Street


def resolve(street: Street, dome: Image.Image) -> Frame:
    """Shrinks the canvas to picture size and adds the texture of the ground; labels are taken, never mixed.

    Args:
        street: a painted one.
        dome: its sky at picture size (mode RGB).
    """
    canvas, (w, h) = street.canvas, street.canvas.size
    rgb = np.asarray(canvas.rgb.reduce(SCALE), np.float32) / 255
    label, glow, _, code = (np.asarray(canvas.maps)[::SCALE, ::SCALE, i] for i in range(4))
    focal, cx, cy = (c / SCALE for c in (canvas.focal, canvas.cx, canvas.cy))
    v, u = np.mgrid[:h, :w].astype(np.float32) + 0.5
    ground = (label <= SIDEWALK) | (label == TERRAIN)
    depth = np.exp(code.astype(np.float32) / DEPTH_CODE)
    depth = np.where(ground, np.clip(focal * canvas.height / np.maximum(v - cy, 0.5), 1.0, 300.0), depth)
    x = (u - cx) * depth / focal
    across = x - street.bend * depth**2 - street.centre
    grain = np.zeros((h, w, 1), np.float32)
    below = np.s_[max(int(cy), 0) :]  # the horizon
    grain[below] = add_ground_texture(rgb[below], label[below], depth[below], across[below], street.lane)[..., None]
    return Frame(
        rgb=rgb,
        label=label,
        glow=glow,
        snow=mask(canvas.maps.getchannel("B").reduce(SCALE)),
        sky=mask(canvas.maps.getchannel("A").point([0] * 255 + [255]).reduce(SCALE)),
        dome=np.asarray(dome, np.float32) / 255,
        depth=depth,
        x=x,
        across=across,
        sun=mask(canvas.sun.filter(ImageFilter.BoxBlur(1.4))) * ground[..., None],
        contact=mask(canvas.contact.filter(ImageFilter.BoxBlur(1.6))) * ground[..., None],
        grain=grain,
        street=street,
    )


def add_ground_texture(
    rgb: np.ndarray, label: np.ndarray, depth: np.ndarray, across: np.ndarray, lane: float
) -> np.ndarray:
    """Asphalt with wheel tracks, slabs and grass, multiplied onto `rgb` in place.

    Args:
        rgb: [H, W, 3] float32 in 0..1, of the ground only where `label` says so.
        label: [H, W].
        depth, across: [H, W] metres ahead and to the right of the middle of the road.
        lane: width of a lane in metres.

    Returns:
        [H, W] float32: its coarse part.
    """
    z, a = depth, across
    noise, jitter = cloud_noise(), np.random.default_rng(3).random((2, *z.shape), np.float32)
    # Jittered look-ups: a cheap interpolation whose error looks like the grain of asphalt.
    coarse = noise[(z * 9 + jitter[0]).astype(int) & 511, (a * 9 + jitter[1]).astype(int) & 511] - 0.5
    fine = noise[(z * 70).astype(int) & 511, (a * 70).astype(int) & 511] - 0.5
    fade = np.minimum(1.0, 14 / z)
    tracks = np.cos((np.abs(a) / lane % 1.0) * 4 * np.pi)
    speck = (jitter[0] - 0.5) * fade
    road = 0.3 * coarse + 0.22 * fine * fade + 0.12 * speck + 0.035 * tracks
    slab = 0.75  # metres
    joints = (np.minimum(a / slab % 1, z / (slab / lane * 3.2) % 1) < 0.035 + 0.0014 * z) * np.clip(1.4 - z / 14, 0, 1)
    walk = 0.3 * coarse + 0.2 * fine * fade + 0.08 * speck - 0.2 * joints
    grass = 0.5 * coarse + 0.4 * fine * fade + 0.5 * speck
    texture = np.where(label == ROAD, road, np.where(label == SIDEWALK, walk, np.where(label == TERRAIN, grass, 0)))
    rgb *= 1 + texture[..., None]
    rgb[label == TERRAIN] *= 1 + coarse[label == TERRAIN, None] * (0.3, 0.05, -0.1)
    return coarse


def mask(image: Image.Image) -> np.ndarray:
    """A picture of mode L as float32 [H, W, 1] in 0..1."""
    return np.asarray(image, np.float32)[..., None] / 255


def smooth(array: np.ndarray, radius: float) -> np.ndarray:
    """Gaussian blur of a float image [H, W, 3] or [H, W, 1] in 0..1; the radius in pixels."""
    image = Image.fromarray((np.clip(array, 0, 1) * 255).astype(np.uint8).squeeze())
    step = 1 if radius < 4 else 4  # A wide blur loses nothing at a quarter of the size.
    image = image.reduce(step).filter(ImageFilter.GaussianBlur(radius / step)).resize(image.size, Image.BILINEAR)
    return (np.asarray(image, np.float32) / 255).reshape(array.shape)
