"""Training curves of metrics.csv as SVG."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from velm.report.curves import MAX_POINTS, charts, read_curves

CSV = """epoch,step,train/loss,val/loss,val/caption/cider,lr
0,9,4.5,,,0.1
,19,,,,0.1
0,29,3.5,4.0,nan,
1,59,2.5,3.0,0.2,
"""


def test_columns_are_points(tmp_path):
    (tmp_path / "metrics.csv").write_text(CSV)
    curves = read_curves(tmp_path / "metrics.csv")
    assert curves["train/loss"] == [(9, 4.5), (29, 3.5), (59, 2.5)]
    assert curves["val/caption/cider"] == [(59, 0.2)]  # nan is no point
    assert "epoch" not in curves


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00", b"not,a\ntable", b"step\n1"])
def test_what_is_no_metrics_csv_has_no_curves(tmp_path, content):
    if content is not None:
        (tmp_path / "metrics.csv").write_bytes(content)
    assert charts(read_curves(tmp_path / "metrics.csv")) == []


def test_a_chart_is_well_formed_and_names_its_lines(tmp_path):
    (tmp_path / "metrics.csv").write_text(CSV)
    (chart,) = charts(read_curves(tmp_path / "metrics.csv"))
    figure = ElementTree.fromstring(chart)
    assert figure.find("figcaption").text == "loss"
    lines = figure.findall("svg/polyline")
    assert [len(line.get("points").split()) for line in lines] == [3, 2]
    assert [key.text.strip() for key in figure.findall("div/span")] == ["train/loss", "val/loss"]
    for line in lines:
        for point in line.get("points").split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= 320
            assert 0 <= y <= 150


def test_a_flat_line_and_a_long_one():
    (chart,) = charts({"train/loss": [(float(i), 1.0) for i in range(10_000)]})
    points = ElementTree.fromstring(chart).find("svg/polyline").get("points").split()
    assert len(points) <= MAX_POINTS + 1
    assert points[-1].startswith("312.0,")
