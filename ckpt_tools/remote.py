"""Files and folders at URLs, read by ranges through fsspec (the extra ``remote``).

A checkpoint's header stands at its beginning or at its end, and formats read it in many small pieces. These are
served from a few blocks of the file, each fetched once; so that what a header costs is its own length, rounded up,
and a request for each place in the file where a part of it lies. Long reads, which are those of tensors, pass the
blocks by and are fetched ahead where they follow each other.
"""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from ckpt_tools.errors import CkptError, MissingDependency, NotFound, UnsupportedFeature
from ckpt_tools.sources import FileSource, Folder, Source

BLOCK = 1 << 14
"""Bytes fetched at least."""
MAX_BLOCKS = 256
"""How many blocks of a file are kept."""
LONG_READ = 1 << 18
"""Reads of so many bytes are not kept."""
AHEAD = 8 << 20
"""Bytes fetched at a time where long reads follow each other."""
CONNECT_SECONDS, ANSWER_SECONDS = 30, 60
"""How long a web server may take to accept a connection, and to send the next bytes."""

_HTTP = ("http", "https")
_DOWNLOAD = "Download the file, and name the copy"
_AGAIN = "Try again, or download the file first"
_BROKEN_OFF = ("ClientPayloadError", "ServerDisconnectedError", "ClientOSError", "IncompleteRead")


def shown(url: str) -> str:
    """*url* without what may give access: user, password and query."""
    return re.sub(r"//[^/@]*@", "//", url.partition("?")[0])


def open_url(url: str) -> Source | Folder:
    """What lies at *url*: a file, of which nothing is read yet, or a folder.

    Raises `MissingDependency` where the package for its scheme is not installed, `NotFound` where there is
    nothing or access is denied.
    """
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(url, **_options(url))
    except ImportError as error:
        raise _missing(url, error) from None
    except ValueError as error:  # Protocol not known
        raise UnsupportedFeature(f"no such URL can be read: {error}", path=shown(url)) from None
    except Exception as error:
        raise _failure(url, error) from None
    if "file" in _protocols(system):
        return _local(path)
    info = _info(url, system, path)
    if info.get("type") == "directory":
        return RemoteFolder(url, system, path)
    return RemoteSource(url, system, path, info)


def _local(path: str) -> Source | Folder:
    return Folder(path) if os.path.isdir(path) else FileSource(path)


def _info(url: str, system: Any, path: str) -> dict[str, Any]:
    try:
        info: dict[str, Any] = system.info(path)
    except Exception as error:
        raise _failure(url, error) from None
    return info


def _protocols(system: Any) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


def _options(url: str) -> dict[str, Any]:
    """What the file systems of *url* are told: for the web, to go through proxies and not to wait for ever."""
    schemes = [scheme for scheme in re.findall(r"(?:^|::)([a-z][a-z0-9+.-]*)://", url) if scheme in _HTTP]
    if not schemes:
        return {}
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=ANSWER_SECONDS)
    return {scheme: {"client_kwargs": {"timeout": timeout, "trust_env": True}} for scheme in schemes}


