"""The demonstration's clips are videos, differ as their names say, and are the same for the same seed."""

from pathlib import Path

from kvq_batch.media.probe import VideoLimits, probe
from kvq_batch.media.synthesis import DEGRADATIONS, SCENES, ClipShape, write_demo_clips

SHAPE = ClipShape(width_px=160, height_px=96, num_frames=12)


def test_clips_are_videos_of_the_shape(tmp_path: Path) -> None:
    clips = write_demo_clips(tmp_path, num_scenes=5, shape=SHAPE)
    assert len(clips) == 5 * len(DEGRADATIONS)
    assert {c.scene for c in clips} == {*SCENES, "landscape-2"}
    for clip in clips:
        facts = probe(clip.path, VideoLimits()).facts
        assert (facts.width_px, facts.height_px, facts.num_frames) == (160, 96, 12)


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    first = write_demo_clips(tmp_path / "a", 2, SHAPE, seed=4)
    again = write_demo_clips(tmp_path / "b", 2, SHAPE, seed=4)
    other = write_demo_clips(tmp_path / "c", 2, SHAPE, seed=5)
    assert [c.path.read_bytes() for c in first] == [c.path.read_bytes() for c in again]
    assert all(a.path.read_bytes() != b.path.read_bytes() for a, b in zip(first, other, strict=True))
