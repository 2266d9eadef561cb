"""Checkpoints: saved equals loaded, and every way in which a file can be wrong says so."""

from __future__ import annotations

import importlib.metadata
import math
import os
import pickle
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from velm import __version__, registry
from velm.checkpoint import FORMAT, build_from_checkpoint, build_tokenizer, logits_of, pack, read_checkpoint
from velm.errors import CheckpointError, MissingPluginError
from velm.losses.weighted import build_losses
from velm.model import build_model
from velm.pipeline import load

PLUGIN = '''
from __future__ import annotations
import torch
import velm

{decorator}
class Mine(velm.ImageEncoder):
    """Mean colours."""

    def __init__(self, *, dim: int = 8) -> None:
        super().__init__()
        self.dim = dim
        self.linear = torch.nn.Linear(3, dim)

    def forward(self, images):
        pooled = self.linear(images.mean((2, 3)))
        return velm.EncoderOutput(pooled[:, None], pooled, grid=(1, 1))
'''


def rewrite(path: Path, **changes) -> Path:
    content = torch.load(path, weights_only=True)
    content["velm"].update(changes)
    torch.save(content, path)
    return path


# Saved equals loaded


def test_saved_equals_loaded(write_checkpoint, tiny_config):
    checkpoint = read_checkpoint(write_checkpoint())
    model, again = build_from_checkpoint(checkpoint), build_from_checkpoint(checkpoint)
    images = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(model.encode_image(images).pooled, again.encode_image(images).pooled)
    assert not model.training
    stored = torch.load(checkpoint.path, weights_only=True)["state_dict"]
    for key, value in model.state_dict().items():
        assert torch.equal(value, stored[f"model.{key}"])
    assert checkpoint.max_length == 16
    assert checkpoint.transform == {"image_size": 32, "resize": "crop"}
    assert checkpoint.config["decoder"] == tiny_config["decoder"]
    assert not checkpoint.target


def test_the_tokenizer_comes_back(write_checkpoint):
    tokenizer = build_tokenizer(read_checkpoint(write_checkpoint()))
    assert tokenizer.decode(tokenizer.encode("A red circle")) == "a red circle"


def test_the_file_opens_with_weights_only_and_holds_plain_python(write_checkpoint):
    def check(value):
        assert value is None or type(value) in (bool, int, float, str, list, dict), type(value)
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(item)

    check(torch.load(write_checkpoint(), weights_only=True)["velm"])


def test_a_part_that_was_left_out_is_not_built_again(write_checkpoint):
    with pytest.warns(UserWarning, match="text_encoder is left out"):
        path = write_checkpoint(losses={"captioning": {}})
    checkpoint = read_checkpoint(path)
    assert checkpoint.config["text_encoder"] is None
    assert build_from_checkpoint(checkpoint).text_encoder is None


def test_the_average_is_taken_unless_the_raw_weights_are_asked_for(write_checkpoint):
    path = write_checkpoint()
    state = torch.load(path, weights_only=True)["state_dict"]
    write_checkpoint(extra={"current_model_state": {key: value + 1 for key, value in state.items()}})
    checkpoint = read_checkpoint(path)
    averaged, raw = build_from_checkpoint(checkpoint), build_from_checkpoint(checkpoint, ema=False)
    difference = raw.image_projection.weight - averaged.image_projection.weight
    assert torch.allclose(difference, torch.ones(()), atol=1e-5)


def without_what_older_files_lack(path: Path) -> Path:
    content = torch.load(path, weights_only=True)
    for key in ("aligned", "logit_scale"):
        del content["velm"][key]
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("losses", "aligned"),
    [({"contrastive": {}, "captioning": {}}, True), ({"captioning": {}}, False), ({"triplet": {}}, True)],
    ids=str,
)
def test_a_file_written_before_aligned_and_scale_were_stored_loads_the_same(write_checkpoint, losses, aligned):
    changes = {"losses": losses, "memory": ["image", "text"]}  # both encoders, whatever the losses
    if "captioning" not in losses:
        changes |= {"decoder": None, "memory": ["image"]}
    new = load(write_checkpoint("new.ckpt", **changes))
    old = load(without_what_older_files_lack(write_checkpoint("old.ckpt", **changes)))
    assert new.aligned == old.aligned == aligned
    assert new.logit_scale == pytest.approx(math.exp(2.0))
    assert old.logit_scale == pytest.approx(new.logit_scale)  # found among the weights
    images = [np.full((32, 32, 3), shade, np.uint8) for shade in (30, 200)]
    if new.writes:
        assert new.caption(images, ["a star", "a red circle"]) == old.caption(images, ["a star", "a red circle"])
    if aligned:
        assert torch.equal(new.score(images, ["a star"]), old.score(images, ["a star"]))


