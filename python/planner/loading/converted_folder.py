"""A folder with one file that is expensive to make: made once, by one process, whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

from planner.checkpoint.files import StoredFile
from planner.checkpoint.reading import printable, read_json_object, system_reason
from planner.errors import CheckpointError, InvalidInputError, OffloadError
from planner.units import format_bytes

try:
    import fcntl
except ImportError:  # there, two processes may both write; the later one's file, which holds the same, stays
    fcntl = None  # type: ignore[assignment]

__all__ = ["ConvertedFolder"]

_WEIGHTS: Final = "weights.safetensors"
_MANIFEST: Final = "manifest.json"
_HALF_END: Final = ".tmp"
# How often a folder may vanish, because another process has failed, before it is said that it does.
_TRIES: Final = 100

Bytes = Callable[[], memoryview]
"""Makes the next bytes of a file."""


class ConvertedFolder:
    """A folder that has a finished file and a manifest, or nothing.

    Args:
        root: the folder around it, as a user has named it.
        name: its name there, which says all that its file depends on.

    Guarantee: a file is finished when its manifest lies beside it, with the file's size and time; anything else that is found
        there is made anew. The file is on the disk before its manifest is.
    """

    def __init__(self, root: str, name: str) -> None:
        self.root = root
        self.path = os.path.join(root, name)
        self._weights = os.path.join(self.path, _WEIGHTS)
        self._manifest = os.path.join(self.path, _MANIFEST)
        # Of what lies there, what this object has written, and the folders that it has made for it.
        self.written_bytes = 0
        self._made: list[str] = []
        # An interrupt may come before it is released; whoever asks for another one in this process would wait for himself.
        self._claim: _Claim | None = None

    def finished(self, size_bytes: int) -> StoredFile | None:
        """The file, opened, if it is finished and as large as that."""
        try:
            said = read_json_object(self._manifest)
            file = StoredFile.open(self._weights, printable(self._weights))
        except CheckpointError:
            return None
        return file if file.size_bytes == size_bytes and said == _manifest_of(file) else None

    def finished_or_written(self, size_bytes: int, parts: Iterable[Bytes]) -> StoredFile:
        """The file, written if it is not there; while another process writes it, it is waited for.

        Args:
            size_bytes: how large it is.
            parts: the bytes of the file, in order.

        Raises:
            InvalidInputError: the folder around it is a file.
            OffloadError: there is no room, or the system does not let it be written. Fields: ``name``.

        Guarantee: when it raises, also for an interrupt, the folder around it is as it was, but for what a killed process has left.
        """
        file = self.finished(size_bytes)
        if file is not None:
            return file
        if os.path.exists(self.root) and not os.path.isdir(self.root):
            raise InvalidInputError(
                f"offload_folder is {printable(self.root)}, a file; name a folder, or a place for one"
            )
        claim = self._claim = _Claim(self.path, self._made)
        try:
            claim.take()
            return self.finished(size_bytes) or self._written(size_bytes, parts, claim)
        except BaseException as error:
            claim.take_back()
            if isinstance(error, OSError):
                raise self._fault(error) from error
            raise
        finally:
            claim.release()

    def discard(self) -> None:
        """Deletes what was written, if anything was; who has it open keeps it."""
        if self._claim is not None:
            self._claim.release()
        if not self.written_bytes:
            return
        claim = self._claim = _Claim(self.path, self._made)
        try:
            claim.take()
            self._clear(is_locked=claim.is_locked)
            claim.take_back()
        finally:
            claim.release()

    def _written(self, size_bytes: int, parts: Iterable[Bytes], claim: _Claim) -> StoredFile:
        try:
            return self._write(size_bytes, parts, claim)
        except BaseException:
            self._clear(is_locked=claim.is_locked)
            self.written_bytes = 0
            raise

    def _write(self, size_bytes: int, parts: Iterable[Bytes], claim: _Claim) -> StoredFile:
        # What lies here is not finished and nobody's, and may take the room that is needed.
        self._clear(is_locked=claim.is_locked)
        free_bytes = shutil.disk_usage(self.path).free
        if free_bytes < size_bytes:
            raise OffloadError(
                f"what convert='store' writes takes {format_bytes(size_bytes)} ({size_bytes} bytes), and {printable(self.root)} has "
                f"{format_bytes(free_bytes)} ({free_bytes} bytes) free; name an offload_folder with more, or load with convert='fetch', "
                "which writes nothing",
                name=self.root,
            )
        self._put(self._weights, parts, claim)
        file = StoredFile.open(self._weights, printable(self._weights))
        if file.size_bytes != size_bytes:
            raise OffloadError(
                f"{printable(self._weights)} has {file.size_bytes} bytes after {size_bytes} were written: something else writes there",
                name=self.root,
            )
        manifest = json.dumps(_manifest_of(file)).encode()
        # Before it is finished: an interrupt may come at any time.
        self.written_bytes = size_bytes + len(manifest)
        self._put(self._manifest, [lambda: memoryview(manifest)], claim)
        return file

    def _put(self, path: str, parts: Iterable[Bytes], claim: _Claim) -> None:
        """Writes a file under another name, and gives it its own when it is on the disk."""
        half = os.path.join(self.path, f".{os.getpid()}.{secrets.token_hex(8)}{_HALF_END}")
        claim.half = half
        number = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            for part in parts:
                _write_all(number, part())
            os.fsync(number)
        finally:
            os.close(number)
        os.replace(half, path)
        claim.sync()

    def _clear(self, *, is_locked: bool) -> None:
        """Deletes what is there; without a lock, files that others may be writing stay."""
        with suppress(OSError):
            halves = [name for name in os.listdir(self.path) if name.endswith(_HALF_END)]
            for name in (_MANIFEST, _WEIGHTS, *(halves if is_locked else ())):
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(self.path, name))

    def _fault(self, error: OSError) -> Exception:
        if isinstance(error, NotADirectoryError | FileExistsError):
            return InvalidInputError(
                f"offload_folder is {printable(self.root)}, and {printable(str(error.filename))} on the way to what is written there is a "
                "file"
            )
        return OffloadError(
            f"convert='store' cannot write to {printable(self.root)}: {system_reason(error)}; name an offload_folder that can be written "
            "to, or load with convert='fetch', which writes nothing",
            name=self.root,
        )


class _Claim:
    """One process's right to write a folder, which is made for it.

    Args:
        path: the folder.
        made: folders that were made for it, the innermost first; added to.
    """

    def __init__(self, path: str, made: list[str]) -> None:
        self._path = path
        self._made = made
        self._number: int | None = None
        self.is_locked = False
        # A file that is being written.
        self.half: str | None = None

    def take(self) -> None:
        """Waits until nobody else has it."""
        for tries_left in reversed(range(_TRIES)):
            try:
                self._make()
                if fcntl is None or not self._lock():
                    return
                if os.path.samestat(os.fstat(self._number or 0), os.stat(self._path)):
                    return
            except FileNotFoundError:
                if not tries_left:
                    raise
            # Who had it before has failed, and has deleted the folder.
            self.release()

    def _make(self) -> None:
        path = self._path
        missing = []
        while not os.path.isdir(path):
            missing.append(path)
            path = os.path.dirname(path)
        # Noted before they are made: an interrupt between the two leaves one that is not there.
        self._made.extend(missing)
        os.makedirs(self._path, exist_ok=True)

    def _lock(self) -> bool:
        """Whether there is a lock: the folder's own, which leaves no file and ends with the process."""
        self._number = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._number, fcntl.LOCK_EX)
        except OSError:
            return False  # network file systems have none for folders
        self.is_locked = True
        return True

    def sync(self) -> None:
        """Waits until the folder's entries are on the disk."""
        if self._number is not None:
            os.fsync(self._number)

    def take_back(self) -> None:
        """Deletes what was made for it, as far as nothing else lies there."""
        if self.half is not None:
            with suppress(OSError):
                os.unlink(self.half)
        for path in dict.fromkeys([self._path, *self._made]):
            with suppress(OSError):
                os.rmdir(path)

    def release(self) -> None:
        """Lets the next one have it; to be called again where it was interrupted."""
        number = self._number
        if number is None:
            return
        if self.is_locked:
            # A child that was forked meanwhile has the handle, too, and closing ours would not unlock it.
            fcntl.flock(number, fcntl.LOCK_UN)
            self.is_locked = False
        self._number = None
        os.close(number)


def _manifest_of(file: StoredFile) -> dict[str, Any]:
    _, _, size_bytes, written_nanoseconds = file.identity
    return {"size_bytes": size_bytes, "written_nanoseconds": written_nanoseconds}


def _write_all(number: int, content: memoryview) -> None:
    # In pieces, between which an interrupt is heard.
    at, piece_bytes = 0, 64 * 2**20
    while at < len(content):
        at += os.write(number, content[at : at + piece_bytes])
