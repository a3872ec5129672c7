"""An alias moves on a verdict or on a person's word, and both are kept; what was made of what can be asked."""

import json
import shutil

import pytest
import yaml
from fake_artifacts import enter, fake_artifact, fake_report
from fake_measured import measured, proof
from tiny_repository import PARAMS

from registry.conformance import path_beside
from registry.errors import RegistryError
from registry.promote import Decision, moves, promote
from registry.resolve import list_versions
from registry.store import connect

pytest_plugins = ["fake_stores"]
GATE = {"most_kl_nats": {"limit": 0.02}, "most_perplexity_rise": {"limit": 0, "against": "champion"}}


@pytest.fixture
def here(root, monkeypatch):
    """A repository with a gate, which is the working folder."""
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS | {"gate": GATE}, sort_keys=False))
    monkeypatch.chdir(root)
    return root


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


def aliases(root):
    return {k: int(v) for k, v in connect(root).client.get_registered_model("demo").aliases.items()}


def test_a_candidate_that_passes_becomes_champion_and_the_verdict_is_kept(turbopress, here):
    register(here, "awq-w4")
    status, out, err = turbopress("promote", "demo@awq-w4", "--to", "champion")
    assert (status, err) == (0, ""), out
    assert "awq-w4 v1: passes" in out
    assert out.endswith("demo@champion: was nothing, is v1 (awq-w4)\n")
    assert aliases(here)["champion"] == 1
    (move,) = moves(list_versions("demo", root=here)[0])
    assert (move.alias, move.forced, move.before) == ("champion", False, None)
    assert "most_kl_nats" in move.verdict
    assert move.by


def test_a_rejected_candidate_keeps_the_champion_and_exits_with_3(turbopress, here):
    register(here, "awq-w4")
    register(here, "rtn-w4", rise=0.05)
    turbopress("promote", "demo@awq-w4")
    status, out, _ = turbopress("promote", "demo@rtn-w4")
    assert status == 3
    assert "FAILS   most_perplexity_rise" in out
    assert "against awq-w4 v1" in out
    assert out.endswith("demo@champion: stays v1 (awq-w4)\n")
    assert aliases(here)["champion"] == 1
    assert moves(list_versions("demo", root=here)[0]) == []


def test_a_forced_promotion_keeps_who_and_why(turbopress, here):
    register(here, "awq-w4", kl=0.5)
    assert turbopress("promote", "demo@awq-w4")[0] == 3
    status, _, err = turbopress("promote", "demo@awq-w4", "--force")
    assert (status, err) == (
        1,
        "turbopress: --force: says that the gate is wrong, so it needs a reason; add --why 'REASON'\n",
    )
    assert "champion" not in aliases(here)
    status, out, _ = turbopress("promote", "demo@awq-w4", "--force", "--why", "the old one is on fire")
    assert status == 0
    assert "forced by" in out
    (move,) = moves(list_versions("demo", root=here)[0])
    assert (move.forced, move.why) == (True, "the old one is on fire")
    assert "is rejected" in move.verdict


def test_a_reason_alone_forces_nothing(turbopress, here):
    register(here, "awq-w4", kl=0.5)
    assert turbopress("promote", "demo@awq-w4", "--why", "please")[0] == 3
    assert "champion" not in aliases(here)


def test_promoting_the_champion_again_records_nothing(turbopress, here):
    register(here, "awq-w4")
    turbopress("promote", "demo@awq-w4")
    status, out, _ = turbopress("promote", "demo@awq-w4")
    assert status == 0
    assert out.endswith("demo@champion: is v1 (awq-w4) already\n")
    assert len(moves(list_versions("demo", root=here)[0])) == 1


def test_a_verdict_for_programs(turbopress, here):
    register(here, "awq-w4")
    status, out, _ = turbopress("promote", "demo@awq-w4", "--json")
    said = json.loads(out)
    assert status == 0
    assert (said["moved"], said["candidate"], said["champion_before"]) == (True, 1, None)
    assert [f["limit"] for f in said["verdict"]["findings"]] == list(GATE)


