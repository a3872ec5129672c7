"""The comparison as one HTML file that opens anywhere: no script, no font and no picture is fetched from elsewhere."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

from compress.evaluate.intervals import METRICS, Interval
from pipelines.pairs import Difference
from pipelines.speed import SpeedTable
from pipelines.summary import COLUMNS, Row, cells, stored

NAMES = {
    "perplexity": "perplexity",
    "perplexity_delta": "perplexity against base",
    "kl_nats": "KL from the base, nats a token",
    "top1_agreement": "top-1 as base",
    "top5_agreement": "top-5 as base",
}
STRATA = {"domains": "kind of text", "languages": "language", "positions": "position in the window, tokens"}
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0;font-variant-numeric:tabular-nums}
th,td{padding:.25em .7em;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left} thead th{border-bottom:2px solid #888}
img{max-width:100%} small{color:#777} .no{color:#999} details{margin:1em 0}
"""
Pairs = Mapping[tuple[str, str], Mapping[str, Difference] | None]


def page(
    rows: Sequence[Row],
    reports: Mapping[str, Mapping[str, Any]],
    pairs: Pairs,
    picture: bytes,
    speeds: Sequence[SpeedTable] = (),
) -> str:
    """The whole file; equal arguments give equal text."""
    drawn = base64.b64encode(picture).decode()
    parts = [
        "<h1>Every variant against the base</h1>",
        "<p>Measured from the stored artifacts. Below a value its 95 % interval.</p>",
        _table(list(COLUMNS.values()), [cells(row) for row in rows]),
        f'<p><img alt="size against perplexity" src="data:image/png;base64,{drawn}"></p>',
        "<h2>With intervals</h2>",
        _table(["variant", *NAMES.values()], [_measured(row) for row in rows], escaped=True),
        "<h2>Two on the same documents</h2>",
        "<p>The row less the column, in KL from the base; grey where chance could have made it.</p>",
        _pair_table([row["variant"] for row in stored(rows)], pairs),
        *(_stratum(name, title, reports) for name, title in STRATA.items()),
        *(_speeds(speeds) if speeds else ()),
        "<h2>How it was measured</h2>",
        _table(["", ""], [[k, str(v)] for k, v in _protocol(reports).items()]),
    ]
    head = f'<meta charset="utf-8"><title>turbopress: comparison</title><style>{STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>\n" + "\n".join(parts) + "\n</body></html>\n"


def _speeds(speeds: Sequence[SpeedTable]) -> list[str]:
    """A table an engine and machine; what was timed elsewhere is never beside it."""
    told = [f"<h3>{html.escape(one.title)}</h3>\n{_table(one.head, one.rows)}" for one in speeds]
    return ["<h2>Speed on this machine</h2>", *told]


def _measured(row: Row) -> list[str]:
    ends = row.get("intervals", {})
    found = [_with_interval(row[name], ends.get(name)) if name in row else "" for name in METRICS]
    return [html.escape(row["variant"]), *found]


def _with_interval(value: float, ends: Mapping[str, float] | None) -> str:
    if not ends or ends["low"] == ends["high"]:
        return f"{value:.4f}"
    return f"{value:.4f}<br><small>{ends['low']:.4f} – {ends['high']:.4f}</small>"


def _pair_table(names: Sequence[str], pairs: Pairs) -> str:
    rows = [[html.escape(a), *(_pair(pairs.get((b, a))) if a != b else "" for b in names)] for a in names]
    return _table(["", *names], rows, escaped=True)


def _pair(found: Mapping[str, Difference] | None) -> str:
    if found is None:
        return '<span class="no">other text</span>'
    difference = found["kl_nats"]
    text = _with_sign(difference.difference)
    return text if difference.is_certain else f'<span class="no">{text}</span>'


def _with_sign(interval: Interval) -> str:
    return f"{interval.value:+.4f}<br><small>{interval.low:+.4f} – {interval.high:+.4f}</small>"


def _stratum(name: str, title: str, reports: Mapping[str, Mapping[str, Any]]) -> str:
    """KL by stratum, a row a variant."""
    values = list(dict.fromkeys(value for report in reports.values() for value in report.get(name, {})))
    if not values:
        return ""
    rows = [
        [html.escape(key), *(_of_stratum(report.get(name, {}).get(value)) for value in values)]
        for key, report in reports.items()
    ]
    return f"<h2>KL by {html.escape(title)}</h2>\n" + _table(["variant", *values], rows, escaped=True)


def _of_stratum(found: Mapping[str, Any] | None) -> str:
    return "" if found is None else _with_interval(found["kl_nats"], found.get("kl_nats_interval"))


def _protocol(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, object]:
    first: Mapping[str, Any] = next(iter(reports.values()))
    tokens = {f"sha256 of the token ids, {name}": digest for name, digest in first.get("data", {}).items()}
    return {**first.get("protocol", {}), **tokens}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, escaped: bool = False) -> str:
    titles = "".join(f"<th>{html.escape(title)}</th>" for title in head)
    lines = ["".join(f"<td>{cell if escaped else html.escape(cell)}</td>" for cell in row) for row in rows]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>\n{body}\n</tbody></table>"
