"""Writing aside and renaming: what stands under its final name is complete."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from ia2.errors import IA2Error
from ia2.processes import processes


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, a file's or a folder's, renamed to `path` if the block succeeds.

    Of several processes, which all come here, the main one's is kept: it appears once all have written, and none goes
    on before it is there.

    Raises:
        IA2Error: it cannot be written: the disk is full, or the folder is read-only.
    """
    group = processes()
    if group.is_main_process:
        with written_alone(path, group.wait_for_everyone) as aside:
            yield aside
    else:
        with TemporaryDirectory() as folder:
            yield Path(folder) / path.name
        group.wait_for_everyone()
    group.wait_for_everyone()


@contextmanager
def written_alone(path: Path, before: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """As `written_aside`, of a file or folder that this process writes without the others; `before` it is renamed."""
    aside = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(aside)
        yield aside
        before()
        os.replace(aside, path)
    except (OSError, SafetensorError) as error:  # safetensors gives its own where the disk is full
        raise _unwritable(path, error) from error
    finally:
        _remove(aside)


def room(folder: Path) -> int:
    """Bytes that a folder can hold: what is free on its disk, and what it holds already."""
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    return shutil.disk_usage(place).free + sum(of.stat().st_size for of in folder.rglob("*") if of.is_file())


def _unwritable(path: Path, error: Exception) -> IA2Error:
    why = (getattr(error, "strerror", None) or str(error)).lower()
    return IA2Error(f"{path}: cannot be written ({why}); see to it, and the same command again continues")


def damaged(path: Path, why: object, remove: Path | None = None) -> IA2Error:
    """The error for a file that is not as it was written; `remove`, by default the file, is what is made anew."""
    what = " ".join(str(why).split())
    return IA2Error(f"{path}: not as it was written ({what}); delete {remove or 'it'} and run the same command again")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within the block the folder is this process's, and of those that run with it; the lock goes with the process.

    Raises:
        IA2Error: another process has it, or it is read-only.
    """
    if not processes().is_main_process:
        yield
        return
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise IA2Error(f"{folder}: in use by another process; wait for it, or choose another output folder") from None
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, remove: Path | None = None) -> Any:
    """The value in a JSON file.

    Raises:
        IA2Error: it is not there, or not JSON; says to delete it, or the folder `remove`.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(path, getattr(error, "strerror", None) or error, remove) from None


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write JSON lines, whole or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_jsonl(path: Path, remove: Path | None = None) -> list[Any]:
    """The rows of a JSON-lines file.

    Raises:
        IA2Error: it is not JSON lines; says to delete it, or the folder `remove`.
    """
    try:
        with path.open(encoding="utf-8", newline="\n") as lines:
            return [json.loads(line) for line in lines]
    except ValueError as error:
        raise damaged(path, error, remove) from None


def key_of(what: Any) -> str:
    """A name for anything that JSON can say, the same wherever it is the same: its SHA-256."""
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def remove_together(path: Path) -> None:
    """Remove a folder, if there is one: of several processes, which all come here, the main one does."""
    group = processes()
    group.wait_for_everyone()
    if group.is_main_process:
        shutil.rmtree(path, ignore_errors=True)
    group.wait_for_everyone()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