def test_an_alias_that_a_variant_owns_or_that_cannot_be_is_refused(turbopress, here):
    register(here, "awq-w4")
    register(here, "rtn-w4")
    for alias, words in (("rtn-w4", "is a variant's own alias"), ("v1", "can be no alias"), ("a.b", "can be no alias")):
        status, out, err = turbopress("promote", "demo@awq-w4", "--to", alias)
        assert (status, out) == (1, "")
        assert words in err
        assert len(err.splitlines()) == 1
    assert turbopress("promote", "demo@nobody")[0] == 1


def test_an_alias_that_cannot_move_leaves_no_record_of_a_move(here, monkeypatch):
    register(here, "awq-w4")

    def fail(*_):
        raise OSError("the wire is cut")

    monkeypatch.setattr("mlflow.MlflowClient.set_registered_model_alias", fail)
    with pytest.raises(RegistryError, match="the wire is cut"):
        promote("demo@awq-w4", root=here, to="champion", judge=lambda _: Decision(True, "passes"))
    assert moves(list_versions("demo", root=here)[0]) == []


def test_a_version_without_a_report_is_judged_by_nobody(here):
    register(here, "awq-w4")
    connect(here).client.delete_model_version_tag("demo", "1", "measured_by")
    with pytest.raises(RegistryError, match=r"demo/1: was never measured; run: dvc repro"):
        promote("demo@awq-w4", root=here, to="champion", judge=lambda _: Decision(True, "passes"))


def test_the_gate_of_a_pull_request_reads_reports_and_needs_no_registry(turbopress, here):
    for variant, facts in {"base": {"kl": 0.0, "rise": 0.0}, "good": {}, "bad": {"kl": 0.5, "rise": 0.5}}.items():
        found = measured(variant, **facts)
        (here / "evaluations" / variant).mkdir(parents=True)
        (here / "evaluations" / variant / "documents.json").write_text(json.dumps(found.documents))
        (here / "reports").mkdir(exist_ok=True)
        report = {"variant": variant, "kind": "quantized", "metrics": found.report["metrics"]}
        (here / "reports" / f"{variant}.json").write_text(json.dumps(report))
    assert turbopress("gate", "good")[0] == 0
    assert turbopress("gate", "bad")[0] == 3
    assert turbopress("gate", "bad", "--champion", "good")[0] == 3
    assert turbopress("gate", "nobody")[0] == 1


def test_an_unknown_limit_is_refused_by_name(turbopress, here):
    text = (here / "params.yaml").read_text().replace("most_kl_nats", "most_kl")
    (here / "params.yaml").write_text(text)
    status, _, err = turbopress("gate", "base")
    assert status == 1
    assert "params.yaml: gate.most_kl: unknown key" in err


# --- the proof in the engine

DEMANDED = {"kv": [16, 8], "tp": [1], "layouts": ["llama"]}
WAYS = [("llama", 16, 1), ("llama", 8, 1)]


@pytest.fixture
def demanding(root, monkeypatch):
    """A repository whose gate demands a proof and nothing else, which is the working folder."""
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS | {"gate": {"proof": DEMANDED}}, sort_keys=False))
    monkeypatch.chdir(root)
    return root


def register_with_its_proof(root, content, capsys):
    """As stage `register` does it: from the report, and from the proof beside it."""
    from pipelines.register import main

    report, documents = root / "reports" / "awq-w4.json", root / "documents.json"
    report.parent.mkdir(exist_ok=True)
    report.write_text(json.dumps(fake_report("awq-w4")))
    documents.write_text(json.dumps(measured("awq-w4").documents))
    path_beside(report).write_text(json.dumps(content))
    main("awq-w4", root / "models" / "awq-w4", report, [], documents=documents)
    path_beside(report).unlink()  # what promotes is another checkout, which has the registry only
    return capsys.readouterr().out


