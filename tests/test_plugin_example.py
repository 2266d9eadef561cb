"""The example plugin: its encoders keep the contract; installed by pip it is found by name, trains, and is missed."""

from __future__ import annotations

import json
import os
import re
import shutil
import site
import subprocess
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from velm.testing import assert_contract

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "velm-plugin-example"


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's modules without installing them."""
    monkeypatch.syspath_prepend(str(EXAMPLE / "src"))


@pytest.mark.usefixtures("source")
def test_its_encoders_keep_the_contract() -> None:
    from velm_plugin_example.convmixer import ConvMixer
    from velm_plugin_example.textcnn import TextCNN

    assert_contract(lambda: ConvMixer(dim=8, depth=1, patch_size=8))
    assert_contract(lambda: TextCNN(vocab_size=32, dim=8))


def test_the_encoder_of_its_readme_keeps_the_contract() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (EXAMPLE / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    exec("\n".join(blocks), {"__name__": "readme"})


class Environment:
    """A virtual environment that sees what this one has installed, and installs only into itself."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder / "env", with_pip=False, symlinks=True)
        self.python = folder / "env" / "bin" / "python"
        packages = Path(self("import sysconfig; print(sysconfig.get_paths()['purelib'])").strip())
        seen = [*site.getsitepackages(), str(ROOT)]
        lines = [f"import site; site.addsitedir({path!r})" for path in seen]
        (packages / "outer.pth").write_text("\n".join(lines) + "\n")

    def run(self, *command: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
        variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(
            [str(self.python), *command], capture_output=True, text=True, cwd=self.folder, env=variables, timeout=500
        )
        assert (done.returncode != 0) == fails, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def __call__(self, code: str) -> str:
        return self.run("-c", code).stdout

    def velm(self, *args: str) -> str:
        return self.run("-m", "velm.cli", *args).stdout

    def pip(self, *args: str) -> str:
        return self.run("-m", "pip", "--disable-pip-version-check", *args).stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """One with the example installed by pip, from a copy, so that nothing is built in the repository."""
    pytest.importorskip("setuptools", minversion="77", reason="building without the network needs setuptools >= 77")
    pytest.importorskip("pip", reason="installing needs pip")
    folder = tmp_path_factory.mktemp("clean")
    copy = shutil.copytree(EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    made = Environment(folder)
    made.pip("install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", str(copy))
    yield made
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_installed_it_is_listed_with_its_distribution(environment: Environment) -> None:
    rows = {row["name"]: row for row in json.loads(environment.velm("plugins", "--json"))}
    for name, kind in (("convmixer", "image_encoders"), ("textcnn", "text_encoders")):
        assert (rows[name]["kind"], rows[name]["distribution"]) == (kind, "velm-plugin-example")
        assert rows[name]["version"] == "0.1.0"


@pytest.mark.slow
def test_installed_it_is_shown_and_passes_the_check(environment: Environment) -> None:
    assert "kernel_size: int  (default 5)\n      side of the depthwise" in environment.velm(
        "plugins", "show", "image_encoder", "convmixer"
    )
    for spec in ("{name: convmixer, dim: 8, depth: 1, patch_size: 8}", "textcnn"):
        assert "FAULT" not in environment.velm("plugins", "check", spec)


@pytest.mark.slow
def test_installed_its_own_tests_pass(environment: Environment) -> None:
    environment.run("-m", "pytest", "-q", "-p", "no:cacheprovider", str(environment.folder / "source" / "tests"))


@pytest.mark.slow
def test_it_trains_by_name_loads_again_and_is_missed_when_removed(environment: Environment) -> None:
    config = _tiny(yaml.safe_load((EXAMPLE / "configs" / "shapes.yaml").read_text()), environment.folder / "run")
    (environment.folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    environment.velm("fit", "--config", "tiny.yaml")
    checkpoint = environment.folder / "run" / "last.ckpt"
    assert checkpoint.is_file()

    load = (
        f"import velm; pipeline = velm.load({str(checkpoint)!r}); print(pipeline.embed_texts(['a red circle']).shape)"
    )
    assert "1, 256" in environment(load)

    environment.pip("uninstall", "--yes", "--quiet", "velm-plugin-example")
    missed = environment.run("-c", load, fails=True).stderr
    assert re.search(r"'convmixer'.*velm-plugin-example 0\.1\.0.*not installed", missed), missed
    assert "pip install velm-plugin-example" in missed


def _tiny(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The example's own run, but a few small steps of it."""
    model, data = config["model"], config["data"]
    model["image_encoder"] |= {"dim": 8, "depth": 1, "patch_size": 8}
    model["text_encoder"] |= {"dim": 8}
    model["decoder"] |= {"dim": 8, "depth": 1, "heads": 2}
    data["dataset"] |= {"train_size": 16, "val_size": 4, "test_size": 4, "heldout_size": 0, "image_size": 32}
    data |= {"image_size": 32, "batch_size": 8}
    config["trainer"] = {
        "max_steps": 2,
        "accelerator": "cpu",
        "default_root_dir": str(folder),
        "enable_progress_bar": False,
    }
    return config
