"""METEOR and SPICE: what is missing is named; where Java and pycocoevalcap are, they run."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from subprocess import CalledProcessError
from types import ModuleType
from urllib.error import URLError

import pytest

from velm.errors import JavaMissingError
from velm.metrics.java import meteor, spice


def test_without_pycocoevalcap_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("meteor.meteor", "spice.spice"):
        monkeypatch.setitem(sys.modules, f"pycocoevalcap.{name}", None)
    for figure in (meteor, spice):
        with pytest.raises(JavaMissingError, match=r"needs pycocoevalcap: pip install 'velm\[metrics\]'"):
            figure(["a dog"], [["a dog"]])


def test_without_java_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pycocoevalcap", "pycocoevalcap.meteor", "pycocoevalcap.meteor.meteor"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(JavaMissingError, match="METEOR needs Java: there is no `java`"):
        meteor(["a dog"], [["a dog"]])


@pytest.mark.parametrize("error", [URLError("no network"), CalledProcessError(1, "java")])
def test_errors_name_what_java_needs(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail() -> None:
        raise error

    module = ModuleType("pycocoevalcap.spice.spice")
    module.Spice = fail  # type: ignore[attr-defined]
    for name in ("pycocoevalcap", "pycocoevalcap.spice"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(shutil, "which", lambda name: "java")
    with pytest.raises(JavaMissingError, match=r"SPICE could not be computed by pycocoevalcap: .*Java 8 to 11"):
        spice(["a dog"], [["a dog"]])


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"METEOR of 1 hypotheses and 1 lists.*one non-empty list per hypothesis"):
        meteor(["a"], [[]])


def java(module: str) -> Path:
    found = pytest.importorskip(f"pycocoevalcap.{module}", reason="pip install 'velm[metrics]' to run it")
    if shutil.which("java") is None:
        pytest.skip("no Java")
    return Path(found.__file__).parent


@pytest.mark.slow
def test_meteor_is_high_for_a_paraphrase_and_low_for_something_else() -> None:
    java("meteor.meteor")
    references = [["a brown dog runs over the grass"], ["two children play in the sand"]]
    right = meteor(["a brown dog is running over grass", "two kids play in sand"], references)
    wrong = meteor(["a plane in the sky", "a plate of food"], references)
    assert 0 <= wrong < 0.3 < right <= 1
    assert meteor([r[0] for r in references], references) == pytest.approx(1.0)


def test_spice_of_a_reference_is_one() -> None:
    if not (java("spice.spice") / "lib" / "stanford-corenlp-3.6.0-models.jar").exists():
        pytest.skip("Stanford CoreNLP 3.6.0, which pycocoevalcap downloads for SPICE, is not there")
    assert spice(["a brown dog"], [["a brown dog"]]) == pytest.approx(1.0)