def test_a_stored_answer_needs_no_class_of_a_loss(write_checkpoint):
    path = write_checkpoint(losses={"captioning": {}}, memory=["image", "text"])
    rewrite(path, config=read_checkpoint(path).config | {"losses": {"somebody_elses": {}}})
    assert not load(path).aligned
    assert load(without_what_older_files_lack(path)).aligned  # a guess: the class that knows is not here


def test_the_scale_is_that_of_the_weights_in_the_file():
    losses = build_losses({"captioning": {}, "sigmoid": {"temperature": 0.5}})
    assert logits_of(losses, {})["logit_scale"] == pytest.approx(2.0)
    assert logits_of(losses, {"losses.sigmoid.log_scale": torch.tensor(1.0)})["logit_scale"] == pytest.approx(math.e)
    assert losses["sigmoid"].logit_scale.item() == pytest.approx(2.0)  # untouched
    assert logits_of(build_losses({"captioning": {}, "triplet": {}}), {}) == {"logit_scale": None, "logit_bias": None}


def test_no_pretrained_weights_are_touched(write_checkpoint, monkeypatch):
    from velm.pretrained.weights import pretrained_allowed

    seen = []

    def spying(config):
        seen.append(pretrained_allowed())
        return build_model(config)

    checkpoint = read_checkpoint(write_checkpoint())
    monkeypatch.setattr("velm.checkpoint.build.build_model", spying)
    build_from_checkpoint(checkpoint)
    assert seen == [False]


def test_portable_options_replace_those_of_the_spec(write_checkpoint, tiny_config):
    checkpoint = read_checkpoint(write_checkpoint())
    model = build_from_checkpoint(checkpoint)
    model.image_encoder.portable_config = {"depth": 3}
    entry = pack_again(model, checkpoint)
    assert entry["config"]["image_encoder"] == {**tiny_config["image_encoder"], "depth": 3}


def pack_again(model, checkpoint, **changes):
    arguments = {
        "model": model,
        "config": checkpoint.config,
        "tokenizer": build_tokenizer(checkpoint),
        "tokenizer_name": "word",
        "transform": checkpoint.transform,
        "max_length": checkpoint.max_length,
        "data": checkpoint.data,
    }
    return pack(**(arguments | changes))


def test_paths_and_tuples_are_stored_plain_and_the_rest_is_refused(write_checkpoint):
    checkpoint = read_checkpoint(write_checkpoint())
    model = build_from_checkpoint(checkpoint)
    entry = pack_again(model, checkpoint, data={"dataset": {"name": "csv", "path": Path("a.csv"), "crop": (1, 2)}})
    assert entry["data"] == {"dataset": {"name": "csv", "path": "a.csv", "crop": [1, 2]}}
    with pytest.raises(TypeError, match=r"velm\.data\.weight is a Tensor; a checkpoint stores plain Python"):
        pack_again(model, checkpoint, data={"weight": torch.ones(1)})


# Files that are no checkpoint


def test_missing_file_names_the_checkpoints_beside_it(write_checkpoint, tmp_path):
    path = write_checkpoint()
    with pytest.raises(CheckpointError, match=rf"No checkpoint at .*other\.ckpt\. There: {path}"):
        read_checkpoint(tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=r"is a folder, not a checkpoint\. There: .*tiny\.ckpt"):
        read_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"No checkpoint at .*`velm fit` writes"):
        read_checkpoint(tmp_path / "nowhere" / "a.ckpt")


@pytest.mark.parametrize("content", [b"", b"hello, this is text"])
def test_no_torch_file(tmp_path, content):
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match="is no torch file"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_a_zip_that_is_no_torch_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(CheckpointError, match="is damaged"):
        read_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("part", [0.001, 0.5, 0.99])
