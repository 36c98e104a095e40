"""Place labels beside their points, where they cover neither a curve nor another label."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

# candidate offsets in order of preference: angle in degrees, distance in points
ANGLES = (90, 270, 45, 135, 315, 225, 0, 180, 68, 112, 248, 292, 22, 158, 202, 338)
CANDIDATES = [(angle, distance) for distance in (8, 13, 20, 30, 44, 62, 84, 110) for angle in ANGLES]
NEAR = 3 * len(ANGLES)  # candidates within 20 points: beyond, a text seems to be another point's
PADDING = 8  # pixels around a label that stay free


@dataclass(frozen=True)
class Label:
    """A text beside a point in data coordinates; a curve's name is beside any of several."""

    points: tuple[tuple[float, float], ...]
    text: str
    colour: str
    size: float
    bold: bool = False


def place(axes: Axes, labels: list[Label]) -> None:
    """Draw labels greedily, each at the offset that covers least and is nearest; axis limits must be final.

    Names of single points come first, longest first, as they fit in the fewest places beside them; those of curves come last.
    """
    axes.figure.draw_without_rendering()
    obstacles = _points_drawn(axes)
    taken = [text.get_window_extent() for text in axes.texts]
    texts = {
        label: axes.annotate(
            label.text, (0, 0), (0, 0), xycoords="figure points", textcoords="offset points", ha="left", va="bottom",
            color=label.colour, fontsize=label.size, fontweight="bold" if label.bold else "normal", linespacing=1.1,
        )
        for label in sorted(labels, key=lambda label: label.bold)
    }  # fmt: skip
    for label in sorted(texts, key=lambda label: (len(label.points) > 1, not label.bold, -len(label.text))):
        text = texts[label]
        size = text.get_window_extent().size
        boxes = [
            _beside(point, size, angle, distance * axes.figure.dpi / 72)
            for angle, distance in CANDIDATES
            for point in axes.transData.transform(label.points)
        ]
        costs = [_cost(box.padded(PADDING), obstacles, taken, axes.bbox) for box in boxes]
        nearness = 0.2 / len(label.points) * np.arange(len(boxes))
        if len(label.points) == 1:
            nearness[NEAR:] += 100  # only for another label or the frame
        box = boxes[int(np.argmin(costs + nearness))]
        text.set_position(box.min * 72 / axes.figure.dpi)
        taken.append(box)


def _beside(point: np.ndarray, size: np.ndarray, angle: float, distance: float) -> Bbox:
    """Return the box of a text whose near edge is `distance` pixels from its point in direction `angle` (degrees)."""
    direction = np.array([np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))])
    towards = np.clip(1.4 * direction, -1, 1)  # at 45 degrees the point is at a corner, at 0 at the middle of a side
    centre = point + direction * distance + towards * size / 2
    return Bbox([centre - size / 2, centre + size / 2])


def _cost(box: Bbox, obstacles: np.ndarray, taken: list[Bbox], frame: Bbox) -> float:
    """Score the overlap of a label in `box`: leaving the frame is worst, then another label."""
    covered = ((obstacles > box.min) & (obstacles < box.max)).all(axis=1).sum()
    outside = (box.min < frame.min).any() or (box.max > frame.max).any()
    return 2 * covered + 120 * box.count_overlaps(taken) + 500 * outside


def _points_drawn(axes: Axes) -> np.ndarray:
    """Return pixels (n, 2) along every line and error bar, about 4 apart, and around the markers."""
    pieces = []
    for line in axes.lines:
        vertices = line.get_transform().transform(line.get_xydata().astype(float))
        pieces.append(vertices + np.array([[0, 0], [6, 6], [6, -6], [-6, 6], [-6, -6]])[:, None])
        pieces.extend(np.linspace(a, b, 2 + int(np.hypot(*(b - a)) / 4)) for a, b in pairwise(vertices))
    for collection in axes.collections:
        for segment in collection.get_segments():
            a, b = collection.get_transform().transform(segment)
            pieces.append(np.linspace(a, b, 2 + int(np.hypot(*(b - a)) / 4)))
    return np.concatenate([piece.reshape(-1, 2) for piece in pieces])
