"""A gate, and variants that were measured: registered, or only in their reports."""

import json
import shutil

from fake_artifacts import enter, fake_artifact, fake_report
from fake_measured import measured

GATE = {"most_kl_nats": {"limit": 0.02}, "most_perplexity_rise": {"limit": 0, "against": "champion"}}


def register(root, variant, weights=None, kind="quantized", parents=None, **facts):
    """A version with a report and its documents."""
    folder = root / "models" / variant
    if folder.exists():
        shutil.rmtree(folder)
    manifest = fake_artifact(folder, weights or variant, kind=kind, parents=parents or {})
    found = measured(variant, **facts)
    documents = root / "documents.json"
    documents.write_text(json.dumps(found.documents))
    report = fake_report(variant, **found.report["metrics"]) | {"artifact": manifest.digest}
    enter(root, variant, report=report, attachments=[documents])
    return manifest


def write_measured(root, **variants):
    for variant, facts in variants.items():
        found = measured(variant, **facts)
        (root / "evaluations" / variant).mkdir(parents=True)
        (root / "evaluations" / variant / "documents.json").write_text(json.dumps(found.documents))
        (root / "reports").mkdir(exist_ok=True)
        report = {"variant": variant, "kind": "quantized", "metrics": found.report["metrics"]}
        (root / "reports" / f"{variant}.json").write_text(json.dumps(report))