def test_truncated_file(write_checkpoint, part):
    path = write_checkpoint()
    content = path.read_bytes()
    path.write_bytes(content[: max(4, int(part * len(content)))])
    with pytest.raises(CheckpointError, match="is damaged: its end is missing"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"state_dict": {}, "pytorch-lightning_version": "2.6"}, "Lightning checkpoint of another project"),
        ({"a": torch.ones(1), "b": torch.ones(1)}, "holds 2 weights only, without the config"),
        ({"epoch": 1, "lr": 2}, "no entry 'velm', but epoch, lr"),
        ([1, 2], "holds a list"),
        ({"velm": {"version": "1"}}, "no entry 'velm', but velm"),
    ],
)
def test_a_torch_file_that_is_no_velm_checkpoint(tmp_path, content, words):
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=rf"torch file but no VELM checkpoint: it .*{words}.*velm fit"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_a_newer_format_says_both_versions_and_to_upgrade(write_checkpoint):
    path = rewrite(write_checkpoint(), format=FORMAT + 1, version="9.8.7")
    expected = rf"VELM 9\.8\.7 in checkpoint format {FORMAT + 1}; this is VELM {__version__}, which reads .* {FORMAT}\."
    with pytest.raises(CheckpointError, match=expected + r" Upgrade: pip install --upgrade velm"):
        read_checkpoint(path)


def test_an_entry_taken_out(write_checkpoint):
    path = write_checkpoint()
    content = torch.load(path, weights_only=True)
    del content["velm"]["tokenizer"]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="lacks tokenizer; it was changed after it was written"):
        read_checkpoint(path)


# Code is never run


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_wants_to_run_code_is_refused(write_checkpoint, tmp_path):
    made = tmp_path / "made by the pickle"
    path = write_checkpoint(extra={"callbacks": Evil(made)})
    with pytest.raises(CheckpointError, match=r"refused and not opened: it would run \w+\.mkdir"):
        read_checkpoint(path)
    (tmp_path / "bare.ckpt").write_bytes(pickle.dumps({"velm": Evil(made)}))
    with pytest.raises(CheckpointError, match="refused and not opened: it is a bare pickle"):
        read_checkpoint(tmp_path / "bare.ckpt")
    assert not made.exists()
    pickle.loads(pickle.dumps(Evil(made)))  # the bait is good: elsewhere it would have been taken
    assert made.exists()


def test_a_config_that_names_some_other_class_builds_nothing(write_checkpoint, tmp_path):
    made = tmp_path / "made by the config"
    command = [sys.executable, "-c", f"open({str(made)!r}, 'w')"]
    path = write_checkpoint()
    config = read_checkpoint(path).config | {"image_encoder": {"name": "subprocess:Popen", "args": command}}
    with pytest.raises(CheckpointError, match=r"names 'subprocess:Popen' as its image encoder, which is no Module"):
        build_from_checkpoint(read_checkpoint(rewrite(path, config=config)))
    rewrite(path, tokenizer={"name": "subprocess:Popen", "state": {}})
    with pytest.raises(CheckpointError, match=r"as its tokenizer, which is no Tokenizer"):
        build_tokenizer(read_checkpoint(path))
    assert not made.exists()


# Weights


def test_weights_that_do_not_fit(write_checkpoint):
    path = write_checkpoint()
    checkpoint = read_checkpoint(path)
    weights = dict(checkpoint.weights)
    weights["extra.weight"] = weights.pop("text_projection.weight")
    weights["image_projection.weight"] = torch.ones(3, 4)
    with pytest.raises(CheckpointError) as error:
        build_from_checkpoint(replace(checkpoint, weights=weights))
    for words in (
        "text_projection.weight is missing",
        "extra.weight is not part of the model",
        "image_projection.weight is (3, 4) in the file and (8, 16) in the model",
        f"written by VELM {__version__}",
    ):
        assert words in str(error.value)
    with pytest.raises(CheckpointError, match=r"and \d+ more"):
        build_from_checkpoint(replace(checkpoint, weights={}))


# Plugins


class FakeDistribution(importlib.metadata.Distribution):
    """An installed distribution with an entry point, without pip."""

    def __init__(self, version: str) -> None:
        self._version = version

    def read_text(self, filename):
        return {
            "METADATA": f"Name: velm-plugin-fake\nVersion: {self._version}\n",
            "entry_points.txt": "[velm.image_encoders]\nfake = fake_plugin_module:Mine\n",
        }.get(filename)

    def locate_file(self, path):
        return Path(path)


