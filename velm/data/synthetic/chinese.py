"""The scenes of `shapes` in Chinese: 一个红色的小圆形在一颗蓝色的大五角星的左边.

A grammar of its own: nouns take a measure word, attributes precede the noun in the order colour, 的, size; the place
follows its landmark (A在B的左边), or comes first (B的左边有A); an enumeration names the direction (从左到右依次是A和B).
There are no blanks.
"""

from __future__ import annotations

from itertools import pairwise

from velm.data.synthetic.scenes import Scene, Thing

__all__ = ["describe", "noun_phrase"]

_SIZES = {"small": "小", "large": "大"}
_COLOURS = {"red": "红", "green": "绿", "blue": "蓝", "yellow": "黄", "purple": "紫", "cyan": "青", "black": "黑"}
_SHAPES = {  # noun, measure word
    "circle": ("圆形", "个"),
    "square": ("正方形", "个"),
    "triangle": ("三角形", "个"),
    "star": ("五角星", "颗"),
    "cross": ("十字", "个"),
    "ring": ("圆环", "只"),
}
_SIDES = {"horizontal": ("左", "右"), "vertical": ("上", "下")}  # of the first object, of the last


def describe(scene: Scene) -> tuple[str, ...]:
    """Every description of a scene that counts as correct; no other scene shares one of them."""
    names = [noun_phrase(thing) for thing in scene.things]
    if scene.axis is None:
        return (names[0], f"图中有{names[0]}")
    first, last = _SIDES[scene.axis]
    return (*_readings(names, first, last), *_readings(names[::-1], last, first))


def noun_phrase(thing: Thing) -> str:
    """一颗蓝色的大五角星"""
    noun, measure = _SHAPES[thing.shape]
    return f"一{measure}{_COLOURS[thing.colour]}色的{_SIZES[thing.size]}{noun}"


def _readings(names: list[str], side: str, other: str) -> list[str]:
    """Three sentences about objects in the order from `side` to `other`."""
    pairs = list(pairwise(names))
    return [
        "，".join(f"{one}在{next_one}的{side}边" for one, next_one in pairs),
        "，".join(f"{one}的{other}边有{next_one}" for one, next_one in pairs),
        f"从{side}到{other}依次是{'、'.join(names[:-1])}和{names[-1]}",
    ]
