"""The command line's door: cheap help, no torch before it is needed, messages instead of tracebacks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from velm import cli


def modules_after(code: str) -> set[str]:
    script = f"import sys, json\n{code}\nprint('MODULES' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.split("MODULES")[1]))


@pytest.mark.parametrize("arguments", [["--help"], ["plugins"], ["plugins", "--json"], ["--version"]])
def test_help_and_listing_import_no_torch(arguments: list[str]) -> None:
    loaded = modules_after(f"from velm import cli\nassert cli.main({arguments!r}) == 0")
    assert not loaded & {"torch", "lightning", "transformers", "torchvision", "numpy", "jsonargparse"}


def test_import_velm_imports_nothing_heavy() -> None:
    assert not modules_after("import velm") & {"torch", "lightning", "numpy", "velm.registry"}


def test_import_of_public_names_imports_no_lightning() -> None:
    code = "import velm\nvelm.ImageEncoder, velm.build_model, velm.load, velm.metrics.bleu, velm.datasets"
    assert not modules_after(code) & {"lightning", "pytorch_lightning", "transformers"}


@pytest.mark.parametrize("command", ["caption", "doctor", "evaluate", "plan", "selfcheck", "sweep"])
def test_help_of_a_command_imports_no_torch(command: str) -> None:
    loaded = modules_after(
        f"from velm import cli\ntry:\n    cli.main([{command!r}, '--help'])\nexcept SystemExit: pass"
    )
    assert "torch" not in loaded


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {command} " in printed for command in cli.COMMANDS)


def test_unknown_command_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evalute"]) == 2
    assert "unknown command 'evalute'. Did you mean 'evaluate'?" in capsys.readouterr().err


def test_wrong_input_is_a_message_and_not_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plugins", "show", "image_encoders", "vitt"]) == 2
    assert "Did you mean 'vit'?" in capsys.readouterr().err


def test_public_names_all_resolve() -> None:
    import velm

    for name in velm.__all__:
        assert getattr(velm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = velm.nothing


def test_type_checkers_see_the_public_names() -> None:
    import velm

    block = Path(velm.__file__).read_text(encoding="utf-8").split("if TYPE_CHECKING:")[1]
    assert {*re.findall(r" as (\w+)$", block, re.MULTILINE)} | {"__version__"} == set(velm.__all__)


def test_registries_named_like_packages_register_either_way() -> None:
    modules_after("import velm\nassert velm.decoders.register and velm.losses.names()")
    imported = "import velm, velm.decoders.base, velm.losses.base"
    modules_after(f"{imported}\nassert velm.decoders.register and velm.losses.names()")


def test_a_reader_that_has_enough_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m velm.cli plugins --json | head -c 1",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""


def test_python_m_velm_is_velm() -> None:
    """What torchrun and srun start."""
    done = subprocess.run([sys.executable, "-m", "velm", "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("velm ")


@pytest.mark.slow
def test_fit_imports_little_that_lightning_does_not() -> None:
    """Importing what `velm fit` needs brings no module of torch, torchvision, transformers, ... beside Lightning's."""
    lightning = modules_after("import lightning.pytorch.cli")
    added = {name.split(".")[0] for name in modules_after("import velm.training.run") - lightning}
    assert added <= {"velm", "pyarrow", "pydoc", "faulthandler", "_cython_3_3_0"}
