"""A model that is only on the hub, as a folder of headers with holes behind them: no weight is downloaded.

huggingface_hub does the talking (tokens, mirrors, offline mode, redirects); this module asks it for the beginnings of files.
"""

from __future__ import annotations

import os
import re
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from queue import SimpleQueue
from threading import Thread
from typing import Any, Final

from planner.checkpoint.hub_cache import HubName
from planner.checkpoint.reading import MOST_CONFIG_BYTES, fault
from planner.errors import CheckpointError, InvalidInputError

_AT_ONCE: Final = 8
_TIMEOUT_S: Final = 30
# Of a thousand models in use, 97 % have headers below this (huggingface_hub, ``parse_safetensors_file_metadata``).
_FIRST_BYTES: Final = 100_000
_MOST_HEADER_BYTES: Final = 100_000_000  # the format's own limit
_MOST_INDEX_BYTES: Final = 256 * 2**20
_SIZE: Final = r"([0-9]{1,18})"  # more digits are no size that a file can have
_TOTAL: Final = re.compile(rf"bytes {_SIZE}-{_SIZE}/{_SIZE}")
_CONFIGS: Final = ("config.json", "adapter_config.json", "model_index.json")
_MOST_NAME_BYTES: Final = 255
# What is in front of a host may be a password, and what is behind a path a signature that opens the file.
_ADDRESS: Final = re.compile(r"(\w+://)(?:[^\s/]*@)?([^\s?#]*)[?#]?\S*?(?=['\")]*[.,;:]?(?:\s|$))")


@contextmanager
def remote_folder(name: HubName) -> Iterator[RemoteFolder]:
    """A folder with the files of a repository, their contents yet to be read; it is gone afterwards.

    Raises:
        InvalidInputError: huggingface_hub is not installed.
        CheckpointError: no such repository or revision, no right to read it, no connection, offline mode, answers that
            are not those of a hub, no temporary folder. Fields: ``file``, ``reason``.

    Cost: one request, and one or two for each file that is read.
    """
    if find_spec("huggingface_hub") is None:
        raise InvalidInputError(
            f"{name.repo}: reading from the hub needs huggingface_hub: pip install 'device-map-planner[hub]'"
        )
    import tempfile  # few plans ask the hub, and every command loads this module

    try:
        with tempfile.TemporaryDirectory(prefix="planner-hub-") as folder:
            try:
                yield RemoteFolder(name, folder)
            except CheckpointError as error:
                # What is wrong with a file is wrong with the repository's, not with our copy of its beginning.
                raise fault(
                    error.file.replace(folder, name.repo), error.reason.replace(folder, name.repo)
                ) from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise fault(name.repo, f"its headers cannot be kept in a temporary folder: {reason}") from error


