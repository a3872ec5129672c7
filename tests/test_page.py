"""The comparison's page opens offline, says everything that was measured, and trusts no name in it."""

import re
from html.parser import HTMLParser

import pytest
from fake_measured import measured

from pipelines.measured import Measured
from pipelines.page import page
from pipelines.pairs import differences
from pipelines.summary import pareto, picture

METRICS = {
    "parameters": 1_500_000, "size_bytes": 900_000, "bits_per_weight": 8.0, "perplexity": 12.5, "perplexity_delta": 0.5,
    "kl_nats": 0.04, "top1_agreement": 0.9, "top5_agreement": 0.95,
}  # fmt: skip
INTERVALS = {name: {"low": METRICS[name] * 0.9, "high": METRICS[name] * 1.1} for name in ("perplexity", "kl_nats")}
STRATUM = {"kl_nats": 0.07, "kl_nats_interval": {"low": 0.061, "high": 0.082}}


def row(variant, **changes):
    return {"variant": variant, "kind": "quantized", "from": "base", **METRICS, "intervals": INTERVALS} | changes


def report(**changes):
    return {"domains": {"chat": STRATUM}, "positions": {"0-63": STRATUM}, "protocol": {"windows": 64},
            "data": {"evaluation": "e" * 64}} | changes  # fmt: skip


def rendered(rows, reports=None, pairs=None):
    return page(rows, reports or {r["variant"]: report() for r in rows}, pairs or {}, b"png")


class Reader(HTMLParser):
    """Collects what a browser would fetch, and refuses a page whose tags do not match."""

    def __init__(self):
        super().__init__()
        self.fetched, self.tags, self.open = [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read(text):
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


def test_the_page_fetches_nothing_and_runs_nothing():
    reader = read(rendered([row("awq-w4"), row("rtn-w4")]))
    assert reader.fetched == ["data:image/png;base64,cG5n"]
    assert not reader.tags & {"script", "link", "iframe"}
    assert "@import" not in rendered([row("a")])
    assert "url(" not in rendered([row("a")])


def test_every_variant_stands_there_with_its_intervals_and_strata():
    text = rendered([row("awq-w4"), row("rtn-w4")])
    assert text.count("<td>awq-w4</td>") == 5  # the table, the intervals, the pairs, two strata
    assert "0.0400<br><small>0.0360 – 0.0440</small>" in text
    assert "0.0700<br><small>0.0610 – 0.0820</small>" in text
    assert "e" * 64 in text


def test_a_name_cannot_be_markup():
    text = rendered([row("<script>alert(1)</script>")], {"<script>": report(domains={"<b>x</b>": STRATUM})})
    assert "<script" not in text
    assert "&lt;b&gt;x&lt;/b&gt;" in text


def test_pairs_say_what_can_be_told_from_chance():
    one, two, same = measured("one", kl=0.01), measured("two", kl=0.02), measured("same", kl=0.01)
    everyone = (one, two, same)
    pairs = {(a.name, b.name): differences(a, b) for a in everyone for b in everyone if a is not b}
    pairs["two", "one"] = None
    text = rendered([row(m.name) for m in everyone], pairs=pairs)
    assert "+0.0100<br>" in text
    assert '<span class="no">+0.0000<br>' in text
    assert "other text" in text


def test_the_front_is_what_no_other_beats_in_both():
    rows = [
        row("a", size_bytes=1, perplexity=9),
        row("b", size_bytes=2, perplexity=8),
        row("c", size_bytes=3, perplexity=8.5),
    ]
    assert [r["variant"] for r in pareto(rows)] == ["a", "b"]


def test_equal_measurements_give_an_equal_page_and_picture(tmp_path):
    rows = [row("a"), row("b", size_bytes=1, intervals={})]
    for name in ("one.png", "two.png"):
        picture(rows, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert rendered(rows) == rendered(rows)


def test_reports_of_before_there_were_intervals_are_shown_without():
    bare = {k: v for k, v in row("old").items() if k not in ("intervals", "top5_agreement")}
    assert "<td>old</td>" in rendered([bare], {"old": {"metrics": METRICS}})
    assert Measured("old", {}, None).sums == {}


@pytest.mark.parametrize("bad", ["http://", "https://", "//cdn"])
def test_no_address_of_another_machine_is_in_the_page(bad):
    assert not re.search(re.escape(bad), rendered([row("a")]))
