"""Draw the pictures of docs/model.md: frames with a distorted region, and KVQ-Lite's maps of them.

    python -m research.lite.pictures --out docs/pictures

Each sheet shows one procedural scene: clean, and with a rectangle that is blurred, noisy, or coded with strong
compression. Below each frame are its texture, on one range of colours per sheet, and its saliency. White lines mark the
rectangle.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from kvq_batch.analysis.quality_scale import QualityScale
from kvq_batch.config.recipe import CELL_PX, Cells, Patch, Recipe, Segment, Step
from kvq_batch.domain.frames import FrameRequest, Sampling
from kvq_batch.domain.scorer import ModelOptions, Scorer
from kvq_batch.labeling.degradations import make_rendition
from kvq_batch.labeling.segments import segment_of_scene
from kvq_batch.media.planes import Planes
from kvq_batch.media.resize import splice
from kvq_batch.models.registry import build
from kvq_batch.report import canvas

WIDTH_PX, MARGIN_PX, TEXT_PX, BAR_PX = 300, 8, 22, 92
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
    predictions = {}
    for name, frames in renditions.items():
        (predictions[name],) = scorer.score([clip_of(frames, scorer.spec.frames)])
    textures = {name: mean_map(found.texture) for name, found in predictions.items()}
    # The fixed scale of a model would hide differences of one scene.
    low, high = (float(limit(list(textures.values()))) for limit in (np.min, np.max))
    scale = QualityScale("raw score", low, high)
    size = (WIDTH_PX, round(WIDTH_PX * SEGMENT.height_px / SEGMENT.width_px))
    step = WIDTH_PX + MARGIN_PX
    width, height = len(RECIPES) * step + BAR_PX, TEXT_PX + 3 * size[1] + 2 * MARGIN_PX
    sheet = Image.new("RGB", (width, height), canvas.PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (name, found) in enumerate(predictions.items()):
        base = canvas.fit(renditions[name][0], size)
        panels = [
            base,
            canvas.tint(base, canvas.quality_colours(scale.shares(textures[name]))),
            canvas.tint(base, canvas.saliency_colours(mean_map(found.saliency))),
        ]
        title = f"{name}: raw score {found.raw_score:.3f}"
        draw.text((i * step, 2), title, fill=canvas.INK, font=canvas.font(13))
        for number, panel in enumerate(panels):
            mark_region(panel, name)
            sheet.paste(panel, (i * step, TEXT_PX + number * (size[1] + MARGIN_PX)))
    for number, bar in enumerate((canvas.quality_bar(scale, size[1]), canvas.saliency_bar(size[1]))):
        sheet.paste(bar, (len(RECIPES) * step, TEXT_PX + (number + 1) * (size[1] + MARGIN_PX)))
    palette = sheet.quantize(256)
    sheet.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(out, optimize=True)


def mean_map(values: np.ndarray | None) -> np.ndarray:
    """Return the mean of a map over its time slots."""
    assert values is not None
    mean: np.ndarray = values.mean(0)
    return mean


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


def mark_region(panel: Image.Image, name: str) -> None:
    """Draw the rectangle of the region, if the rendition has one."""
    if RECIPES[name].patches:
        scale = CELL_PX * WIDTH_PX / SEGMENT.width_px
        left, top = REGION.left * scale, REGION.top * scale
        corners = (left, top, left + REGION.columns * scale, top + REGION.rows * scale)
        ImageDraw.Draw(panel).rectangle(corners, outline="white", width=2)


if __name__ == "__main__":
    main()
