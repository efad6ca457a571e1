"""Decoding in processes that may die: a crash or a hang of a decoder becomes the failure of one video.

Each of a few threads owns one child; a child serves many videos, is killed when a task outlives its limit, and is
replaced by a fresh one after that or after its own death. Frames come back through files of a scratch directory that
are mapped and unlinked at once. It retries nothing: whether a video is tried again is the engine's policy.
"""

import os
import queue
import signal
import socket
import subprocess
import sys
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

from kvq_batch.domain.errors import DecodeError, FatalError, KvqBatchError
from kvq_batch.domain.video import ClipFrames, DecodedClip
from kvq_batch.media import child
from kvq_batch.media.decode import DecodedVideo, DecodeTask, VideoLayout
from kvq_batch.media.scratch import ScratchDirectory, map_arrays

DECODE_TASK = "kvq_batch.media.decode:decode_task"

# A child is up in 0.3 s on an idle machine; this only has to be shorter than for ever.
_START_TIMEOUT_S = 120.0


class IsolatedDecoder:
    """A pool of decoding processes; use it as a context manager.

    `scratch_root` is a folder on a memory file system (or, by the job's word, on a disk) with room for the clips that
    are in flight. `memory_bytes` bounds what one child may allocate beyond its start, frames included. `task_function`
    ("module:function", the signature of `decode.decode_task`) is what children run.
    """

    def __init__(
        self,
        num_children: int,
        scratch_root: Path,
        timeout_s: float,
        memory_bytes: int = 4 << 30,
        task_function: str = DECODE_TASK,
    ) -> None:
        self._num_children = num_children
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._task_function = task_function
        self._scratch = ScratchDirectory(scratch_root)
        self._idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        self._children: list[_Child] = []

    def __enter__(self) -> Self:
        self._scratch.__enter__()
        self._threads = ThreadPoolExecutor(self._num_children, thread_name_prefix="kvq-decode")
        for number in range(self._num_children):
            slot = _Child(self._scratch.path / f"child-{number}.log", self._memory_bytes, self._task_function)
            self._children.append(slot)
            self._idle.put(slot)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for slot in self._children:
            slot.close()
        self._threads.shutdown(wait=True)
        self._scratch.__exit__(kind, error, tb)

    def submit(self, task: DecodeTask) -> "Future[DecodedVideo]":
        """The future of a task's clips; its exception is an `ItemError`, a `TransientError` or a `FatalError`.

        Beside what `decode.decode_task` raises: DecodeError decoder_crashed (the child died; the signal is in the
        message) and decode_timeout (it was killed after `timeout_s`).
        """
        return self._threads.submit(self._run, task)

    def child_pids(self) -> list[int]:
        """The process ids of the children that are up; none before the first task."""
        return [pid for slot in self._children if (pid := slot.pid) is not None]

    def _run(self, task: DecodeTask) -> DecodedVideo:
        scratch_file = self._scratch.path / f"{uuid.uuid4().hex}.frames"
        slot = self._idle.get()
        try:
            answer = slot.call(task, scratch_file, self._timeout_s)
            if isinstance(answer, KvqBatchError):
                raise answer
            return _assemble(task, answer, scratch_file)
        finally:
            scratch_file.unlink(missing_ok=True)
            self._idle.put(slot)


class _Child:
    """One process, started when it is first needed and again after each death."""

    def __init__(self, log: Path, memory_bytes: int, task_function: str) -> None:
        self._log = log
        self._memory_bytes = memory_bytes
        self._task_function = task_function
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def call(self, task: DecodeTask, scratch_file: Path, timeout_s: float) -> VideoLayout | KvqBatchError:
        """The child's answer.

        Raises:
            DecodeError: decode_timeout, decoder_crashed.
            FatalError: no child can be started.
        """
        if self.pid is None:
            self._start()
        try:
            self._connection.send((task, scratch_file))
            if not self._connection.poll(timeout_s):
                self.kill()
                raise DecodeError(
                    "decode_timeout",
                    f"its decoder was killed after {timeout_s:g} s; raise the job's limit if the video is that heavy",
                )
            answer: VideoLayout | KvqBatchError = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            cause, exit_signal = self._cause_of_death()
            raise DecodeError("decoder_crashed", f"its decoder died: {cause}", exit_signal=exit_signal) from error
        return answer

    def kill(self) -> None:
        """Ends the process, if any, and waits for it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._connection.close()
            self._process = None

    def close(self) -> None:
        """Kill the process permanently; a call in progress ends with an error."""
        self._is_closed = True
        process = self._process
        if process is not None:
            process.kill()
            process.wait()

    def _start(self) -> None:
        self.kill()
        if self._is_closed:
            raise FatalError("the decoder is closed")
        ours, theirs = socket.socketpair()
        with self._log.open("wb") as log, theirs:
            arguments = [str(theirs.fileno()), str(os.getpid()), str(self._memory_bytes), self._task_function]
            self._process = subprocess.Popen(
                # -P: nothing is imported from the folder of child.py.
                [sys.executable, "-P", child.__file__, *arguments, *(entry or os.getcwd() for entry in sys.path)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                process_group=0,
            )
        self._connection = Connection(ours.detach())
        try:
            if not self._connection.poll(_START_TIMEOUT_S):
                raise FatalError(f"a decoding process was not ready after {_START_TIMEOUT_S:g} s")
            self._connection.recv()
        except (EOFError, ConnectionError) as error:
            raise FatalError(f"a decoding process cannot start: {self._cause_of_death()[0]}") from error

    def _cause_of_death(self) -> tuple[str, str | None]:
        """For people, and the name of the signal if it was one."""
        assert self._process is not None
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5.0)  # the socket closes a moment before the process is gone
        code = self._process.poll()
        self.kill()
        if code is None:
            return "it closed its socket", None
        if code < 0:
            name = signal.Signals(-code).name
            return name, name
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f"exit code {code}: {lines[-1][:300] if lines else 'no message'}", None


def _assemble(task: DecodeTask, layout: VideoLayout, scratch_file: Path) -> DecodedVideo:
    arrays = map_arrays(scratch_file, list(layout.extents))
    clips = tuple(
        DecodedClip(
            clip.clip_index,
            layout.num_clips,
            clip.window,
            tuple(ClipFrames(arrays[f.extent], f.indices, f.times_s) for f in clip.frames),
        )
        for clip in layout.clips
    )
    probed = layout.probed or task.probed
    assert probed is not None
    return DecodedVideo(layout.facts, layout.decoder, layout.num_clips, clips, layout.timings, probed)
