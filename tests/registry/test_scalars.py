"""YAML's scalars: text where text was typed, numbers where numbers were, and each to the type of its option."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velm.errors import ConfigError
from velm.registry.options import as_typed, validated
from velm.registry.scalars import as_flow, load_yaml, plain, read_config, read_value

TEXTS = ["no", "No", "on", "off", "y", "n", "yes", "007", "1_000", "0x1F", "1:30", "2024-01-01", "12e", "v1.0", "a b"]
VALUES = {"true": True, "False": False, "null": None, "~": None, "12": 12, "-3": -3, "1e-3": 1e-3, "1.10": 1.1,
          ".5": 0.5, "5.": 5.0, ".inf": math.inf, "1E4": 1e4}  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_what_yaml_1_1_reads_other_things_into_is_text(text: str) -> None:
    assert load_yaml(text) == load_yaml(f"{{a: {text}}}")["a"] == read_value(text) == text


@pytest.mark.parametrize(("text", "value"), VALUES.items())
def test_numbers_booleans_and_null_are_read_and_in_quotes_are_text(text: str, value: object) -> None:
    for read in (load_yaml(f"a: {text}")["a"], read_value(text)):
        assert (read, type(read) in (bool, int, str)) == (value, type(value) in (bool, int, str))
    for quoted in (f'"{text}"', f"'{text}'"):
        assert load_yaml(f"a: {quoted}")["a"] == read_value(quoted) == text


def test_a_scalar_on_the_command_line_is_taken_whole() -> None:
    for path in ("my data, v2/[a] #1 captions.csv", "#1.csv", "a: b.csv", "{a}.csv", "[x", "it's"):
        assert read_value(path) == path
    assert read_value("[a, {b: no}]") == ["a", {"b": "no"}]
    assert read_value("") == ""
    with pytest.raises(ConfigError, match="The value of --dataset is no YAML"):
        read_config("{name: csv", "--dataset")


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from(TEXTS + list(VALUES))
    | st.text("ab:#{}[],'\"\\ \n&*-?!|>%@`0.e", max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab: #", max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(VALUE)
def test_a_config_on_one_line_is_read_again_as_it_was(value: Any) -> None:
    assert load_yaml(as_flow({"a": value}))["a"] == value


def test_a_number_keeps_the_text_that_it_was_typed_as() -> None:
    number = load_yaml("a: 1.10")["a"]
    for same in (number, copy.deepcopy(number), pickle.loads(pickle.dumps(number))):
        assert (same, same.source, as_flow(same)) == (1.1, "1.10", "1.10")
    assert type(plain({"a": [number]})["a"][0]) is float


@dataclass(kw_only=True)
class Part:
    text: str = ""
    maybe: str | None = None
    either: int | str = 0
    flag: bool | str = False
    number: float = 0.0
    count: int = 0
    switch: bool = False
    texts: list[str] | None = None
    one_or_more: str | list[str] = ""
    names: dict[str, str] | None = None
    numbers: tuple[float, float] = (0.0, 0.0)
    choice: Literal["no", "a"] = "a"
    anything: Any = None
    nested: dict[str, Any] | None = None


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("text: no", "no"), ("text: 007", "007"), ("text: 7", "7"), ("text: 1.10", "1.10"), ("text: 1e-3", "1e-3"),
        ("text: true", "true"), ("text: 2024-01-01", "2024-01-01"), ('text: "1.0"', "1.0"),
        ("maybe: 12", "12"), ("maybe: null", None), ("maybe: 'null'", "null"), ("maybe: on", "on"),
        ("either: 7", 7), ("either: seven", "seven"), ("flag: true", True), ("flag: folder", "folder"),
        ("number: 1e-3", 1e-3), ("number: 3", 3.0), ("count: 007", 7), ("count: 1_000", 1000), ("switch: no", False),
        ("switch: yes", True), ("switch: true", True), ("texts: [no, 7, 1.10]", ["no", "7", "1.10"]),
        ("one_or_more: 7", "7"), ("one_or_more: [on, 007]", ["on", "007"]),
        ("names: {no: 1, 2: y}", {"no": "1", "2": "y"}),
        ("numbers: [5e-1, 1e0]", (0.5, 1.0)), ("choice: no", "no"), ("anything: '7'", "7"), ("anything: 7", 7),
        ("anything: no", "no"), ("anything: 1e-3", 1e-3),
        ("nested: {a: no, b: '7', c: 1e-3}", {"a": "no", "b": "7", "c": 1e-3}),
    ],
)  # fmt: skip
def test_an_option_gets_what_was_typed_in_its_type(typed: str, expected: object) -> None:
    options = load_yaml(typed)
    (key,) = options
    value = validated(Part, options, {}, "part 'x'")[key]
    assert value == expected
    assert type(value) is type(expected)
    again = validated(Part, plain(as_typed(Part, options)), {}, "part 'x'")[key]
    assert again == expected, "what is stored gives the same"