class RemoteFolder:
    """The names of a repository's files, all of one commit, and as many of their first bytes as were asked for.

    Args:
        name: the repository.
        path: an empty folder of our own.
    """

    def __init__(self, name: HubName, path: str) -> None:
        from huggingface_hub import HfApi

        self.path = path
        self._name = name
        self._is_given_up = False
        self._api = HfApi()
        with self._asking("the list of files"):
            told = self._api.model_info(name.repo, revision=name.revision, timeout=_TIMEOUT_S)
            # Files of one commit belong together; "main" may move while they are read.
            self._commit = str(told.sha or name.revision)
            files = {sibling.rfilename for sibling in told.siblings or () if _is_plain(sibling.rfilename)}
        for file in files:
            open(os.path.join(path, file), "wb").close()
        for file in sorted(os.listdir(path)):
            if file in _CONFIGS:
                self._fetch_whole(file, MOST_CONFIG_BYTES)
            elif file.endswith(".safetensors.index.json"):
                self._fetch_whole(file, _MOST_INDEX_BYTES)

    def fetch_headers(self, paths: Sequence[str]) -> None:
        """Reads the headers of files of this folder, several at once.

        Neither an interrupt nor the first fault waits for the other files, which a slow server may send for ever: nobody
        waits for these threads, and each ends at its next bytes. An executor's would be waited for, at the latest at exit.
        """
        names = deque(map(os.path.basename, paths))
        ended: SimpleQueue[Exception | None] = SimpleQueue()

        def fetch() -> None:
            with suppress(IndexError):  # none is left
                while True:
                    ended.put(self._wrong_with(names.popleft()))

        for _ in range(min(_AT_ONCE, len(names))):
            Thread(target=fetch, name="planner-hub", daemon=True).start()
        try:
            for _ in paths:
                error = ended.get()
                if error is not None:
                    raise error
        except BaseException:
            self._is_given_up = True
            names.clear()
            raise

    def _wrong_with(self, file: str) -> Exception | None:
        try:
            self._fetch_header(file)
        except Exception as error:  # noqa: BLE001 (raised where the headers are waited for)
            return error
        return None

    def _fetch_header(self, file: str) -> None:
        start, total_bytes = self._range(file, 0, _FIRST_BYTES)
        if len(start) < 8:
            raise self._fault(file, f"is {total_bytes} bytes long, too short for a header")
        (header_bytes,) = struct.unpack("<Q", start[:8])
        if header_bytes > min(_MOST_HEADER_BYTES, total_bytes - 8):
            raise self._fault(
                file, f"says that its header has {header_bytes} bytes; the file has {total_bytes}"
            )
        rest = b""
        if header_bytes + 8 > len(start):
            rest, still_bytes = self._range(file, len(start), header_bytes + 8 - len(start))
            if still_bytes != total_bytes:
                raise self._fault(file, f"had {total_bytes} bytes, and {still_bytes} a moment later")
        # Only what is there already: when it is given up, the folder may be on its way out.
        with open(os.path.join(self.path, file), "r+b") as written:
            written.write((start + rest)[: 8 + header_bytes])
            written.truncate(total_bytes)  # a hole where the weights are

    def _fetch_whole(self, file: str, most_bytes: int) -> None:
        content, total_bytes = self._range(file, 0, most_bytes)
        if total_bytes > most_bytes:
            raise self._fault(file, f"larger than {most_bytes} bytes")
        with open(os.path.join(self.path, file), "wb") as written:
            written.write(content)

    def _range(self, file: str, start: int, count: int) -> tuple[bytes, int]:
        """Bytes of a file, at most so many, and how many the file has."""
        # Its documentation lists all four; its own list of exports has only the first.
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        url = hf_hub_url(self._name.repo, file, revision=self._commit, endpoint=self._api.endpoint)
        headers = {
            **build_hf_headers(),
            "Range": f"bytes={start}-{start + count - 1}",
            "Accept-Encoding": "identity",
        }
        with (
            self._asking(file),
            get_session().stream("GET", url, headers=headers, timeout=_TIMEOUT_S) as answer,
        ):
            if answer.status_code == 416 and start == 0:
                return b"", 0  # an empty file has no first byte
            hf_raise_for_status(answer)
            return self._content(file, answer, start, count)

    def _content(self, file: str, answer: Any, start: int, count: int) -> tuple[bytes, int]:
        total = _TOTAL.fullmatch(answer.headers.get("Content-Range", ""))
        if answer.status_code == 206 and (total is None or int(total[1]) != start):
            raise self._fault(
                file, f"the server answered another range than bytes {start}-{start + count - 1}"
            )
        content = bytearray()
        skipped = start if answer.status_code != 206 else 0  # a server without ranges begins at the beginning
        for chunk in answer.iter_bytes():
            if self._is_given_up:
                raise self._fault(file, "given up")
            content += chunk
            if len(content) >= skipped + count:
                break  # a server without ranges would go on to the end of the weights
        length = answer.headers.get("Content-Length", "")
        total_bytes = int(total[3]) if total else int(length) if re.fullmatch(_SIZE, length) else None
        if total_bytes is None:
            raise self._fault(file, "the server does not say how long it is")
        found = bytes(content[skipped : skipped + count])
        if len(found) < min(count, total_bytes - start):
            raise self._fault(
                file, f"the server sent {len(found)} of {min(count, total_bytes - start)} bytes"
            )
        return found, total_bytes

    def _fault(self, file: str, reason: str) -> CheckpointError:
        return fault(f"{self._name.repo}/{file}", reason)

    @contextmanager
    def _asking(self, file: str) -> Iterator[None]:
        try:
            yield
        except CheckpointError:
            raise
        except (
            Exception
        ) as error:  # the library's own errors, its HTTP library's, and the system's have no base in common
            raise self._fault(file, _reason(error)) from error


def _is_plain(file: str) -> bool:
    """Whether a name is that of a file at the top; what lies in folders is of no model that is planned."""
    if not file or file in (".", "..") or re.search(r"[/\\\0\ud800-\udfff]", file):
        return False
    return len(file.encode()) <= _MOST_NAME_BYTES


def _reason(error: Exception) -> str:
    from huggingface_hub import errors

    known = {
        errors.GatedRepoError: "needs its owner's permission: accept the terms on its page, then `hf auth login`",
        errors.RevisionNotFoundError: "has no such revision",
        errors.RepositoryNotFoundError: "not found; if it is private, `hf auth login` first",
        errors.OfflineModeIsEnabled: "HF_HUB_OFFLINE is set, so the hub is not asked",
    }
    for kind, words in known.items():
        if isinstance(error, kind):
            return words
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    shown = _ADDRESS.sub(r"\1\2", first)
    return f"the hub gave no answer that can be used: {shown[:300]}"
