"""What was made of what, and which version an alias has been on, can be asked."""

import json

import pytest
from fake_artifacts import enter, fake_artifact, fake_report
from gated import register

from registry.resolve import list_versions

pytest_plugins = ["fake_stores"]


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
