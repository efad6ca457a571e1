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
from collections.abc import Generator
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

DECODE_TASK = "kvq_batch.media.decode:run_task"

Answer = VideoLayout | KvqBatchError | None

# A child is ready in 0.3 s on an idle machine.
_START_TIMEOUT_S = 120.0


class IsolatedDecoder:
    """A pool of decoding processes; use it as a context manager.

    `scratch_root` is a folder on a memory file system (or on a disk, if the job says so) with space for the clips in
    flight. `memory_bytes` limits what one child may allocate after its start, frames included. Children run
    `task_function` ("module:function", with the signature of `decode.run_task`).
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

    def stream(self, task: DecodeTask) -> Generator[DecodedVideo]:
        """Yield the clips of a task in parts, as they are decoded, in this thread; `submit` for streamed requests.

        A task without streamed requests has one part. If the caller stops early, the child is killed.

        Raises: see `submit`.
        """
        scratch_file = self._scratch.path / f"{uuid.uuid4().hex}.frames"
        slot = self._idle.get()
        is_done = False
        try:
            answer: Answer = slot.call(task, scratch_file, self._timeout_s)
            is_last = not isinstance(answer, VideoLayout) or not any(r.is_streamed for r in task.requests)
            while isinstance(answer, VideoLayout):
                video = _assemble(task, answer, answer.file or scratch_file)
                if not is_last:
                    slot.ask()
                yield video
                del video
                answer = None if is_last else slot.receive(self._timeout_s)
            is_done = True
            if isinstance(answer, KvqBatchError):
                raise answer
        finally:
            if not is_done:
                slot.kill()
            for file in scratch_file.parent.glob(f"{scratch_file.stem}.*"):
                file.unlink(missing_ok=True)
            self._idle.put(slot)

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
            assert answer is not None
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

    def call(self, task: DecodeTask, scratch_file: Path, timeout_s: float) -> "Answer":
        """Return the answer of the child, or its first part.

        Raises:
            DecodeError: decode_timeout, decoder_crashed.
            FatalError: no child can be started.
        """
        if self.pid is None:
            self._start()
        self._send((task, scratch_file))
        return self.receive(timeout_s)

    def ask(self) -> None:
        """Let the child make the next part of its answer. Raises: DecodeError if it crashed."""
        self._send(True)

    def receive(self, timeout_s: float) -> "Answer":
        """Return the next part of the answer, or None after the last one. Raises: DecodeError as `call`."""
        try:
            if not self._connection.poll(timeout_s):
                self.kill()
                raise DecodeError(
                    "decode_timeout",
                    f"Its decoder was killed after {timeout_s:g} s. Raise limits.timeout_s if the video is heavy.",
                )
            answer: Answer = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            raise self._crashed() from error
        return answer

    def _send(self, message: object) -> None:
        try:
            self._connection.send(message)
        except (EOFError, ConnectionError) as error:
            raise self._crashed() from error

    def _crashed(self) -> DecodeError:
        cause, exit_signal = self._exit_cause()
        return DecodeError("decoder_crashed", f"Its decoder crashed: {cause}.", exit_signal=exit_signal)

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
            tuple(
                ClipFrames.empty(f.error) if f.extent < 0 else ClipFrames(arrays[f.extent], f.indices, f.times_s)
                for f in clip.frames
            ),
            clip.chunk_index,
            clip.num_chunks,
            clip.decode_pass,
        )
        for clip in layout.clips
    )
    probed = layout.probed or task.probed
    assert probed is not None
    return DecodedVideo(layout.facts, layout.decoder, layout.num_clips, clips, layout.timings, probed)
