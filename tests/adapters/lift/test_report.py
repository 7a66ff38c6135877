import re
from html.parser import HTMLParser

import pytest

from adapters.lift.compare import Interval
from adapters.lift.matrix import Matrix
from adapters.lift.plots import interval_plot
from adapters.lift.report import MatrixReport, html_page, report_of
from adapters.lift.rerank import RerankReport

EMPTY = {"meta", "br"}


class Balanced(HTMLParser):
    """Fails on a closing tag that closes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def report(matrix: Matrix) -> MatrixReport:
    rerank = RerankReport(
        model="a <model>",
        lists=5,
        length=10,
        seeds=(0, 1),
        compared_at=7,
        ndcg={"base": {1: 0.5, 7: 0.6}, "full": {1: 0.6, 7: 0.7}},
        differences={"full": Interval(value=0.1, low=0.05, high=0.15)},
    )
    return report_of(matrix, rerank)


def test_the_report_counts_and_comes_back_from_json(report: MatrixReport) -> None:
    assert (report.cells, report.missing) == (6, 0)
    assert report.samples["time"]["train"] > report.samples["time"]["test"]
    assert report.seconds["time DeepFM"] == pytest.approx(6 * report.mean_cell_s)
    assert MatrixReport.model_validate_json(report.model_dump_json()) == report
    assert report.difference("time", "DeepFM", "full", "base").auc.value is not None
    with pytest.raises(KeyError):
        report.difference("kar", "DeepFM", "full", "base")


def test_the_page_stands_alone_and_shows_every_arm_and_slice(report: MatrixReport) -> None:
    page = html_page(report)
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert not re.search(r"(src|href)\s*=|@import|url\(", page)
    for m in report.measures:
        assert m.part in page
        assert m.arm in page
    assert page.count("<svg") == 2
    assert "a &lt;model&gt;" in page
    assert "+0.1000 (+0.0500 to +0.1500)" in page


def test_a_plot_places_intervals_on_one_axis_and_leaves_out_what_is_undefined() -> None:
    rows = [
        ("up", Interval(value=0.02, low=0.01, high=0.03)),
        ("down <", Interval(value=-0.02, low=-0.03, high=-0.01)),
        ("gone", Interval(value=None, low=None, high=None)),
    ]
    svg = interval_plot("a title", rows)
    places = [float(x) for x in re.findall(r"cx=([0-9.]+)", svg)]
    zero = float(re.search(r"line x1=([0-9.]+)", svg)[1])
    assert places[0] > zero > places[1]
    assert places[0] - zero == pytest.approx(zero - places[1], abs=0.2)
    assert "gone" not in svg
    assert "down &lt;" in svg
    assert interval_plot("empty", rows[2:]) == ""
