"""Real crashes, hangs and kills of decoding processes: one video fails, the next one works, no files are left."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvq_batch.domain.errors import DecodeError, FatalError, ProbeError
from kvq_batch.domain.frames import FrameRequest, Sampling
from kvq_batch.domain.video import ClipPolicy
from kvq_batch.media.decode import DecodeTask
from kvq_batch.media.isolation import IsolatedDecoder
from kvq_batch.media.scratch import ScratchDirectory, sweep
from tests.support.material import Material
from tests.support.processes import started

FAULTS = "tests.support.media_faults:by_name"
REQUEST = FrameRequest(Sampling(2, 2, 1), (32, 48))


def task(path: Path, key: str = "fine") -> DecodeTask:
    return DecodeTask(path, key, (REQUEST,))


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A scratch root that must be empty at the end."""
    root = tmp_path / "scratch"
    root.mkdir()
    yield root
    assert list(root.iterdir()) == []


def test_frames_outlive_the_decoder(material: Material, scratch: Path) -> None:
    requests = (REQUEST, FrameRequest(Sampling(2, 2, 1), None), REQUEST)
    with IsolatedDecoder(1, scratch, 60) as decoder:
        video = decoder.submit(DecodeTask(material("h264.mp4"), "a", requests)).result()
        assert [p.name for p in scratch.rglob("*.frames")] == []
    frames = video.clips[0].frames
    assert [f.pixels.shape for f in frames] == [(4, 32, 48, 3), (4, 240, 320, 3), (4, 32, 48, 3)]
    assert frames[0].pixels is frames[2].pixels
    assert frames[1].pixels.std() > 20
    frames[1].pixels[:] = 0  # the reader's own copy
    assert video.decoder.startswith("pyav ")
    assert video.timings.probe_s > 0
    assert video.timings.decode_s > 0


def test_ranges_of_a_long_video_are_probed_once(material: Material, scratch: Path) -> None:
    with IsolatedDecoder(1, scratch, 60) as decoder:
        whole = DecodeTask(material("h264.mkv"), "a", (REQUEST,), ClipPolicy(every_s=0.5), max_clips=3)
        first = decoder.submit(whole).result()
        rest = DecodeTask(whole.path, "a", whole.requests, whole.clips, first_clip=3, max_clips=99, probed=first.probed)
        second = decoder.submit(rest).result()
    assert [c.clip_index for c in (*first.clips, *second.clips)] == list(range(8))
    assert first.num_clips == second.num_clips == 8
    assert second.probed is first.probed


def test_segfault_fails_one_video(material: Material, scratch: Path) -> None:
    with IsolatedDecoder(1, scratch, 60, task_function=FAULTS) as decoder:
        bad, good = decoder.submit(task(material("h264.mp4"), "segfault")), decoder.submit(task(material("h264.mp4")))
        with pytest.raises(DecodeError) as caught:
            bad.result()
        assert caught.value.code == "decoder_crashed"
        assert caught.value.exit_signal == "SIGSEGV"
        assert len(good.result().clips) == 1


def test_child_that_hangs_is_killed(material: Material, scratch: Path) -> None:
    with IsolatedDecoder(1, scratch, 2, task_function=FAULTS) as decoder:
        decoder.submit(task(material("tiny.mp4"))).result()
        (pid,) = decoder.child_pids()
        with pytest.raises(DecodeError) as caught:
            decoder.submit(task(material("tiny.mp4"), "hang")).result()
        assert caught.value.code == "decode_timeout"
        assert not Path(f"/proc/{pid}").exists()
        assert len(decoder.submit(task(material("tiny.mp4"))).result().clips) == 1


def test_child_killed_between_tasks_fails_no_video(material: Material, scratch: Path) -> None:
    with IsolatedDecoder(1, scratch, 60) as decoder:
        decoder.submit(task(material("tiny.mp4"))).result()
        (pid,) = decoder.child_pids()
        os.kill(pid, signal.SIGKILL)
        while decoder.child_pids():
            time.sleep(0.01)
        assert len(decoder.submit(task(material("tiny.mp4"))).result().clips) == 1
        assert decoder.child_pids() != [pid]


