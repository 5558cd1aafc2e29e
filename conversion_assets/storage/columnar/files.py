"""Where the bytes of the columnar store lie: a local folder, or an ``s3://`` prefix."""

import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError

from conversion_assets.domain.errors import ConflictError, ConversionError, InputError
from conversion_assets.storage.columnar.manifest import MANIFEST_PATH, StoredFile


class StoreFiles:
    """Files of a store in a local folder or under an ``s3://`` prefix.

    Whatever goes wrong with one of them is an `InputError` of one line.

    Args:
        url: Path, ``file://`` or ``s3://bucket/prefix``.
        options: Settings of an object store.

    Attributes:
        url: As it was given.
        scan_options: What a reader of Parquet must be told to reach the files.

    Raises:
        InputError: The URL is of another kind.
    """

    def __init__(self, url: str, options: Mapping[str, str]) -> None:
        self.url = url
        self._backend: _Backend
        if url.startswith("s3://"):
            self._backend = _ObjectBackend(url, options)
        elif "://" in url and not url.startswith("file://"):
            raise InputError(f"store {url}: use a folder or s3://bucket/prefix")
        else:
            self._backend = _LocalBackend(Path(url.removeprefix("file://")))
        self.scan_options = self._backend.scan_options

    def get(self, path: str) -> tuple[bytes, str] | None:
        """Bytes of a file and what tells this version of it from others; None where it is not."""
        found: tuple[bytes, str] | None = self._guarded("read", lambda: self._backend.get(path))
        return found

    def read_checked(self, file: StoredFile) -> bytes:
        """Bytes of a file that are those the manifest tells of.

        Raises:
            InputError: the file is missing or differs.
        """
        found = self.get(file.path)
        if found is None or hashlib.sha256(found[0]).hexdigest() != file.sha256:
            where = self.url_of(file.path)
            raise InputError(f"{where}: missing or damaged; refresh with force to rebuild")
        return bytes(found[0])

    def put_new(self, path: str, data: bytes) -> None:
        """Write a file that does not exist; it survives a loss of power."""
        self._guarded("write", lambda: self._backend.put_new(path, data))

    def replace(self, path: str, data: bytes, expected: str | None) -> None:
        """Replace a file whole, if it is still the version expected; None: if there is none.

        Raises:
            ConflictError: Somebody else replaced it.
        """
        self._guarded("write", lambda: self._backend.replace(path, data, expected))

    def url_of(self, path: str) -> str:
        """Where a file lies, fit for a message and for a reader of Parquet."""
        return self._backend.url_of(path)

    def listed(self) -> list[tuple[str, float]]:
        """Every file but the manifest, and when it was written, in seconds since 1970."""
        found: list[tuple[str, float]] = self._guarded("list", lambda: list(self._backend.listed()))
        return found

    def sizes(self) -> dict[str, int]:
        """Bytes of every file."""
        found: dict[str, int] = self._guarded("list", self._backend.sizes)
        return found

    def delete(self, paths: list[str]) -> None:
        """Remove files; those that are not there do not matter."""
        self._guarded("delete", lambda: self._backend.delete(paths))

    def locked(self) -> AbstractContextManager[None]:
        """Held by the one who writes.

        Raises:
            ConflictError: Another process holds it.
        """
        return self._backend.locked()

    def _guarded(self, verb: str, call: Callable[[], Any]) -> Any:
        """Run a call of the backend; what it raises becomes one line."""
        try:
            return call()
        except ConversionError:
            raise
        except (OSError, obstore.exceptions.BaseError) as error:
            raise InputError(f"store {self.url}: cannot {verb}: {first_line(error)}") from None


class _Backend(Protocol):
    """Where bytes lie."""

    scan_options: dict[str, str] | None

    def get(self, path: str) -> tuple[bytes, str] | None: ...
    def put_new(self, path: str, data: bytes) -> None: ...
    def replace(self, path: str, data: bytes, expected: str | None) -> None: ...
    def url_of(self, path: str) -> str: ...
    def listed(self) -> Iterator[tuple[str, float]]: ...
    def delete(self, paths: list[str]) -> None: ...
    def sizes(self) -> dict[str, int]: ...
    def locked(self) -> AbstractContextManager[None]: ...


