"""Small KITTI and VOC folders, as users have them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

CAR = "Car 0.00 0 1.85 10 20 30 40 1.5 1.6 4 -2 1.75 12 1.57"
P2 = "P2: 60 0 32 4 0 60 24 0.2 0 0 1 0.003"


def write_kitti_folder(root: Path, frames: Mapping[str, Sequence[str]], *, train: Iterable[int] | None = None) -> None:
    """Frames of 64x48 pixels by name and label rows; frame i has the shade 40 + i. `train` are numbers of frames."""
    for folder in ("training/image_2", "training/label_2", "training/calib", "ImageSets"):
        (root / folder).mkdir(parents=True)
    for number, (name, rows) in enumerate(frames.items()):
        picture = np.full((48, 64, 3), 40 + number, np.uint8)
        assert cv2.imwrite(str(root / "training" / "image_2" / f"{name}.png"), picture)
        (root / "training" / "label_2" / f"{name}.txt").write_text("".join(f"{row}\n" for row in rows))
        (root / "training" / "calib" / f"{name}.txt").write_text(f"P0: {P2[4:]}\n{P2}\n")
    names = list(frames)
    split = names if train is None else [names[number] for number in train]
    (root / "ImageSets" / "train.txt").write_text("".join(f"{name}\n" for name in split))


def voc_object(name: str, box: Sequence[float], *, difficult: int = 0) -> str:
    left, top, right, bottom = box
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{left}</xmin><ymin>{top}</ymin>"
        f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
    )


def write_voc_year(
    year: Path, pictures: Mapping[str, Sequence[str]], *, split: str = "trainval", wh: tuple[int, int] = (64, 48)
) -> None:
    """Pictures by name and XML objects."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (year / folder).mkdir(parents=True)
    for name, objects in pictures.items():
        assert cv2.imwrite(str(year / "JPEGImages" / f"{name}.jpg"), np.full((wh[1], wh[0], 3), 90, np.uint8))
        size = f"<size><width>{wh[0]}</width><height>{wh[1]}</height><depth>3</depth></size>"
        (year / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{''.join(objects)}</annotation>")
    (year / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in pictures))
