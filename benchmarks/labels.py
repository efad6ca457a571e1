"""Measure core-seconds per label: making, measuring and storing a rendition with each degradation.

    python -m benchmarks.labels [--frames 16] [--size 448] [--repeats 2]

Times are processor time of this process and its children, which other load does not change. The segment is a procedural
scene with texture and motion; amounts are in the middle of the default ladders. Prints Markdown.
"""

import argparse
import os
from collections.abc import Callable
from typing import TypeVar

from benchmarks.tables import print_table
from kvq_batch.config.labels import DEFAULT_LADDERS, Renditions
from kvq_batch.config.recipe import Recipe, Segment, Step
from kvq_batch.labeling.degradations import apply
from kvq_batch.labeling.labeler import Labeler, measure
from kvq_batch.labeling.segments import segment_of_scene
from kvq_batch.media.planes import encode_lossless

T = TypeVar("T")


def core_s(action: Callable[[], T], repeats: int) -> tuple[T, float]:
    """Return the result of `action`, and its least processor time, with child processes."""
    best = float("inf")
    for _ in range(repeats):
        before = os.times()
        result = action()
        after = os.times()
        best = min(best, sum(after[:4]) - sum(before[:4]))
    return result, best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=448)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    segment = Segment(num_frames=options.frames, height_px=options.size, width_px=options.size)
    source = segment_of_scene("leaves", 1, segment)
    rows = []
    for name, amounts in DEFAULT_LADDERS.items():
        step = Step(name, amounts[len(amounts) // 2])
        rendition, made_s = core_s(lambda step=step: apply(source, (step,), 1), options.repeats)  # type: ignore[misc]
        fidelity, measured_s = core_s(lambda rendition=rendition: measure(source, rendition), options.repeats)  # type: ignore[misc]
        stored, stored_s = core_s(lambda rendition=rendition: encode_lossless(rendition), options.repeats)  # type: ignore[misc]
        rows.append(
            {
                "degradation": str(step),
                "VMAF": f"{fidelity.vmaf.mean():.1f}",
                "make, core-s": f"{made_s:.2f}",
                "measure, core-s": f"{measured_s:.2f}",
                "store, core-s": f"{stored_s:.2f}",
                "stored, kB": round(len(stored) / 1000),
            }
        )
    print_table(rows)
    recipes = [Recipe(chain, (), 1) for chain in Renditions().chains]

    def label_all() -> None:
        labeller = Labeler(source)
        for recipe in recipes:
            labeller.label(recipe)

    _, total_s = core_s(label_all, 1)
    print(f"\nAll {len(recipes)} default renditions of it: {3600 * len(recipes) / total_s:.0f} labels per core-hour.")


if __name__ == "__main__":
    main()
