"""What is cut off or changed, a full disk and a read-only folder: a line that says what to do, and then it goes on."""

import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from conftest import example_rows
from killing import context, job, save_model

from ia2.errors import IA2Error
from ia2.files import write_text
from ia2.models import load_model
from ia2.run import Run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a run on it."""
    folder = tmp_path_factory.mktemp("trained")
    job(str(folder / "run"), save_model(folder / "model"))
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Run:
    """A copy of the run, to be spoilt."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return Run.open(tmp_path / "run")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(path: Path) -> None:
    """One bit of the last weight, or character."""
    content = bytearray(path.read_bytes())
    content[-1 if path.suffix == ".safetensors" else content.index(b":") - 2] ^= 1
    path.write_bytes(content)


def mended(run: Run, path: Path, remove: Path, work: Callable[[], Any]) -> None:
    """The work ends in one line that names the file, and what to delete; without that, the rest is as it was."""
    before = {p: p.read_bytes() for p in run.folder.rglob("*.safetensors") if p != path}
    with pytest.raises(IA2Error) as error:
        work()
    what = "it" if remove == path else remove
    assert str(error.value).startswith(f"{path}: not as it was written (")
    assert str(error.value).endswith(f"); delete {what} and run the same command again")
    assert "\n" not in str(error.value)
    (shutil.rmtree if remove.is_dir() else os.remove)(remove)
    run.train()
    run.evaluate(example_rows(8))
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("adapter_model.safetensors", cut),
        ("adapter_model.safetensors", edit),
        ("adapter_config.json", cut),
        ("adapter_config.json", edit),
        ("training.json", cut),
    ],
)
def test_an_adapter_that_is_not_as_it_was_saved(name: str, spoil: Callable[[Path], None], run: Run) -> None:
    folder = run.adapters["ia2"]
    spoil(folder / name)
    shutil.rmtree(run.adapters["ia2-sft"])
    mended(run, folder / name, folder, run.train)


@pytest.mark.parametrize("spoil", [cut, edit])
def test_targets_that_are_not_as_they_were_saved(spoil: Callable[[Path], None], run: Run) -> None:
    path = next(run.folder.glob("targets/*/*.safetensors"))
    spoil(path)
    for folder in run.adapters.values():
        shutil.rmtree(folder)
    mended(run, path, path, run.train)


def test_results_that_are_cut_off(run: Run) -> None:
    path = run.folder / "metrics.json"
    cut(path)
    mended(run, path, path, lambda: run.evaluate(example_rows(8)))


def test_an_adapter_of_another_model(run: Run, trained: Path, tmp_path: Path) -> None:
    lm = load_model("tiny", device="cpu")
    with pytest.raises(IA2Error, match=r"no adapter of this LlamaForCausalLM .*trained on the same model"):
        run.predict(["a"], lm)
    assert lm.model is lm.base


def limited(n_bytes: int, folder: str, model: str, answer: Connection) -> None:
    """The job, where no file may be longer."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, resource.RLIM_INFINITY))
    try:
        with redirect_stderr(StringIO()):  # which may be a file
            job(folder, model)
    except IA2Error as error:
        answer.send(str(error))


@pytest.mark.parametrize(
    ("n_bytes", "path"),
    [
        (700, ".run.partial/examples.jsonl"),
        (2000, "run/targets/"),
        (4000, "run/adapters/ia2"),
        (13000, "run/predictions.jsonl"),
        (40000, "run/report.html"),
    ],
)
def test_a_full_disk_loses_nothing(n_bytes: int, path: str, trained: Path, tmp_path: Path) -> None:
    run, (here, there) = tmp_path / "run", context.Pipe(duplex=False)
    process = context.Process(target=limited, args=(n_bytes, str(run), str(trained / "model"), there))
    process.start()
    assert here.poll(60)
    error = here.recv()
    process.join()
    assert error.startswith(f"{tmp_path}/{path}")
    assert "cannot be written (" in error
    assert "file too large" in error
    assert error.endswith("see to it, and the same command again continues")
    assert not list(tmp_path.rglob("*.partial"))
    job(str(run), str(trained / "model"))
    for whole in (trained / "run").rglob("*.safetensors"):
        assert (run / whole.relative_to(trained / "run")).read_bytes() == whole.read_bytes()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Root may write everywhere, and so is someone else in the block."""
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(me)
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_a_read_only_folder_is_said_and_work_goes_on_when_it_is_not(trained: Path) -> None:
    with tempfile.TemporaryDirectory() as name:  # that of pytest nobody else may enter
        Path(name).chmod(0o755)
        shutil.copytree(trained / "run", Path(name) / "run")
        run = Run.open(Path(name) / "run")
        shutil.rmtree(run.adapters["ia2-sft"])
        lm = run.load_model()
        with read_only(run.folder):
            with pytest.raises(IA2Error, match=r"run: cannot be written \(permission denied\); see to it"):
                run.train(lm)
            with pytest.raises(IA2Error, match=r"new\.txt: cannot be written \(permission denied\)"):
                write_text(run.folder / "new.txt", "")
        run.train(lm)
        whole = trained / "run" / "adapters" / "ia2-sft" / "adapter_model.safetensors"
        assert (run.adapters["ia2-sft"] / whole.name).read_bytes() == whole.read_bytes()
