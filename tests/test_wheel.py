"""The wheel, in a fresh environment outside the repository: what is in it, and that it trains."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"


def run(command: list[str], cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    run([sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(folder), str(ROOT)], folder)
    [path] = folder.glob("ia2-*.whl")
    return path


def test_all_of_the_package_is_in_it_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    ours = {str(path.relative_to(SOURCE)) for path in SOURCE.glob("ia2/**/*") if path.is_file()}
    assert names == {name for name in ours if "__pycache__" not in name}
    assert {"ia2/py.typed", "ia2/tasks/sst2.yaml", "ia2/world/models/tiny/model.safetensors"} <= names


def test_it_trains_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv")  # without pip; what ia2 needs is that of this environment
    site, bin_ = (sysconfig.get_path(name, "venv", {"base": str(tmp_path / "venv")}) for name in ("purelib", "scripts"))
    python = str(Path(bin_, "python"))
    options = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    run([sys.executable, "-m", "pip", "--python", python, "install", *options, str(wheel)], tmp_path)
    Path(site, "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    place = "import ia2, pathlib; print(pathlib.Path(ia2.__file__).parent)"
    assert run([python, "-c", place], tmp_path).strip() == str(Path(site, "ia2"))
    assert "train" in run([str(Path(bin_, "ia2")), "--help"], tmp_path)
    rows = tmp_path / "rows.csv"
    rows.write_text("query,response\n" + "".join(f'"Text:{text}\nLabel:",{i % 2}\n' for i, text in enumerate("abcd")))
    command = (
        "ia2 train --model tiny --train rows.csv --method sft --num-train-epochs 1 --learning-rate 1e-3 --output run"
    )
    run([str(Path(bin_, "ia2")), *command.split()[1:]], tmp_path)
    assert (tmp_path / "run" / "adapters" / "sft" / "adapter_model.safetensors").is_file()