@pytest.fixture
def fake_plugin(monkeypatch, tmp_path):
    """`fake_plugin(version)` installs velm-plugin-fake; `fake_plugin(None)` takes it off again."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "fake_plugin_module.py").write_text(PLUGIN.format(decorator=""))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    entry_points, version_of = importlib.metadata.entry_points, importlib.metadata.version

    def install(version: str | None) -> None:
        points = [] if version is None else FakeDistribution(version).entry_points
        sys.modules.pop("fake_plugin_module", None)

        def fake_entry_points(**wanted):
            ours = [p for p in points if p.group == wanted.get("group")]
            return [*entry_points(**wanted), *ours]

        def fake_version(name):
            if name != "velm-plugin-fake":
                return version_of(name)
            if version is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(importlib.metadata, "entry_points", fake_entry_points)
        monkeypatch.setattr(importlib.metadata, "version", fake_version)

    yield install
    sys.modules.pop("fake_plugin_module", None)


def test_a_plugin_is_in_the_manifest_and_its_checkpoint_loads(write_checkpoint, fake_plugin):
    fake_plugin("1.2")
    checkpoint = read_checkpoint(write_checkpoint(image_encoder={"name": "fake", "dim": 8}))
    assert checkpoint.plugins == [
        {
            "kind": "image_encoder",
            "name": "fake",
            "target": "fake_plugin_module:Mine",
            "distribution": "velm-plugin-fake",
            "version": "1.2",
        }
    ]
    assert type(build_from_checkpoint(checkpoint).image_encoder).__name__ == "Mine"


def test_a_missing_plugin_is_named_with_how_to_install_it(write_checkpoint, fake_plugin):
    fake_plugin("1.2")
    checkpoint = read_checkpoint(write_checkpoint(image_encoder={"name": "fake", "dim": 8}))
    fake_plugin(None)
    expected = (
        r"was trained with the image encoder 'fake' \(fake_plugin_module:Mine\) of the distribution "
        r"velm-plugin-fake 1\.2, which is not installed\. Do: pip install velm-plugin-fake==1\.2"
    )
    with pytest.raises(MissingPluginError, match=expected):
        build_from_checkpoint(checkpoint)


def test_another_version_of_a_plugin_warns(write_checkpoint, fake_plugin):
    fake_plugin("1.2")
    checkpoint = read_checkpoint(write_checkpoint(image_encoder={"name": "fake", "dim": 8}))
    fake_plugin("2.0")
    expected = r"'fake' of velm-plugin-fake 1\.2; here it comes from velm-plugin-fake 2\.0\. Results may differ"
    with pytest.warns(UserWarning, match=expected):
        build_from_checkpoint(checkpoint)


def test_losses_are_not_needed_to_use_a_checkpoint(write_checkpoint):
    path = write_checkpoint()
    config = read_checkpoint(path).config | {"losses": {"somebody_elses": {}}}
    build_from_checkpoint(read_checkpoint(rewrite(path, config=config)))


@pytest.fixture
def forgets_decorated(monkeypatch):
    """After this, `forget()` makes the process as new: no decorated image encoder, no imported plugin file."""

    def forget() -> None:
        monkeypatch.setattr(registry.image_encoders, "_decorated", {})
        for name in [name for name in sys.modules if name.startswith("velm_plugin_")]:
            del sys.modules[name]

    forget()
    yield forget
    forget()


def test_a_plugin_file_is_found_again_and_missed_by_its_path(
    write_checkpoint, forgets_decorated, tmp_path, monkeypatch
):
    file = tmp_path / "my_encoder.py"
    file.write_text(PLUGIN.format(decorator='@velm.image_encoders.register("mine")'))
    monkeypatch.chdir(tmp_path)
    checkpoint = read_checkpoint(write_checkpoint(image_encoder={"name": "mine"}, plugins=["my_encoder.py"]))
    assert checkpoint.config["plugins"] == [str(file)]
    assert checkpoint.plugins[0]["distribution"] == "(no distribution)"
    forgets_decorated()
    monkeypatch.chdir("/")
    assert type(build_from_checkpoint(checkpoint).image_encoder).__name__ == "Mine"

    forgets_decorated()
    file.rename(tmp_path / "moved.py")
    with pytest.raises(
        MissingPluginError, match=r"image encoder 'mine', which is not here\..*my_encoder\.py.*plugins="
    ):
        build_from_checkpoint(checkpoint)
    registry.load_plugins([str(tmp_path / "moved.py")])  # brought in by hand: the stored path is not missed
    build_from_checkpoint(checkpoint)


def test_a_dotted_path_that_cannot_be_imported(write_checkpoint):
    path = write_checkpoint()
    config = read_checkpoint(path).config | {"image_encoder": {"name": "nowhere_at_all.encoders:Mine"}}
    with pytest.raises(
        MissingPluginError, match=r"'nowhere_at_all\.encoders:Mine'.*cannot be had here.*No module named"
    ):
        build_from_checkpoint(read_checkpoint(rewrite(path, config=config)))
