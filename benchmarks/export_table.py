"""Which formats of `velm export` can express which model: `python -m benchmarks.export_table`, a table in Markdown.

The models are those of configs/, shrunk and with the random weights of one training step, and imported models of small
random weights, as the tests make them: nothing is downloaded.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[1]
FORMATS = ("velm", "transformers", "open_clip", "onnx", "backbone")
LONGEST = 110
"""Letters of a reason in a cell."""


def stand_ins() -> Any:
    """The module tests/test_configs.py, which makes small models of the configs."""
    sys.path[:0] = [place for place in (str(ROOT / "tests"), str(ROOT / "tests/support")) if place not in sys.path]
    import test_configs

    return test_configs


def config_checkpoint(config: Path, folder: Path) -> Path:
    """A checkpoint of a config after one step.

    Raises:
        RuntimeError: it cannot be trained.
    """
    tests = stand_ins()
    folder.mkdir(exist_ok=True)
    table = tests.write_table(folder)
    with contextlib.redirect_stdout(sys.stderr):
        status = tests.fit(config, table, *tests.smaller(config), *_fitting(config, tests.smaller(config)))
    if status != 0:
        raise RuntimeError(f"{config} cannot take a step.")
    return folder / "run" / "last.ckpt"


def _fitting(config: Path, smaller: list[str]) -> list[str]:
    """Options of a shrunk config by which images and positions fit as they do in the config."""
    text = config.read_text(encoding="utf-8")
    if re.search("name: hf/(openai|google)", text):
        return ["--data.image_size=32"]  # of the folder in place of the hub's model
    size = re.search(r"data.image_size=(\d+)", " ".join(smaller))
    patch = re.search(r"patch_size: (\d+).*position_grid", text)
    if size is None or patch is None:
        return []
    return [f"--model.image_encoder.position_grid={int(size[1]) // int(patch[1])}"]


def imports() -> Mapping[str, Callable[[Path], str]]:
    """What writes small models of other libraries into a folder, and returns the name of the source."""
    stand_ins()
    import families
    import foreign
    import open_clips
    import vlms

    coca = {"embed_cls": True, "output_tokens": True, "context_length": 16}
    pooled = {"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 9, "output_tokens": True}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2}
    models: dict[str, dict[str, Any]] = {
        "CLIP": {"embed_dim": 24, "vision_cfg": open_clips.VIT, "text_cfg": open_clips.TEXT},
        "CLIP of timm": {
            "embed_dim": 24, "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "token", "image_size": 160},
            "text_cfg": open_clips.TEXT,
        },
        "CoCa": {"embed_dim": 32, "vision_cfg": open_clips.VIT | pooled, "text_cfg": open_clips.TEXT | coca,
                 "multimodal_cfg": text, "custom_text": True},
    }  # fmt: skip
    saved: dict[str, Callable[[Path], Path]] = {
        "CLIPModel": foreign.save_clip, "SiglipModel": foreign.save_siglip,
        "VisionTextDualEncoderModel": families.save_vision_text, "ChineseCLIPModel": families.save_chinese_clip,
        "AltCLIPModel": families.save_altclip, "MetaClip2Model": families.save_metaclip,
        "VisionEncoderDecoderModel": families.save_encoder_decoder,
        "BlipForConditionalGeneration": families.save_blip, "GitForCausalLM": families.save_git,
        "LlavaForConditionalGeneration": vlms.save_llava, "Idefics3ForConditionalGeneration": vlms.save_idefics3,
        "PaliGemmaForConditionalGeneration": vlms.save_paligemma,
    }  # fmt: skip
    return {
        **{name: partial(_saved, save) for name, save in saved.items()},
        **{f"open_clip's {name}": partial(_original, model) for name, model in models.items()},
    }


def _saved(save: Callable[[Path], Path], folder: Path) -> str:
    return f"hf/{save(folder)}"


def _original(model: dict[str, Any], folder: Path) -> str:
    import open_clips

    return f"open_clip/{open_clips.Original(folder, model).folder}"


def cell(source: str | Path, format: str, output: Path) -> str:
    """The class and the largest difference, or why the format is refused."""
    import velm
    from velm.errors import VelmError

    try:
        made = velm.export(source, output, format=format)
    except VelmError as error:
        reason = re.split(r" cannot express this model: | cannot be exported to \w+: ", str(error))[-1]
        reason = re.sub(r"\b(hf|llm)/[^' ]*tmp[^' ]*", r"\1/FOLDER", reason.partition(". ")[0].rstrip("."))
        first, *more = reason.split("; ")
        first = first if len(first) <= LONGEST else f"{first[:LONGEST]} ..."
        return "– " + first.replace("|", "/") + (f"; {len(more)} more" if more else "")
    return f"{made.kind} {max(difference.largest for difference in made.differences):.0e}"


def sources() -> dict[str, Callable[[Path], str | Path]]:
    """What writes each model into a folder, and returns what `velm.export` takes."""
    configs = {config.stem: partial(config_checkpoint, config) for config in sorted((ROOT / "configs").glob("*.yaml"))}
    return {**configs, **imports()}


def rows(formats: tuple[str, ...], names: list[str]) -> Iterator[list[str]]:
    """Name and cells of each model, or of those called `names`."""
    for name, make in sources().items():
        if names and name not in names:
            continue
        with TemporaryDirectory() as place:
            source = make(Path(place))
            yield [name, *(cell(source, format, Path(place) / f"as_{format}") for format in formats)]


def read_here() -> None:
    """Read what was written in this process, which already has all libraries."""
    from velm.exports import formats
    from velm.exports.readers import READERS

    formats.in_fresh_process = lambda reader, *inputs: READERS[reader](*inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="of models; default: all")
    parser.add_argument("--formats", default=",".join(FORMATS), help=f"default: {','.join(FORMATS)}")
    parser.add_argument("--here", action="store_true", help="read in this process: minutes less, and no other number")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.here:
        read_here()
    formats = tuple(args.formats.split(","))
    print(f"| model | {' | '.join(formats)} |\n|{' --- |' * (len(formats) + 1)}")
    for row in rows(formats, args.names):
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
