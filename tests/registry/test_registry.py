"""Names to classes by three doors; validated building; what is wrong is said with its owner and the nearest name."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

import velm
from velm import registry
from velm.errors import ConfigError, DuplicateNameError, PluginError, UnknownNameError
from velm.registry import image_encoders

ENCODER = "class {name}:\n    def __init__(self, *, dim: int = 8) -> None:\n        self.dim = dim\n"
DECORATED = "import velm\n\n@velm.image_encoders.register({name!r})\n" + ENCODER.replace("{name}", "Mine")


class Toy:
    """A part like any other; `vocab_size` is what a builder hands over."""

    def __init__(
        self,
        *,
        dim: int,
        rate: float = 0.5,
        mode: Literal["fast", "slow"] = "fast",
        widths: list[int] | None = None,
        flag: bool = False,
        vocab_size: int | None = None,
    ) -> None:
        self.dim, self.rate, self.mode, self.widths, self.flag, self.vocab_size = (
            dim, rate, mode, widths, flag, vocab_size
        )  # fmt: skip


class Member:
    """One of a family."""

    def __init__(self, *, model_name: str, dim: int = 8) -> None:
        self.model_name, self.dim = model_name, dim


class Greedy:
    """Takes whatever it is given, which is not offered as an option."""

    def __init__(self, *args: Any, dim: int = 8, **kwargs: Any) -> None:
        self.args, self.dim, self.kwargs = args, dim, kwargs


@pytest.fixture
def _fresh_imports(tmp_path: Path) -> Iterator[None]:
    """Modules of the test's own folder are imported anew by the next one."""
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def decorated(_fresh_imports: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, type]:
    """What decorators register in the test is forgotten after it."""
    monkeypatch.setattr(image_encoders, "_decorated", {})
    return image_encoders._decorated