def test_a_candidate_is_promoted_on_the_proof_that_was_registered_with_it(turbopress, demanding, capsys):
    digest = register(demanding, "awq-w4").digest
    status, out, _ = turbopress("promote", "demo@awq-w4")
    assert status == 3
    assert "FAILS   proof: there is no proof in the engine; run on a GPU: turbopress conformance awq-w4 --kv" in out
    register_with_its_proof(demanding, proof(digest, WAYS[:1]), capsys)
    status, out, _ = turbopress("promote", "demo@awq-w4")
    assert status == 3
    assert "the proof is silent on layout llama, KV 8, tp 1" in out
    register_with_its_proof(demanding, proof(digest, WAYS[1:], failed=WAYS[1:]), capsys)
    assert "the engine disagrees on layout llama, KV 8, tp 1" in turbopress("promote", "demo@awq-w4")[1]
    register_with_its_proof(demanding, proof(digest, WAYS[1:]), capsys)  # beside the way that was proven before
    status, out, _ = turbopress("promote", "demo@awq-w4")
    assert status == 0, out
    assert "passes  proof: the engine agrees in all 2 ways" in out


def test_a_proof_outlives_a_new_report_of_the_same_bytes(turbopress, demanding, capsys):
    digest = register(demanding, "awq-w4").digest
    register_with_its_proof(demanding, proof(digest, WAYS), capsys)
    enter(demanding, "awq-w4", report=fake_report("awq-w4", perplexity=11.5))
    assert turbopress("promote", "demo@awq-w4")[0] == 0


def test_the_proof_of_other_bytes_is_not_registered_and_this_is_said(turbopress, demanding, capsys):
    register(demanding, "awq-w4")
    said = register_with_its_proof(demanding, proof("b" * 64, WAYS), capsys)
    assert "awq-w4.conformance.json: is the proof of other bytes, left out" in said
    assert "there is no proof in the engine" in turbopress("promote", "demo@awq-w4")[1]


def test_a_broken_proof_is_refused_by_name(demanding, capsys):
    register(demanding, "awq-w4")
    with pytest.raises(RegistryError, match=r"awq-w4\.conformance\.json: artifact: Field required; remove it, and run"):
        register_with_its_proof(demanding, {}, capsys)


def test_an_experiment_registers_no_proof_of_what_production_reads(turbopress, demanding, capsys, monkeypatch):
    digest = register(demanding, "awq-w4").digest
    with monkeypatch.context() as patch:
        patch.setenv("DVC_EXP_NAME", "bold")
        register_with_its_proof(demanding, proof(digest, WAYS), capsys)
    assert turbopress("promote", "demo@awq-w4")[0] == 3


def test_the_gate_of_a_pull_request_reads_the_proof_beside_the_report(turbopress, demanding):
    write_measured(demanding, base={}, good={})
    assert turbopress("gate", "good")[0] == 3
    report = demanding / "reports" / "good.json"
    report.write_text(json.dumps(json.loads(report.read_text()) | {"artifact": "a" * 64}))
    path_beside(report).write_text(json.dumps(proof("a" * 64, WAYS)))
    status, out, _ = turbopress("gate", "good")
    assert (status, out) == (0, "good: passes\n  passes  proof: the engine agrees in all 2 ways that are asked for\n")
    path_beside(report).write_text("{")
    status, _, err = turbopress("gate", "good")
    assert (status, len(err.splitlines())) == (1, 1)
    assert "good.conformance.json: is not JSON" in err


# --- history and lineage


@pytest.fixture
def family(here):
    base = register(here, "base", kind="base")
    shallow = register(here, "shallow", kind="pruned", parents={"from": base.digest})
    student = register(here, "student", kind="distilled", parents={"from": shallow.digest, "teacher": base.digest})
    register(here, "student-w4", parents={"from": student.digest})
    return here


def test_history_lists_versions_newest_first_and_every_promotion(turbopress, here):
    register(here, "awq-w4")
    turbopress("promote", "demo@awq-w4")
    register(here, "awq-w4", "better", kl=0.5)
    turbopress("promote", "demo@awq-w4", "--force", "--why", "tested by hand")
    status, out, _ = turbopress("history", "demo")
    assert status == 0
    rows = [line for line in out.splitlines() if "awq-w4" in line and "│" in line]
    assert [row.split("│")[1].strip() for row in rows] == ["2", "1"]
    assert "@champion" in rows[0]
    assert "@champion came to v1 (awq-w4)" in out
    assert "@champion came from v1 to v2 (awq-w4)" in out
    assert "forced: tested by hand" in out
    newest, oldest = json.loads(turbopress("history", "demo", "--json")[1])
    assert (newest["version"], newest["moves"][0]["why"]) == (2, "tested by hand")
    assert oldest["created"].startswith("20")


