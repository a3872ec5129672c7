"""An alias moves on a verdict or on a person's word, and both are kept."""

import json

import pytest
import yaml
from fake_artifacts import enter, fake_report
from fake_measured import measured, proof
from gated import GATE, register, write_measured
from tiny_repository import PARAMS

from registry.conformance import path_beside
from registry.errors import RegistryError
from registry.promote import Decision, moves, promote
from registry.resolve import list_versions
from registry.store import connect

pytest_plugins = ["fake_stores"]


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
    write_measured(here, base={"kl": 0.0, "rise": 0.0}, good={}, bad={"kl": 0.5, "rise": 0.5})
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
