"""`history` and `lineage`: what versions there are, who moved which alias and why, and what each was made from."""

from datetime import datetime, timezone
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.tree import Tree

from pipelines.commands.output import AsJson, console, print_json
from pipelines.stage import repository_root
from registry.lineage import Node
from registry.lineage import lineage as ancestors
from registry.promote import Move, moves
from registry.resolve import find_version, list_versions
from registry.store import connect, explained
from registry.versions import Version

SHORT = 12  # of a digest, where people read it


def history(
    name: Annotated[str, typer.Argument(help="the registered model, as in internlm2-demo")], as_json: AsJson = False
) -> None:
    """List a model's versions, newest first, and every alias that somebody promoted."""
    listed = list_versions(name, root=repository_root())
    if as_json:
        print_json([_version_json(version) for version in listed])
        return
    console().print(_table(name, listed))
    came = sorted(((move, version) for version in listed for move in moves(version)), key=lambda pair: pair[0].at)
    for move, version in came:
        print(_told(move, version))


def lineage(
    reference: Annotated[str, typer.Argument(help="NAME@ALIAS or NAME/VERSION")], as_json: AsJson = False
) -> None:
    """Show what a version was made from, back to the base: data, code and pipeline of each step."""
    store = connect(repository_root())
    with explained(store.uri):
        node = ancestors(store, find_version(store, reference))
    if as_json:
        print_json(_node_json(node))
    else:
        console().print(_grown(node))


def _table(name: str, listed: list[Version]) -> Table:
    table = Table(title=f"{name}, newest first", title_justify="left")
    for title in ("version", "variant", "aliases", "made", "digest", "perplexity", "KL, nats", "size"):
        table.add_column(title, justify="right" if title in ("version", "perplexity", "KL, nats", "size") else "left")
    for version in listed:
        metrics = version.metrics
        table.add_row(
            str(version.number), version.variant + (" (candidate)" if version.is_candidate else ""),
            " ".join(f"@{alias}" for alias in version.aliases), _day(version.created_ms), version.digest[:SHORT],
            _number(metrics.get("perplexity"), ".3f"), _number(metrics.get("kl_nats"), ".4f"),
            _number(metrics.get("size_bytes", 0) / 1e6 or None, ",.2f", " MB"),
        )  # fmt: skip
    return table


def _told(move: Move, version: Version) -> str:
    before = f" from v{move.before}" if move.before else ""
    how = f", forced: {move.why}" if move.forced else ""
    return f"{move.at[:19]}Z  @{move.alias} came{before} to v{version.number} ({version.variant}) by {move.by}{how}"


def _grown(node: Node, tree: Tree | None = None) -> Tree:
    """The node and everything below it as a tree; facts first, parents after."""
    branch = Tree(_headline(node)) if tree is None else tree.add(_headline(node))
    for line in _facts(node):
        branch.add(line)
    for parent in node.parents:
        _grown(parent, branch)
    return branch


def _headline(node: Node) -> str:
    role = f"{node.role}: " if node.role else ""
    version = node.version
    if version is None:
        return f"{role}{node.digest[:SHORT]} is not registered"
    aliases = "".join(f" @{alias}" for alias in version.aliases)
    kind = version.tags.get("kind", "")
    return f"{role}{version.variant} v{version.number} ({kind}) {node.digest[:SHORT]}{aliases}"


def _facts(node: Node) -> list[str]:
    facts = [f"data {name} {digest[:SHORT]}" for name, digest in node.data.items()]
    if not node.parents and node.base:
        revision = f" at {node.base['revision']}" if "revision" in node.base else ""
        facts.append(f"source {node.base.get('source', '?')}{revision}")
    if node.commit:
        dirty = {True: ", with uncommitted changes", False: "", None: ""}[node.is_dirty]
        facts.append(f"code {node.commit[:SHORT]}{dirty}")
    if node.dvc_lock_md5:
        facts.append(f"dvc.lock {node.dvc_lock_md5[:SHORT]}")
    return facts


def _version_json(version: Version) -> dict[str, Any]:
    return {
        "version": version.number,
        "variant": version.variant,
        "aliases": list(version.aliases),
        "candidate": version.is_candidate,
        "digest": version.digest,
        "created": _day(version.created_ms),
        "metrics": version.metrics,
        "moves": [vars(move) for move in moves(version)],
    }


def _node_json(node: Node) -> dict[str, Any]:
    version = node.version
    return {
        "role": node.role or None,
        "digest": node.digest,
        "version": version.number if version else None,
        "variant": version.variant if version else None,
        "kind": version.tags.get("kind") if version else None,
        "aliases": list(version.aliases) if version else [],
        "base": dict(node.base),
        "data": dict(node.data),
        "git_commit": node.commit,
        "git_dirty": node.is_dirty,
        "dvc_lock_md5": node.dvc_lock_md5,
        "parents": [_node_json(parent) for parent in node.parents],
    }


def _day(created_ms: int) -> str:
    return datetime.fromtimestamp(created_ms / 1000, timezone.utc).strftime("%Y-%m-%d %H:%M") if created_ms else ""


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"