def test_lineage_leads_through_every_parent_to_the_base(here, turbopress, family):
    (family / "dvc.lock").write_text("stages: {}")
    status, out, _ = turbopress("lineage", "demo@student-w4")
    assert status == 0
    lines = [line.strip("│├└─ ") for line in out.splitlines()]
    parents = [line for line in lines if line.startswith(("student", "from:", "teacher:"))]
    assert [line.split(" v")[0] for line in parents] == [
        "student-w4", "from: student", "from: shallow", "from: base", "teacher: base",
    ]  # fmt: skip
    assert "data calibration cccccccccccc" in lines
    assert "source examples/demo/base at none" in lines


def test_lineage_for_programs_holds_digests_code_and_pipeline(here, turbopress, family):
    (family / "dvc.lock").write_text("stages: {}")
    register(family, "student-w4", "retrained", parents={"from": "f" * 64})
    said = json.loads(turbopress("lineage", "demo@student-w4", "--json")[1])
    assert said["data"] == {"calibration": "c" * 64}
    assert len(said["dvc_lock_md5"]) == 32
    (parent,) = said["parents"]
    assert (parent["digest"], parent["version"]) == ("f" * 64, None)


def test_mlflow_s_own_page_shows_what_a_version_comes_from(family):
    shown = {v.variant: v.tags["lineage"] for v in list_versions("demo", root=family)}
    assert shown == {
        "base": "base",
        "shallow": "shallow ← base",
        "student": "student ← (shallow ← base, base)",
        "student-w4": "student-w4 ← student ← (shallow ← base, base)",
    }


def test_a_parent_that_is_not_registered_is_named_by_its_digest_until_it_is(here):
    base = fake_artifact(here / "models" / "base", "base", kind="base")
    register(here, "awq-w4", parents={"from": base.digest})
    assert list_versions("demo", root=here)[0].tags["lineage"] == f"awq-w4 ← {base.digest[:12]} (not registered)"
    enter(here, "base", report=fake_report("base"))
    enter(here, "awq-w4", report=fake_report("awq-w4"))
    assert {v.tags["lineage"] for v in list_versions("demo", root=here)} == {"base", "awq-w4 ← base"}


# --- two variants beside each other


def write_measured(root, **variants):
    for variant, facts in variants.items():
        found = measured(variant, **facts)
        (root / "evaluations" / variant).mkdir(parents=True)
        (root / "evaluations" / variant / "documents.json").write_text(json.dumps(found.documents))
        (root / "reports").mkdir(exist_ok=True)
        report = {"variant": variant, "kind": "quantized", "metrics": found.report["metrics"]}
        (root / "reports" / f"{variant}.json").write_text(json.dumps(report))


def test_two_variants_are_compared_on_the_same_documents(turbopress, here):
    write_measured(here, one={"rise": 0.01, "kl": 0.01, "noise": 1.0}, two={"rise": 0.02, "kl": 0.0101, "noise": 1.0})
    status, out, _ = turbopress("compare", "one", "two")
    assert status == 0
    certain = {line.split("│")[1].strip(): line.split("│")[5].strip() for line in out.splitlines() if "│" in line}
    assert (certain["perplexity"], certain["top1_agreement"]) == ("yes", "no")
    found = json.loads(turbopress("compare", "one", "two", "--json")[1])
    assert found["perplexity"]["difference"]["value"] == pytest.approx(
        found["perplexity"]["second"]["value"] - found["perplexity"]["first"]["value"]
    )
    assert found["kl_nats"]["first"]["high"] > found["kl_nats"]["second"]["low"]  # by themselves they overlap
    assert found["kl_nats"]["certain"]  # but every document agrees which is worse


def test_variants_of_two_texts_are_not_compared(turbopress, here):
    write_measured(here, one={}, two={"evaluation": "f" * 64})
    status, out, err = turbopress("compare", "one", "two")
    assert (status, out) == (1, "")
    assert err == (
        "turbopress: one, two: were not measured on the same text; run `dvc repro` to evaluate both on one\n"
    )
    assert turbopress("compare", "one")[0] == 1
