"""A small set in the LPVQ format: pictures with darker cells, and labels that correlate with them."""

from pathlib import Path

import numpy as np
from PIL import Image

from kvq_batch.metrics.ranks import Real

NUM, GRID, SIZE_PX = 8, 7, 112


def make_region_set(
    folder: Path, name: str = "LPVQ", is_binary: bool = False, has_clean: bool = False, num: int = NUM
) -> Real:
    """Write `num` pictures with a grid of GRID x GRID labels, and return the labels [file, row, column]."""
    generator = np.random.default_rng(3)
    (folder / name).mkdir(parents=True)
    (folder / "labels").mkdir(exist_ok=True)
    all_labels = np.round(generator.uniform(1, 5, (num, GRID, GRID)) * 28) / 28
    if is_binary:
        all_labels = (all_labels > 3).astype(np.float64)
    lines, clean = [], []
    for number, labels in enumerate(all_labels):
        noisy = labels + generator.normal(size=labels.shape) * 0.6 + 0.4 * number
        cells = np.clip(25 * noisy + 20, 0, 255)
        pixels = np.kron(cells, np.ones((SIZE_PX // GRID, SIZE_PX // GRID)))
        scene = generator.uniform(0, 40, (SIZE_PX, SIZE_PX))
        save(np.clip(pixels + scene, 0, 255), folder / name / f"{number}.png")
        save(np.clip(180 + scene, 0, 255), folder / name / f"clean{number}.png")
        lines.append(f"{number}.png " + ", ".join(f"({r},{c}):{v:g}" for (r, c), v in np.ndenumerate(labels)))
        clean.append(f"{number}.png, clean{number}.png")
    (folder / "labels" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    if has_clean:
        (folder / "labels" / f"{name}.clean.txt").write_text("\n".join(clean) + "\n")
    return np.array([[[float(f"{v:g}") for v in row] for row in labels] for labels in all_labels])


def save(grey: Real, path: Path) -> None:
    rgb = np.repeat(grey.round().astype(np.uint8)[..., None], 3, axis=2)
    Image.fromarray(rgb).save(path)
