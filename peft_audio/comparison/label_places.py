"""Where the names of points go, so that they cover neither each other nor the data."""

from __future__ import annotations

import numpy as np

# In the unit of the coordinates (pixels): from a point to the edge of its name, the nearest first.
DISTANCES = (9, 15, 23, 33, 46, 62, 82, 108, 140)
DIRECTIONS = 16
# From here on a line must say which point a name belongs to.
NEEDS_A_LINE = 16
NAME, OUTSIDE = 1000.0, 1e6


def place(
    points: np.ndarray, sizes: np.ndarray, taken: np.ndarray, weights: np.ndarray, bounds: np.ndarray
) -> np.ndarray:
    """Put each name, in order, at the place near its point where it covers least.

    Args:
        points: What is named, of shape (names, 2), in pixels.
        sizes: Width and height of each name, of shape (names, 2).
        taken: Boxes that are better left free, of shape (boxes, 4): left, bottom, right, top.
        weights: How bad it is to cover each of them, of shape (boxes,); one pixel of distance counts 1.
        bounds: The box that names may not leave, of shape (4,).

    Returns:
        Boxes of the names, of shape (names, 4).
    """
    placed = np.empty((0, 4))
    for point, size in zip(points, sizes, strict=True):
        boxes, distances = _candidates(point, size)
        cost = distances + _overlap(boxes, taken) @ weights + NAME * _overlap(boxes, placed).sum(axis=1)
        cost += OUTSIDE * ((boxes[:, :2] < bounds[:2]) | (boxes[:, 2:] > bounds[2:])).any(axis=1)
        cost += NAME * _crossings(point, boxes, placed)
        placed = np.vstack([placed, boxes[cost.argmin()]])
    return placed


def nearest_corner(point: np.ndarray, box: np.ndarray) -> np.ndarray | None:
    """Where a line from a point meets its name, of shape (2,); None where the name is near enough without."""
    end = np.clip(point, box[:2], box[2:])
    return end if np.hypot(*(end - point)) > NEEDS_A_LINE else None


def _candidates(point: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes around a point, right of it first, and how far each is."""
    angles = np.arange(DIRECTIONS) * 2 * np.pi / DIRECTIONS
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    distances = np.repeat(np.array(DISTANCES, dtype=float), DIRECTIONS)
    centres = point + np.tile(directions, (len(DISTANCES), 1)) * (distances[:, None] + size / 2)
    # Level with its point a name reads best.
    tilt = np.tile(np.abs(directions[:, 1]), len(DISTANCES))
    return np.hstack([centres - size / 2, centres + size / 2]), distances + 2 * tilt


def _overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which box meets which other, of shape (boxes, others)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return (low < high).all(axis=2)


def _crossings(point: np.ndarray, boxes: np.ndarray, placed: np.ndarray) -> np.ndarray:
    """How many names the line from the point to each box would run through, of shape (boxes,)."""
    ends = np.clip(point, boxes[:, :2], boxes[:, 2:])
    steps = np.linspace(0, 1, 24)[None, :, None]
    path = point + (ends[:, None, :] - point) * steps
    inside = (path[:, :, None] > placed[:, :2]) & (path[:, :, None] < placed[:, 2:])
    return inside.all(axis=3).any(axis=1).sum(axis=1)