def test_child_killed_at_work_fails_its_video(material: Material, scratch: Path) -> None:
    with IsolatedDecoder(1, scratch, 60, task_function=FAULTS) as decoder:
        decoder.submit(task(material("tiny.mp4"))).result()
        (pid,) = decoder.child_pids()
        hanging = decoder.submit(task(material("tiny.mp4"), "hang"))
        while not list(scratch.rglob("*.frames")):
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(DecodeError) as caught:
            hanging.result()
        assert (caught.value.code, caught.value.exit_signal) == ("decoder_crashed", "SIGKILL")


def test_memory_is_limited(material: Material, scratch: Path) -> None:
    with IsolatedDecoder(1, scratch, 60, memory_bytes=256 << 20, task_function=FAULTS) as decoder:
        with pytest.raises(DecodeError) as caught:
            decoder.submit(task(material("tiny.mp4"), "hoard")).result()
        assert caught.value.code == "out_of_memory"
        assert len(decoder.submit(task(material("tiny.mp4"))).result().clips) == 1


def test_exception_is_a_crash_with_its_message(material: Material, scratch: Path) -> None:
    with IsolatedDecoder(1, scratch, 60, task_function=FAULTS) as decoder:
        with pytest.raises(DecodeError) as caught:
            decoder.submit(task(material("tiny.mp4"), "raise")).result()
        assert "a defect of ours" in caught.value.message


def test_errors_of_bad_files_reach_the_caller(material: Material, scratch: Path) -> None:
    with IsolatedDecoder(2, scratch, 60) as decoder:
        futures = [decoder.submit(task(material(n))) for n in ("html.mp4", "damaged.mp4", "cut-h264.mkv", "h264.mp4")]
        codes = [getattr(f.exception(), "code", None) for f in futures]
    assert codes == ["not_a_video", "corrupt_frame", "truncated", None]
    assert isinstance(futures[0].exception(), ProbeError)


def test_wrong_task_function_is_fatal(material: Material, scratch: Path) -> None:
    with (
        IsolatedDecoder(1, scratch, 60, task_function="tests.media.nowhere:function") as decoder,
        pytest.raises(FatalError, match="nowhere"),
    ):
        decoder.submit(task(material("tiny.mp4"))).result()


def test_children_ignore_interrupts_and_end_with_their_parent(material: Material, tmp_path: Path) -> None:
    program = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from kvq_batch.media.isolation import IsolatedDecoder
        from tests.media.test_isolation import FAULTS, task
        with IsolatedDecoder(1, Path({str(tmp_path)!r}), 600, task_function=FAULTS) as decoder:
            decoder.submit(task(Path({str(material("tiny.mp4"))!r}))).result()
            decoder.submit(task(Path({str(material("tiny.mp4"))!r}), "hang"))
            print(*decoder.child_pids(), flush=True)
            time.sleep(600)
    """)
    with started([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(child, signal.SIGINT)
        time.sleep(0.3)
        assert _is_running(child)
        left = [p.name for p in tmp_path.iterdir() if p.name.startswith("kvq-batch-")]
        assert sweep(tmp_path) == []
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 10
    while _is_running(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _is_running(child)
    assert [p.name for p in sweep(tmp_path)] == left
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("kvq-batch-")]


def test_sweep_keeps_directories_in_use(tmp_path: Path) -> None:
    with ScratchDirectory(tmp_path) as living:
        dead = tmp_path / "kvq-batch-1-dead"
        dead.mkdir()
        (dead / "x.frames").write_bytes(b"x")
        assert sweep(tmp_path) == [dead]
        assert living.path.exists()
    assert list(tmp_path.iterdir()) == []


def test_missing_scratch_folder_is_fatal(tmp_path: Path) -> None:
    with pytest.raises(FatalError, match="does not exist"), IsolatedDecoder(1, tmp_path / "nowhere", 60):
        pass


def test_pixels_do_not_depend_on_the_process(material: Material, scratch: Path) -> None:
    with IsolatedDecoder(2, scratch, 60) as decoder:
        videos = [decoder.submit(task(material("hevc.mp4"))) for _ in range(4)]
        first, *others = [v.result().clips[0].frames[0].pixels for v in videos]
    assert all(np.array_equal(first, other) for other in others)


def _is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except FileNotFoundError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"