class RemoteSource(Source):
    """The file at a URL."""

    __slots__ = ("_ahead", "_ahead_start", "_blocks", "_file", "_lock", "_path", "_system", "_url")

    def __init__(self, url: str, system: Any, path: str, info: dict[str, Any]) -> None:
        size = info.get("size")
        if not isinstance(size, int):
            raise UnsupportedFeature("the server does not tell how long the file is", path=shown(url), remedy=_DOWNLOAD)
        super().__init__(shown(url), size)
        self._url = url
        self._system = system
        self._path = path
        self._file: Any = None
        self._lock = threading.Lock()
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._ahead = b""
        self._ahead_start = 0

    def peek(self, offset: int, count: int) -> bytes:
        count = max(0, min(count, self.size - offset))
        if not count:
            return b""
        with self._lock:
            return self._long(offset, count) if count >= LONG_READ else self._short(offset, count)

    def folder(self) -> Folder | None:
        # of a query it is not known what it would mean for another file
        if "?" in self._url or "/" not in self._path.strip("/"):
            return None
        head, chain, rest = self._url.partition("::")
        return RemoteFolder(head.rpartition("/")[0] + chain + rest, self._system, self._path.rpartition("/")[0])

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _short(self, offset: int, count: int) -> bytes:
        """Bytes from the blocks, of which what is missing is fetched in one piece."""
        first, last = offset // BLOCK, (offset + count - 1) // BLOCK
        missing = [index for index in range(first, last + 1) if index not in self._blocks]
        if missing:
            start = missing[0] * BLOCK
            data = self._fetch(start, min((missing[-1] + 1) * BLOCK, self.size) - start)
            for at in range(0, len(data), BLOCK):
                self._blocks[(start + at) // BLOCK] = data[at : at + BLOCK]
        for index in range(first, last + 1):
            self._blocks.move_to_end(index)
        data = b"".join(self._blocks[index] for index in range(first, last + 1))
        while len(self._blocks) > MAX_BLOCKS:
            self._blocks.popitem(last=False)
        return data[offset - first * BLOCK :][:count]

    def _long(self, offset: int, count: int) -> bytes:
        """Bytes that are read once; those that follow them are fetched along if these followed others."""
        at = offset - self._ahead_start
        if at >= 0 and at + count <= len(self._ahead):
            return self._ahead[at : at + count]
        follows = bool(self._ahead) and at == len(self._ahead)
        self._ahead = self._fetch(offset, min(max(count, AHEAD if follows else 0), self.size - offset))
        self._ahead_start = offset
        return self._ahead[:count]

    def _fetch(self, offset: int, count: int) -> bytes:
        try:
            if self._file is None:
                # the file's own cache would fetch megabytes around each read
                options: dict[str, Any] = {"cache_type": "none", "block_size": BLOCK}
                if set(_protocols(self._system)) & set(_HTTP):
                    options["size"] = self.size  # or it would ask for it again
                self._file = self._system.open(self._path, "rb", **options)
            self._file.seek(offset)
            data: bytes = self._file.read(count)
        except Exception as error:
            raise _failure(self._url, error, offset) from None
        if len(data) != count:
            raise CkptError(f"the server sent {len(data):,} of {count:,} bytes", path=self.name, offset=offset)
        return data


class RemoteFolder(Folder):
    """The folder at a URL. What a web server has in it is not known, but its files can be opened by name."""

    __slots__ = ("_path", "_system", "_url")

    def __init__(self, url: str, system: Any, path: str) -> None:
        super().__init__(shown(url))
        self._url = url
        self._system = system
        self._path = path.rstrip("/")

    def names(self) -> list[str]:
        return self._listed("file")

    def folders(self) -> list[str]:
        return self._listed("directory")

    def open(self, name: str) -> Source:
        url, path = self._below(name)
        info = _info(url, self._system, path)
        if info.get("type") == "directory":
            raise NotFound("is not a file", path=shown(url))
        return RemoteSource(url, self._system, path, info)

    def folder(self, name: str) -> Folder:
        url, path = self._below(name)
        return RemoteFolder(url, self._system, path)

    def _below(self, name: str) -> tuple[str, str]:
        """The URL and the path of what is called *name* in it."""
        self.inside(name)
        if set(_protocols(self._system)) & set(_HTTP):
            name = quote(name)
        head, chain, rest = self._url.partition("::")
        return f"{head.rstrip('/')}/{name}{chain}{rest}", f"{self._path}/{name}"

    def _listed(self, kind: str) -> list[str]:
        if set(_protocols(self._system)) & set(_HTTP):
            raise NotFound("a folder on a web server cannot be listed", path=self.name)
        try:
            entries = self._system.ls(self._path, detail=True)
        except Exception as error:
            raise _failure(self._url, error) from None
        return sorted(entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == kind)


# --- what goes wrong


def _missing(url: str, error: ImportError) -> CkptError:
    """The error for a package that a scheme needs: the extra brings those for the web, others have their own."""
    cause = error if isinstance(error, ModuleNotFoundError) else error.__cause__
    package = (getattr(cause, "name", None) or "of its scheme").partition(".")[0]
    made = MissingDependency(package, "remote", f"reading {shown(url)}")
    if package not in ("fsspec", "aiohttp"):
        made.remedy = f"Install it with: pip install {package}"
    return made


def _failure(url: str, error: Exception, offset: int | None = None) -> CkptError:
    """What *error*, raised by a file system, means."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, CkptError):
            return cause
        if isinstance(cause, ImportError):
            return _missing(url, cause)
        status = getattr(cause, "status", None)
        if isinstance(status, int) and status >= 400:
            return _answer(url, status)
    for cause in causes:
        name, system_error = type(cause).__name__, getattr(cause, "os_error", None)
        if isinstance(cause, TimeoutError) or "Timeout" in name:
            return CkptError("the server did not answer in time", path=shown(url), offset=offset, remedy=_AGAIN)
        if isinstance(system_error, OSError):
            reason = system_error.strerror or str(system_error)
            remedy = "Check the address and the network"
            return CkptError(f"the server cannot be reached: {reason}", path=shown(url), remedy=remedy)
        if isinstance(cause, ConnectionError) or name in _BROKEN_OFF:
            return CkptError("the connection broke off", path=shown(url), offset=offset, remedy=_AGAIN)
        if "range requests" in str(cause):
            what = "the server sends whole files only, not ranges of them"
            return UnsupportedFeature(what, path=shown(url), remedy=_DOWNLOAD)
    for cause in causes:
        if isinstance(cause, FileNotFoundError | IsADirectoryError | NotADirectoryError):
            return NotFound("there is no such file", path=shown(url))
        if isinstance(cause, PermissionError):
            return NotFound("access is denied", path=shown(url))
    return CkptError(f"reading failed: {type(error).__name__}: {error}", path=shown(url), offset=offset)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(8):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _answer(url: str, status: int) -> CkptError:
    if status in (404, 410):
        return NotFound(f"there is no such file (the server answers {status})", path=shown(url))
    if status in (401, 403, 407):
        return NotFound(
            f"access is denied (the server answers {status})",
            path=shown(url),
            remedy="Sign in as the server wants it, or download the file another way",
        )
    return CkptError(f"the server answers {status}", path=shown(url), remedy="Try again later")
