"""Draws scenes: antialiased images and segmentation maps, at any image size."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from latentdiff.shapes.scene import SHAPES, WORLD, Scene

SUPERSAMPLING = 4


def render(scene: Scene, image_size: int = 64) -> np.ndarray:
    """uint8 (H, W, 3) with H = W = ``image_size``."""
    image = np.empty((image_size, image_size, 3), np.float32)
    image[:] = scene.rgb
    for o in scene.objects:
        alpha = coverage(o.shape, o.radius, o.rotation, o.centre, image_size)[..., None]
        image += alpha * (np.array(o.rgb, np.float32) - image)
    return (image + 0.5).astype(np.uint8)


def segmentation(scene: Scene, image_size: int = 64) -> np.ndarray:
    """uint8 (H, W): 1 + index into ``SHAPES`` where an object covers half the pixel or more, 0 elsewhere."""
    labels = np.zeros((image_size, image_size), np.uint8)
    for o in scene.objects:
        labels[coverage(o.shape, o.radius, o.rotation, o.centre, image_size) >= 0.5] = 1 + SHAPES.index(o.shape)
    return labels


def coverage(shape: str, radius: float, rotation: float, centre: tuple[float, float], image_size: int) -> np.ndarray:
    """float32 (H, W) in [0, 1]: the share of each pixel that the shape covers.

    ``radius`` and ``centre`` (x, y) are in world units, ``rotation`` in degrees.
    """
    side = image_size * SUPERSAMPLING
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    turn = np.deg2rad(rotation)
    matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    for outline, fill in zip(outlines(shape), (255, 0)):
        # PIL draws between whole subpixels and would truncate the vertices by itself, towards zero
        vertices = np.floor((outline @ matrix * radius + centre) * (side / WORLD))
        draw.polygon(vertices.ravel().tolist(), fill=fill)
    return np.asarray(canvas.reduce(SUPERSAMPLING), np.float32) / 255.0


def outlines(shape: str) -> tuple[np.ndarray, ...]:
    """Vertices (V, 2) of the outer contour and of a hole, if the shape has one.

    The bounding box is centred on 0 and no vertex leaves [-1, 1] under the world's rotations. Within that limit the
    extents are chosen for similar visual area.
    """
    return _OUTLINES[shape]


def _polygon(angles: np.ndarray, radii: np.ndarray | float) -> np.ndarray:
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], axis=1)


def _circle(radius: float) -> np.ndarray:
    return _polygon(np.linspace(0, 2 * np.pi, 72, endpoint=False), radius)


def _fit(vertices: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    """Vertices moved and stretched so that their bounding box is [-half_width, half_width] x [-half_height, ...]."""
    low, high = vertices.min(0), vertices.max(0)
    return (2 * (vertices - low) / (high - low) - 1) * (half_width, half_height)


def _star(radius: float, inner: float) -> np.ndarray:
    return _polygon(np.arange(10) * np.pi / 5, np.where(np.arange(10) % 2 == 0, radius, radius * inner))


def _cross(arm: float, half: float) -> np.ndarray:
    corner = [(-half, -arm), (half, -arm), (half, -half)]
    turned = [[(-y, x) for x, y in corner], [(-x, -y) for x, y in corner], [(y, -x) for x, y in corner]]
    return np.array(corner + turned[0] + turned[1] + turned[2])


_OUTLINES = {
    "circle": (_circle(0.88),),
    "square": (0.78 * np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]),),
    "triangle": (np.array([(0.0, -0.8), (0.89, 0.8), (-0.89, 0.8)]),),
    "star": (_fit(_star(1.0, 0.45), 0.96, 0.93),),
    "cross": (_cross(0.93, 0.31),),
    "ring": (_circle(0.96), _circle(0.52)),
}
