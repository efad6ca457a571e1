"""Pool of decoding processes: a decoder that crashes or hangs fails one video.

Each thread of the pool owns one child process. A child decodes many videos. It is killed when a task exceeds its time
limit, and replaced after that or after a crash. Frames come back through files of a scratch directory, which are mapped
and unlinked at once. The engine decides whether a video is tried again.
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

# A child is ready in 0.3 s on an idle machine.
_START_TIMEOUT_S = 120.0


class IsolatedDecoder:
    """A pool of decoding processes; use it as a context manager.

    `scratch_root` is a folder on a memory file system (or on a disk, if the job says so) with space for the clips in
    flight. `memory_bytes` limits what one child may allocate after its start, frames included. Children run
    `task_function` ("module:function", with the signature of `decode.decode_task`).
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
        """Return the future of the clips of a task; its exception is an `ItemError`, `TransientError` or `FatalError`.

        In addition to the errors of `decode.decode_task`: DecodeError decoder_crashed (the message has the signal) and
        decode_timeout (the child was killed after `timeout_s`).
        """
        return self._threads.submit(self._run, task)

    def child_pids(self) -> list[int]:
        """Return the process ids of the children that run; none before the first task."""
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
    """One process, started for its first task and again after each crash."""

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
        """Return the answer of the child.

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
                    f"Its decoder was killed after {timeout_s:g} s. Raise limits.timeout_s if the video is heavy.",
                )
            answer: VideoLayout | KvqBatchError = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            cause, exit_signal = self._exit_cause()
            raise DecodeError("decoder_crashed", f"Its decoder crashed: {cause}.", exit_signal=exit_signal) from error
        return answer

    def kill(self) -> None:
        """Kill the process, if it runs, and wait for its end."""
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
            raise FatalError("The pool of decoding processes is closed.")
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
                raise FatalError(
                    f"A decoding process was not ready after {_START_TIMEOUT_S:g} s. Is the machine overloaded?"
                )
            self._connection.recv()
        except (EOFError, ConnectionError) as error:
            raise FatalError(f"A decoding process cannot start: {self._exit_cause()[0]}.") from error

    def _exit_cause(self) -> tuple[str, str | None]:
        """Return why the process ended, and the name of the signal if there was one."""
        assert self._process is not None
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5.0)  # the socket closes shortly before the process ends
        code = self._process.poll()
        self.kill()
        if code is None:
            return "its socket was closed", None
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