class _LocalBackend:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.scan_options: dict[str, str] | None = None

    def get(self, path: str) -> tuple[bytes, str] | None:
        try:
            data = (self.root / path).read_bytes()
        except FileNotFoundError:
            return None
        return data, hashlib.sha256(data).hexdigest()

    def put_new(self, path: str, data: bytes) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(target.parent)

    def replace(self, path: str, data: bytes, expected: str | None) -> None:
        # Writers hold the lock, so nobody can come between this look and the rename.
        current = self.get(path)
        if (current[1] if current else None) != expected:
            raise ConflictError(f"{self.root}: the store was changed by another writer; try again")
        staged = f".{path}-{secrets.token_hex(8)}"
        self.put_new(staged, data)
        (self.root / staged).replace(self.root / path)
        _sync_folder(self.root)

    def url_of(self, path: str) -> str:
        return str(self.root / path)

    def listed(self) -> Iterator[tuple[str, float]]:
        for path in self.root.rglob("*"):
            if path.is_file() and path.name not in (MANIFEST_PATH, ".lock"):
                yield path.relative_to(self.root).as_posix(), path.stat().st_mtime

    def sizes(self) -> dict[str, int]:
        return {path: (self.root / path).stat().st_size for path, _ in self.listed()}

    def delete(self, paths: list[str]) -> None:
        for path in paths:
            (self.root / path).unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = f"{self.root}: another process is writing features; wait for it to end"
                raise ConflictError(message) from None
            # The system releases the lock with the file, also when the process is killed.
            yield


def first_line(error: BaseException) -> str:
    """What a library says, without its own backtrace."""
    return str(error).strip().split("\n", maxsplit=1)[0][:200]


def _sync_folder(folder: Path) -> None:
    """Make a new or renamed entry of a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _ObjectBackend:
    def __init__(self, url: str, options: Mapping[str, str]) -> None:
        self.url = url.rstrip("/")
        self.scan_options: dict[str, str] | None = {**options, "aws_allow_http": "true"}
        strange = sorted(name for name in options if not name.startswith("aws_"))
        if strange:
            raise InputError(f"store {url}: option {strange[0]} is unknown; they begin with aws_")
        settings: Any = dict(options)
        try:
            # An endpoint is plain HTTP only where somebody wrote http:// as its address.
            self.store: Any = obstore.store.from_url(
                self.url, config=settings, client_options={"allow_http": True}
            )
        except obstore.exceptions.BaseError as error:
            raise InputError(f"store {url}: {first_line(error)}") from None

    def get(self, path: str) -> tuple[bytes, str] | None:
        try:
            result = self.store.get(path)
        except FileNotFoundError:
            return None
        return bytes(result.bytes()), result.meta["e_tag"] or ""

    def put_new(self, path: str, data: bytes) -> None:
        self.store.put(path, data)

    def replace(self, path: str, data: bytes, expected: str | None) -> None:
        mode: Any = "create" if expected is None else {"e_tag": expected}
        try:
            self.store.put(path, data, mode=mode, use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            message = f"{self.url}: the store was changed by another writer; try again"
            raise ConflictError(message) from None

    def url_of(self, path: str) -> str:
        return f"{self.url}/{path}"

    def listed(self) -> Iterator[tuple[str, float]]:
        for batch in self.store.list():
            for entry in batch:
                if entry["path"] != MANIFEST_PATH:
                    yield entry["path"], entry["last_modified"].timestamp()

    def sizes(self) -> dict[str, int]:
        return {entry["path"]: entry["size"] for batch in self.store.list() for entry in batch}

    def delete(self, paths: list[str]) -> None:
        self.store.delete(paths)

    @contextmanager
    def locked(self) -> Iterator[None]:
        # The conditional replacement of the manifest decides who wins.
        yield
