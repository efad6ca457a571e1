"""Draw the pictures of docs/model.md: frames with a distorted region, and KVQ-Lite's maps of them.

    python -m research.lite.pictures --out docs/pictures

Each sheet shows one procedural scene: clean, and with a rectangle that is blurred, noisy, or coded with strong
compression. Below each frame are its saliency and texture, on one colour scale. White lines mark the rectangle.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from kvq_batch.config.recipe import CELL_PX, Cells, Patch, Recipe, Segment, Step
from kvq_batch.domain.frames import FrameRequest, Sampling
from kvq_batch.domain.scorer import ModelOptions, Scorer
from kvq_batch.labeling.degradations import make_rendition
from kvq_batch.labeling.segments import segment_of_scene
from kvq_batch.media.planes import Planes
from kvq_batch.media.resize import splice
from kvq_batch.models.registry import build
from kvq_batch.report.picture import MARGIN_PX, TEXT_PX, WIDTH_PX, column

SCENES = ("landscape", "leaves", "page")
REGION = Cells(4, 8, 7, 8)
SEGMENT = Segment(num_frames=10, height_px=448, width_px=640, seed=11)
RECIPES = {
    "clean": Recipe(),
    "blur, sigma 2.5": Recipe((), (Patch(REGION, (Step("blur", 2.5),)),)),
    "noise, sigma 24": Recipe((), (Patch(REGION, (Step("noise", 24),)),)),
    "blocks, MJPEG q 30": Recipe((), (Patch(REGION, (Step("mjpeg", 30),)),)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="kvq-lite")
    parser.add_argument("--weights")
    options = parser.parse_args()
    scorer = build(ModelOptions(options.model, options.weights))
    options.out.mkdir(parents=True, exist_ok=True)
    for scene in SCENES:
        # No training uses this seed: those of label jobs are much smaller.
        source = segment_of_scene(scene, 1 << 20, SEGMENT)
        draw_sheet(scorer, source, options.out / f"regions-{scene}.png")


def draw_sheet(scorer: Scorer, source: Planes, out: Path) -> None:
    """Draw one sheet, with a column for each of RECIPES."""
    renditions = {name: make_rendition(source, recipe).to_rgb() for name, recipe in RECIPES.items()}
    maps = {}
    for name, frames in renditions.items():
        (prediction,) = scorer.score([clip_of(frames, scorer.spec.frames)])
        assert prediction.texture is not None
        assert prediction.saliency is not None
        maps[name] = (np.sqrt(prediction.saliency.mean(0)), prediction.texture.mean(0), prediction.raw_score)
    salience, texture = (np.stack([found[i] for found in maps.values()]) for i in (0, 1))
    bounds = ((float(salience.min()), float(salience.max())), (float(texture.min()), float(texture.max())))
    columns = [outlined(column(renditions[name][0], found[0], found[1], bounds), name) for name, found in maps.items()]
    sheet = Image.new("RGB", (len(columns) * (WIDTH_PX + MARGIN_PX), columns[0].height + TEXT_PX), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (panels, (name, found)) in enumerate(zip(columns, maps.items(), strict=True)):
        draw.text((i * (WIDTH_PX + MARGIN_PX), 2), f"{name}: raw score {found[2]:.3f}", fill="black")
        sheet.paste(panels, (i * (WIDTH_PX + MARGIN_PX), TEXT_PX))
    sheet.quantize(128).save(out, optimize=True)


def clip_of(frames: np.ndarray, request: FrameRequest) -> np.ndarray:
    """Return the clip that a scorer gets of a video of these frames."""
    assert isinstance(request.sampling, Sampling)
    indices = request.sampling.indices(len(frames))
    assert request.size is not None
    assert request.fragments is not None
    clip = np.empty((len(indices), *request.size, 3), np.uint8)
    for t, index in enumerate(indices):
        splice(frames[index], request.fragments, clip[t])
    return clip


def outlined(panels: Image.Image, name: str) -> Image.Image:
    """Draw the rectangle of the region into each of the three panels of a column."""
    if not RECIPES[name].patches:
        return panels
    scale = WIDTH_PX / SEGMENT.width_px
    height = (panels.height - 2 * MARGIN_PX) // 3
    draw = ImageDraw.Draw(panels)
    left, top = REGION.left * CELL_PX * scale, REGION.top * CELL_PX * scale
    right, bottom = left + REGION.columns * CELL_PX * scale, top + REGION.rows * CELL_PX * scale
    for number in range(3):
        offset = number * (height + MARGIN_PX)
        draw.rectangle((left, top + offset, right, bottom + offset), outline="white", width=2)
    return panels


if __name__ == "__main__":
    main()