@pytest.fixture
def install(_fresh_imports: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`install("dist", "module", code, {"name": "module:Class"})`: a distribution as pip would leave it."""

    def write(
        distribution: str, module: str, code: str, points: dict[str, str], group: str = "velm.image_encoders"
    ) -> Path:
        site = tmp_path / distribution
        info = site / f"{distribution.replace('-', '_')}-1.5.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(code)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n")
        (info / "top_level.txt").write_text(f"{module}\n")
        lines = [f"{name} = {target}" for name, target in points.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
        monkeypatch.syspath_prepend(str(site))
        return site

    return write


def message(error: pytest.ExceptionInfo[Any]) -> str:
    return str(error.value)


# --- names


def test_folders_are_read_once_and_again_when_distributions_come_or_go(
    install: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned, entry_points = [], importlib.metadata.entry_points

    def counting(**wanted: Any) -> Any:
        scanned.append(wanted)
        return entry_points(**wanted)

    monkeypatch.setattr(importlib.metadata, "entry_points", counting)
    assert image_encoders.names() == image_encoders.names()
    assert len(scanned) == 1
    site = install("late-dist", "late_module", "", {"late": "late_module:Late"})
    assert "late" in image_encoders.names()
    assert len(scanned) == 2
    shutil.rmtree(next(site.glob("*.dist-info")))
    assert "late" not in image_encoders.names()


def test_every_kind_is_public_and_each_has_the_builtin_names() -> None:
    expected = {
        "image_encoders": ["attentional", "cnn", "hf/*", "timm/*", "torchvision/*", "vit"],
        "text_encoders": ["decoder", "hf/*", "rnn", "transformer"],
        "decoders": ["git", "hf/*", "llm/*", "rnn", "transformer"],
        "losses": ["captioning", "contrastive", "distillation", "scst", "sigmoid", "triplet"],
        "datasets": [
            "chinese_clip",
            "coco",
            "csv",
            "flickr30k",
            "flickr8k",
            "folder",
            "hf/*",
            "image_folder",
            "json",
            "jsonl",
            "karpathy",
            "llava",
            "mixture",
            "parquet",
            "shapes",
            "shapes_questions",
            "shapes_stories",
            "tsv",
            "webdataset",
        ],
        "tokenizers": ["bpe", "byte", "clip", "hf/*", "word"],
        "balancing_policies": ["fixed", "projection", "uncertainty"],
    }
    assert list(registry.KINDS) == list(expected)
    for kind, names in expected.items():
        assert getattr(velm, kind).register.__self__ is registry.KINDS[kind]
        assert registry.KINDS[kind].group == f"velm.{kind}"
        builtin = [e.name for e in registry.KINDS[kind].entries() if e.distribution == "velm"]
        assert builtin == names
        assert set(names) <= set(registry.KINDS[kind].names())
        assert {e.version for e in registry.KINDS[kind].entries() if e.distribution == "velm"} == {velm.__version__}


@pytest.mark.parametrize("kind", list(registry.KINDS))
def test_every_builtin_name_leads_to_a_class(kind: str) -> None:
    for entry in registry.KINDS[kind].entries():
        if entry.distribution == "velm" and not entry.name.startswith("timm/"):
            cls = registry.KINDS[kind].get(entry.name.replace("*", "some_model"))
            assert f"{cls.__module__}:{cls.__qualname__}" == entry.target


def test_listing_imports_no_torch_and_no_plugin(install: Callable[..., Path]) -> None:
    site = install("dist-loud", "loud_module", "raise SystemExit('imported')", {"loud": "loud_module:Loud"})
    code = (
        "import sys, velm.registry as r; names = [n for kind in r.KINDS.values() for n in kind.names()]; "
        "assert 'loud' in names and 'vit' in names, names; "
        "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'lightning', 'loud_module', 'jsonargparse')])"
    )
    root = str(Path(velm.__file__).parents[1])
    environment = {"PYTHONPATH": f"{root}:{site}", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "[]", done.stderr


# --- door 1: dotted paths, and class objects


@pytest.mark.usefixtures("_fresh_imports")
def test_a_dotted_path_needs_no_packaging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loose_module.py").write_text(ENCODER.format(name="Loose") + "    class Inner:\n        pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    built = image_encoders.build({"name": "loose_module:Loose", "dim": 3})
    assert (type(built).__name__, built.dim) == ("Loose", 3)
    assert image_encoders.get("loose_module:Loose.Inner").__qualname__ == "Loose.Inner"
    entry, given = image_encoders.find("loose_module:Loose")
    assert (entry.target, entry.distribution, entry.version, given) == (
        "loose_module:Loose", "(no distribution)", "", {}
    )  # fmt: skip


def test_a_dotted_path_knows_the_distribution_that_brings_it(install: Callable[..., Path]) -> None:
    install("dist-path", "path_module", ENCODER.format(name="Mine"), {})
    entry, _ = image_encoders.find("path_module:Mine")
    assert (entry.distribution, entry.version) == ("dist-path", "1.5")


def test_a_class_stands_for_its_dotted_path() -> None:
    assert isinstance(image_encoders.build({"name": Toy, "dim": 3}), Toy)
    assert registry.split_config({"name": Toy, "dim": 3}) == (f"{Toy.__module__}:Toy", {"dim": 3})


def test_a_dotted_path_that_leads_nowhere_says_where_python_looks() -> None:
    with pytest.raises(PluginError) as error:
        image_encoders.get("no_such_package.module:Thing")
    assert "The image encoder 'no_such_package.module:Thing' cannot be imported" in message(error)
    assert "ModuleNotFoundError: No module named 'no_such_package'" in message(error)
    assert "see that 'no_such_package.module' is a module that Python finds from" in message(error)
    assert "(no distribution)" not in message(error)
    with pytest.raises(PluginError, match=r"module 'json' has no attribute 'Thing'.*that the class is in it"):
        image_encoders.get("json:Thing")


def test_a_path_to_something_else_than_a_class_is_refused() -> None:
    with pytest.raises(PluginError, match=r"names json:dumps, which is not a class but <function dumps"):
        image_encoders.build("json:dumps")


# --- door 2: entry points


def test_an_entry_point_is_listed_with_its_owner_and_found_by_name(install: Callable[..., Path]) -> None:
    install("dist-good", "good_module", ENCODER.format(name="Good"), {"good": "good_module:Good"})
    assert registry.Entry("good", "good_module:Good", "dist-good", "1.5") in image_encoders.entries()
    assert "good_module" not in sys.modules
    assert image_encoders.build({"name": "good", "dim": 5}).dim == 5
    assert "good" not in registry.text_encoders.names()


@pytest.mark.parametrize("kind", list(registry.KINDS))
def test_every_kind_has_its_group(install: Callable[..., Path], kind: str) -> None:
    install("dist-kind", "kind_module", ENCODER.format(name="Part"), {"part": "kind_module:Part"}, f"velm.{kind}")
    assert type(registry.KINDS[kind].build("part")).__name__ == "Part"
    assert [k for k, r in registry.KINDS.items() if "part" in r.names()] == [kind]


def test_a_family_may_come_from_a_distribution(install: Callable[..., Path]) -> None:
    code = "class Zoo:\n    def __init__(self, *, model_name: str) -> None:\n        self.model_name = model_name\n"
    install("dist-zoo", "zoo_module", code, {"zoo/*": "zoo_module:Zoo"})
    assert image_encoders.build("zoo/tiger/small").model_name == "tiger/small"


def test_two_distributions_with_one_name_are_both_named(install: Callable[..., Path]) -> None:
    for which in ("one", "two"):
        install(f"dist-{which}", f"{which}_module", ENCODER.format(name="Twin"), {"twin": f"{which}_module:Twin"})
    assert [e.distribution for e in image_encoders.entries() if e.name == "twin"] == ["dist-one", "dist-two"]
    assert image_encoders.names().count("twin") == 1
    with pytest.raises(DuplicateNameError) as error:
        image_encoders.build("twin")
    assert message(error) == (
        "The image encoder name 'twin' is claimed by one_module:Twin (dist-one) and by two_module:Twin (dist-two). "
        "Rename one, uninstall one, or use the dotted path of the one you mean."
    )
    assert image_encoders.build("one_module:Twin").dim == 8  # the way out that the message names


def test_a_distribution_cannot_take_a_builtin_name(install: Callable[..., Path]) -> None:
    install("dist-thief", "thief_module", ENCODER.format(name="Thief"), {"vit": "thief_module:Thief"})
    with pytest.raises(
        DuplicateNameError, match=r"thief_module:Thief \(dist-thief\) and by velm.encoders.vit.* \(velm\)"
    ):
        image_encoders.get("vit")
    assert image_encoders.get("cnn").__name__ == "CNNEncoder"


def test_a_broken_plugin_is_named_with_its_cause_and_harms_nobody(install: Callable[..., Path]) -> None:
    install("dist-bad", "bad_module", "import not_there_at_all", {"bad": "bad_module:Bad"})
    install("dist-fine", "fine_module", ENCODER.format(name="Fine"), {"fine": "fine_module:Fine"})
    assert {"bad", "fine", "vit"} <= set(image_encoders.names())
    with pytest.raises(PluginError) as error:
        image_encoders.build("bad")
    assert message(error) == (
        "The image encoder 'bad' (bad_module:Bad, from dist-bad 1.5) cannot be imported: ModuleNotFoundError: "
        "No module named 'not_there_at_all'. Mend or uninstall dist-bad; everything else goes on working."
    )
    assert isinstance(error.value.__cause__, ModuleNotFoundError)
    assert image_encoders.build("fine").dim == 8


# --- door 3: decorators


@pytest.mark.usefixtures("decorated")
def test_a_decorated_class_is_found_by_name() -> None:
    assert image_encoders.register("toy")(Toy) is Toy
    assert image_encoders.get("toy") is Toy
    assert image_encoders.build({"name": "toy", "dim": 4}).dim == 4
    assert "toy" in image_encoders.names()


@pytest.mark.usefixtures("decorated")
def test_a_decorated_family_gets_what_follows_the_slash() -> None:
    image_encoders.register("members/*")(Member)
    built = image_encoders.build({"name": "members/of/mine", "dim": 4})
    assert (built.model_name, built.dim) == ("of/mine", 4)


def test_a_name_decorated_twice_is_refused_and_the_first_stays(decorated: dict[str, type]) -> None:
    image_encoders.register("toy")(Toy)
    image_encoders.register("toy")(Toy)  # the same class again, as on a reload
    with pytest.raises(DuplicateNameError) as error:
        image_encoders.register("toy")(Member)
    assert f"{Member.__module__}:Member" in message(error)
    assert f"{Toy.__module__}:Toy" in message(error)
    assert decorated == {"toy": Toy}


@pytest.mark.usefixtures("decorated")
def test_a_decorator_cannot_take_a_builtin_name() -> None:
    with pytest.raises(
        DuplicateNameError, match=r"name 'cnn' is claimed by .*:Toy .* and by velm.encoders.cnn:CNNEncoder"
    ):
        image_encoders.register("cnn")(Toy)


@pytest.mark.usefixtures("decorated")
def test_one_class_by_two_doors_is_no_duplicate(install: Callable[..., Path]) -> None:
    install("dist-both", "both_module", DECORATED.format(name="both"), {"both": "both_module:Mine"})
    registry.load_plugins(["both_module"])
    entry, _ = image_encoders.find("both")
    assert (entry.target, entry.distribution) == ("both_module:Mine", "dist-both")
    assert image_encoders.build("both").dim == 8


@pytest.mark.usefixtures("decorated")
def test_plugins_are_modules_or_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "by_module.py").write_text(DECORATED.format(name="from_module"))
    (tmp_path / "by_file.py").write_text(DECORATED.format(name="from_file"))
    monkeypatch.syspath_prepend(str(tmp_path))
    for _ in range(2):  # the second time does nothing
        registry.load_plugins(["by_module", str(tmp_path / "by_file.py")])
    assert image_encoders.build("from_module").dim == image_encoders.build("from_file").dim == 8
    monkeypatch.chdir(tmp_path)
    before = image_encoders.get("from_file")
    registry.load_plugins(["by_file.py"])  # the same file by another path
    assert image_encoders.get("from_file") is before


@pytest.mark.usefixtures("decorated")
def test_a_plugin_that_fails_is_named_with_its_cause(tmp_path: Path) -> None:
    with pytest.raises(PluginError) as error:
        registry.load_plugins(["no_such_module"])
    assert "The plugin 'no_such_module' cannot be imported: ModuleNotFoundError" in message(error)
    assert f"modules that Python can import from {Path.cwd()} or its search path, and paths of .py files" in message(
        error
    )
    missing = tmp_path / "missing.py"
    with pytest.raises(PluginError, match=r"FileNotFoundError: no such file: .*missing.py"):
        registry.load_plugins([str(missing)])
    broken = tmp_path / "half_written.py"
    broken.write_text("1 / 0")
    with pytest.raises(PluginError, match=r"half_written.py' cannot be imported: ZeroDivisionError: division by zero"):
        registry.load_plugins([str(broken)])
    broken.write_text(DECORATED.format(name="mended"))
    registry.load_plugins([str(broken)])  # nothing of the failure is left
    assert "mended" in image_encoders.names()


# --- unknown names


@pytest.mark.parametrize(
    ("kind", "name", "nearest"),
    [
        ("image_encoders", "vitt", "vit"),
        ("image_encoders", "torchvison/resnet50", "torchvision/resnet50"),
        ("image_encoders", "torchvision", "torchvision/<model>"),
        ("image_encoders", "torchvision/*", "torchvision/<model>"),
        ("text_encoders", "tansformer", "transformer"),
        ("decoders", "rrn", "rnn"),
        ("losses", "contrastiv", "contrastive"),
        ("datasets", "shape", "shapes"),
        ("tokenizers", "words", "word"),
    ],
)
def test_an_unknown_name_comes_with_the_nearest(kind: str, name: str, nearest: str) -> None:
    with pytest.raises(UnknownNameError) as error:
        registry.KINDS[kind].build(name)
    what = registry.KINDS[kind].kind
    assert message(error).startswith(f"Unknown {what} {name!r}. Did you mean {nearest!r}? Available: ")
    assert ", ".join(registry.KINDS[kind].names()) in message(error)
    assert f'Own {what}s: name: "my_pkg.my_module:My' in message(error)
    assert f"an entry point in the group 'velm.{kind}'" in message(error)
    assert "plugins: [my_module]" in message(error)


def test_no_guess_where_nothing_is_near() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown image encoder 'qqq'. Available: attentional, cnn, "):
        image_encoders.get("qqq")


@pytest.mark.parametrize("spec", [None, {}, {"name": None}, {"dim": 3}, 3, ["vit"]])
def test_a_spec_without_a_name_is_refused(spec: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"The config of the image encoder is a name or a mapping with a 'name'"
    ) as error:
        image_encoders.build(spec)
    assert f"got {spec!r}" in message(error)


# --- validated building


def toy(**options: Any) -> Toy:
    return image_encoders.build({"name": Toy, **options})


def test_options_arrive_as_the_type_hints_want_them() -> None:
    built = toy(dim="3", rate=1, mode="slow", widths=[4, 5], flag=True)  # as an override on the command line
    assert (built.dim, built.rate, built.mode, built.widths, built.flag) == (3, 1.0, "slow", [4, 5], True)
    assert isinstance(built.rate, float)
    assert toy(dim=3, widths=None).widths is None


def test_an_unknown_option_comes_with_the_nearest_before_anything_is_built() -> None:
    with pytest.raises(ConfigError) as error:
        toy(dim=3, widhts=[1])
    assert f"The image encoder '{Toy.__module__}:Toy' has no option 'widhts'. Did you mean 'widths'?" in message(error)
    assert "Its options: dim, rate, mode, widths, flag, vocab_size." in message(error)
    with pytest.raises(ConfigError, match=r"has no option 'qqq'. Its options"):
        toy(dim=3, qqq=1)


def test_a_missing_option_is_named() -> None:
    with pytest.raises(ConfigError, match=r"Toy' needs dim. Its options: dim, rate, mode, widths, flag, vocab_size"):
        toy()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dim": "wide"}, "The option 'dim' of the image encoder '.*:Toy' takes int; got 'wide' (str)."),
        ({"dim": 3.5}, "takes int; got 3.5 (float)."),
        ({"dim": None}, "takes int; got None (NoneType)."),
        ({"dim": True}, "takes int; got True (bool)."),
        ({"dim": 3, "rate": "high"}, "'rate' .* takes float; got 'high' (str)."),
        ({"dim": 3, "mode": "medium"}, "takes Literal['fast', 'slow']; got 'medium' (str)."),
        ({"dim": 3, "widths": 7}, "takes list[int] | None; got 7 (int)."),
        ({"dim": 3, "widths": ["a"]}, "takes list[int] | None; got ['a'] (list)."),
        ({"dim": 3, "flag": 1}, "takes bool; got 1 (int)."),
    ],
)
def test_an_ill_typed_option_says_what_it_takes(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        toy(**options)
    assert all(part in message(error) for part in says.split(".*")), message(error)


def test_what_the_builder_knows_goes_where_it_is_wanted_and_a_spec_wins() -> None:
    spec = {"name": Toy, "dim": 3}
    assert image_encoders.build(spec, vocab_size=7, memory_dim=9).vocab_size == 7
    assert image_encoders.build({**spec, "vocab_size": 5}, vocab_size=7).vocab_size == 5
    assert image_encoders.build({"name": Toy}, dim=6).dim == 6  # handed over, so not missing


def test_catch_all_arguments_are_no_options() -> None:
    assert list(registry.parameters(Greedy)) == ["dim"]
    built = image_encoders.build({"name": Greedy, "dim": 3}, vocab_size=7)
    assert (built.dim, built.kwargs) == (3, {})
    with pytest.raises(ConfigError, match=r"has no option 'depth'. Its options: dim"):
        image_encoders.build({"name": Greedy, "depth": 3})


def test_building_leaves_the_spec_as_it_was() -> None:
    spec = {"name": Toy, "dim": 3, "widths": [1, 2]}
    image_encoders.build(spec, vocab_size=7)
    assert spec == {"name": Toy, "dim": 3, "widths": [1, 2]}


class Refuses:
    """Says no in its constructor, in its own words."""

    def __init__(self, *, dim: int = 100, heads: int = 8, kind: str = "value") -> None:
        if kind == "value":
            raise ValueError(f"dim {dim} is not divisible by heads {heads}")
        raise UnicodeError("a kind of ValueError with a name of its own")


def test_what_a_constructor_refuses_is_told_with_its_name() -> None:
    with pytest.raises(ConfigError) as error:
        image_encoders.build({"name": Refuses})
    assert message(error) == (
        f"The image encoder '{Refuses.__module__}:Refuses' cannot be built: dim 100 is not divisible by heads 8"
    )
    with pytest.raises(UnicodeError, match="of its own"):
        image_encoders.build({"name": Refuses, "kind": "other"})
