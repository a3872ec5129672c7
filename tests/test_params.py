"""`params.yaml` is judged as a whole, before anything runs, and every fault has its place in the file."""

from pathlib import Path

import pytest
import yaml

from pipelines.params import ParamsError, load

ROOT = Path(__file__).parent.parent
GOOD = """
base: {source: model, revision: null}
data:
  calibration: {source: text/calibration.jsonl, windows: 8, length: 32, seed: 0}
  evaluation: {source: text/evaluation.jsonl, windows: 8, length: 32, seed: 0}
  distillation: {source: someone/data-set, windows: 8, length: 32, seed: 0}
prune:
  shallow: {from: base, data: calibration, method: depth, remove_layers: 1}
distill:
  student: {from: shallow, teacher: base, data: distillation, steps: 2, batch: 2, learning_rate: 0.001, warmup_steps: 0}
quantize:
  awq-w4: {from: base, data: calibration}
  student-awq-w4: {from: student, data: calibration, damping: 0.05}
registry: {model: demo}
"""


@pytest.fixture
def refused(tmp_path):
    """Puts a params.yaml with some changes and returns every line of its refusal."""

    def lines(change=lambda raw: None):
        raw = yaml.safe_load(GOOD)
        change(raw)
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
        with pytest.raises(ParamsError) as error:
            load(tmp_path)
        return str(error.value).splitlines()

    return lines


def read(tmp_path, text):
    (tmp_path / "params.yaml").write_text(text)
    return load(tmp_path)


def text(**changes):
    return {"source": "text.txt", "windows": 8, "length": 32} | changes


def pruned(**changes):
    return {"from": "base", "method": "depth", "remove_layers": 1} | changes


def widened(**changes):
    return {"from": "base", "method": "width"} | changes


def mixed(**changes):
    return {"from": "base", "method": "mix", "target": {"parameters": 0.75}} | changes


def distilled(**changes):
    said = {"from": "base", "teacher": "base", "data": "distillation", "steps": 2, "batch": 2}
    return said | {"learning_rate": 0.001, "warmup_steps": 0} | changes


# --- what is in order


def test_the_repository_s_own_file_is_in_order():
    params = load(ROOT)
    assert next(iter(params.variants)) == "base"
    assert {"awq-w4"} < params.variants.keys()


def test_variants_come_in_the_order_of_the_file_with_their_parents(tmp_path):
    params = read(tmp_path, GOOD)
    assert list(params.variants.items()) == [
        ("base", "base"), ("shallow", "prune"), ("student", "distill"), ("awq-w4", "quantize"),
        ("student-awq-w4", "quantize"),
    ]  # fmt: skip
    assert params.parents("student") == {"from": "shallow", "teacher": "base"}
    assert params.parents("awq-w4") == {"from": "base"}
    assert params.parents("base") == {}


@pytest.mark.parametrize("family", ["prune", "distill", "quantize"])
def test_an_empty_family_is_switched_off(tmp_path, family):
    raw = yaml.safe_load(GOOD)
    raw |= {"prune": {}, "distill": {}, "quantize": {"awq-w4": {"from": "base"}}} | {family: {}}
    assert family not in read(tmp_path, yaml.safe_dump(raw)).variants.values()


def test_numbers_are_read_as_dvc_reads_them(tmp_path):
    params = read(tmp_path, GOOD.replace("0.001", "1e-3").replace("0.05", "5E-2"))
    assert params.distill["student"].learning_rate == 0.001
    assert params.quantize["student-awq-w4"].damping == 0.05


def test_a_method_and_a_format_are_chosen_by_name(tmp_path):
    raw = yaml.safe_load(GOOD)
    raw["quantize"] = {
        "plain": {"from": "base"},
        "fine": {
            "from": "base",
            "group_size": 32,
            "format": "compressed-tensors",
            "keep": {"by": "error", "most": 0.1},
        },
        "sized": {"from": "base", "keep": {"by": "size", "most_megabytes": 12.5}},
        "fp8": {"from": "base", "method": "fp8", "layout": "internlm2"},
        "w8a8": {"from": "base", "method": "int8", "smooth": None, "tensor_parallel": 2},
    }
    params = read(tmp_path, yaml.safe_dump(raw))
    said = {key: (variant.method, getattr(variant, "format", None)) for key, variant in params.quantize.items()}
    assert said == {
        "plain": ("awq", "awq"), "fine": ("awq", "compressed-tensors"), "sized": ("awq", "awq"), "fp8": ("fp8", None),
        "w8a8": ("int8", None),
    }  # fmt: skip
    assert params.quantize["fine"].keep.most == 0.1
    assert params.quantize["sized"].keep.most_megabytes == 12.5
    assert params.quantize["w8a8"].smooth is None
    assert all(params.parents(key) == {"from": "base"} for key in raw["quantize"])


def test_merged_keys_are_no_repeated_keys(tmp_path):
    merged = GOOD.replace("calibration: {source", "calibration: &text {source").replace(
        "evaluation: {source: text/evaluation.jsonl, windows: 8, length: 32, seed: 0}",
        "evaluation: {<<: *text, seed: 4}",
    )
    data = read(tmp_path, merged).data
    assert (data.evaluation.source, data.evaluation.seed) == (data.calibration.source, 4)


def test_a_four_bit_student_says_what_moves_and_may_be_trained_again(tmp_path):
    raw = yaml.safe_load(GOOD)
    raw["distill"] |= {
        "repaired": distilled(train="scales", **{"from": "student-awq-w4"}),
        "again": distilled(train={"method": "codes", "rate": 2}, **{"from": "repaired"}),
    }
    params = read(tmp_path, yaml.safe_dump(raw))
    assert params.parents("repaired") == {"from": "student-awq-w4", "teacher": "base"}
    assert params.distill["student"].train is None
    assert [params.distill[key].train.method for key in ("repaired", "again")] == ["scales", "codes"]


def test_a_student_of_eight_bits_is_refused(refused):
    def change(raw):
        raw["quantize"]["w8"] = {"from": "base", "method": "fp8"}
        raw["distill"]["x"] = distilled(train="scales", **{"from": "w8"})

    assert refused(change) == [
        "params.yaml: distill.x.from: w8 is in 8 bits, and only 4 bits are repaired; use another method"
    ]


# --- what is not


def test_every_problem_is_told_at_once(refused):
    def change(raw):
        raw["base"]["sauce"] = "x"
        raw["data"]["calibration"]["windows"] = "many"
        del raw["registry"]
        raw["prune"]["shallow"]["from"] = "bass"
        raw["quantize"]["awq-w4"]["group_size"] = 64
        raw["quantize"]["v2"] = {"from": "base"}

    found = refused(change)
    assert all(line.startswith("params.yaml: ") for line in found)
    places = {line.split(": ")[1] for line in found}
    assert places == {
        "base.sauce", "data.calibration.windows", "registry", "prune.shallow.from", "quantize.awq-w4.group_size",
        "quantize.v2",
    }  # fmt: skip
    assert len(found) == 6


@pytest.mark.parametrize(
    ("section", "change", "expected"),
    [
        ("base", {"sauce": 1}, "base.sauce: unknown key; remove it or correct its spelling"),
        ("base", {"source": 7}, "base.source: input should be a valid string, found 7"),
        ("data", {"calibration": text(source=7)}, "data.calibration.source: input should be a valid string, found 7"),
        ("data", {"calibration": text(source=[])}, "data.calibration.source: list should have at least 1 item"),
        (
            "data",
            {"calibration": text(source=[{"source": "a.txt"}, {"source": "b.txt", "weight": 0}])},
            "data.calibration.source.1.weight: input should be greater than 0, found 0",
        ),
        (
            "data",
            {"calibration": text(source=[{"source": "a.txt", "weigth": 1}])},
            "data.calibration.source.0.weigth: unknown key; remove it or correct its spelling",
        ),
        (
            "data",
            {"calibration": text(source=[{"source": "a.txt"}, {"source": "a.txt"}])},
            "data.calibration.source: a.txt is named twice, and both parts would be the same windows; add",
        ),
        (
            "data",
            {"calibration": text(source=[{"source": "a.txt"}], counts="answers")},
            "data.calibration: of a mix, counts must stand in each part of source, found",
        ),
        (
            "data",
            {"calibration": text(counts="questions")},
            "data.calibration.counts: input should be 'all' or 'answers', found 'questions'",
        ),
        ("prune", {"x": pruned(remove_layers=0)}, "prune.x.remove_layers: input should be greater than or equal to 1"),
        ("prune", {"x": pruned(remove_layers=[])}, "prune.x.remove_layers: list should have at least 1 item"),
        ("prune", {"x": pruned(method="wide")}, "prune.x: must hold settings of method depth, width or mix, found"),
        ("prune", {"x": pruned(method="width")}, "prune.x: none of intermediate_size, kv_heads and hidden_size; say"),
        ("prune", {"x": pruned(target={"parameters": 0.75})}, "prune.x.target: unknown key"),
        ("prune", {"x": mixed(intermediate_size=128)}, "prune.x: a target chooses the sizes; remove intermediate_size"),
        ("prune", {"x": mixed(target={"parameters": 1.5})}, "prune.x.target.parameters: input should be less than 1"),
        ("prune", {"x": mixed(target={"speed": 0.5})}, "prune.x.target: must be parameters or latency with a share"),
        ("prune", {"x": widened(kv_heads=1.5)}, "prune.x.kv_heads: input should be less than 1, found 1.5"),
        ("prune", {"x": widened(kv_heads=0)}, "prune.x.kv_heads: input should be greater than or equal to 1, found 0"),
        ("prune", {"x": widened(kv_heads="two")}, "prune.x.kv_heads: input should be a valid integer, found 'two'"),
        ("prune", {"x": None}, "prune.x: must hold settings of method depth, width or mix"),
        ("quantize", {"x": {}}, "quantize.x.from: missing; see params.yaml in the README"),
        ("quantize", {"x": {"from": "base", "group_size": 64}}, "quantize.x.group_size: only 128 is taken by Turbo"),
        (
            "quantize",
            {"x": {"from": "base", "group_size": 64, "format": "compressed-tensors"}},
            "quantize.x.group_size: only 32 and 128 are taken by TurboMind, found 64",
        ),
        ("quantize", {"x": {"from": "base", "format": "gguf"}}, "quantize.x.format: input should be 'awq' or 'compre"),
        ("quantize", {"x": {"from": "base", "method": "int3"}}, "quantize.x: must hold settings of method awq, fp8"),
        ("quantize", {"x": {"from": "base", "method": "fp8", "clip": None}}, "quantize.x.clip: unknown key; remove it"),
        ("quantize", {"x": {"from": "base", "keep": {"by": "hand"}}}, "quantize.x.keep: input tag 'hand' found using"),
        ("quantize", {"x": None}, "quantize.x: must hold settings of method awq, fp8 or int8, found None"),
        (
            "quantize",
            {"x": {"from": "base", "rounding": {"method": "gptq", "refine": 11}}},
            "quantize.x.rounding.refine: input should be less than or equal to 10, found 11",
        ),
        ("distill", {"x": distilled(precision="fp8")}, "distill.x.precision: input should be 'float32' or 'bf16'"),
        ("quantize", {"x": {"from": "awq-w4"}}, "quantize.x.from: awq-w4 is quantized already; start"),
        ("distill", {"x": distilled(teacher="awq-w4")}, "distill.x.teacher: awq-w4 is quantized already"),
        ("prune", {"x": pruned(**{"from": "awq-w4"})}, "prune.x.from: awq-w4 is quantized already; start"),
        ("distill", {"x": distilled(**{"from": "awq-w4"})}, "distill.x.train: missing, and awq-w4 is in 4 bits; write"),
        ("distill", {"x": distilled(train="scales")}, "distill.x.train: scales, but base is in 16 bits; quantize it"),
        (
            "distill",
            {"x": distilled(train="codes", **{"from": "awq-w4"}), "y": distilled(teacher="x")},
            "distill.y.teacher: x is quantized already; start from a 16-bit model",
        ),
        ("distill", {"x": distilled(train="zeros")}, "distill.x.train: input tag 'zeros' found using 'method'"),
        (
            "distill",
            {"x": distilled(train={"method": "scales", "rate": 3})},
            "distill.x.train.rate: unknown key; remove it or correct its spelling",
        ),
        (
            "distill",
            {"x": distilled(train={"method": "codes", "rate": 0})},
            "distill.x.train.rate: input should be greater than 0, found 0",
        ),
        (
            "quantize",
            {"x": {"from": "nobody"}},
            "quantize.x.from: no model is named nobody; there are base, shallow, student, awq-w4, student-awq-w4, x",
        ),
        ("quantize", {"shallow": {"from": "base"}}, "quantize.shallow: prune has a variant of this name too"),
        ("prune", {"a": pruned(**{"from": "a"})}, "prune.a.from: goes in a circle: a from a"),
        ("distill", {"a": distilled(teacher="a")}, "distill.a.teacher: goes in a circle: a from a"),
    ],
)  # fmt: skip
def test_a_fault_is_told_with_place_value_and_remedy(refused, section, change, expected):
    (line,) = refused(lambda raw: raw[section].update(change))
    assert line.startswith(f"params.yaml: {expected}")


@pytest.mark.parametrize(
    ("links", "expected"),
    [
        ({"a": "b", "b": "a"}, "prune.a.from: goes in a circle: a from b from a"),
        ({"a": "b", "b": "c", "c": "a"}, "prune.a.from: goes in a circle: a from b from c from a"),
        ({"in": "a", "a": "b", "b": "a"}, "prune.a.from: goes in a circle: a from b from a"),
    ],
)
def test_a_circle_is_told_once_with_its_way(refused, links, expected):
    found = refused(lambda raw: raw["prune"].update({key: pruned(**{"from": to}) for key, to in links.items()}))
    assert found == [f"params.yaml: {expected}"]


def test_a_circle_through_a_teacher_is_found(refused):
    two = {"a": distilled(teacher="b"), "b": distilled(teacher="a")}
    found = refused(lambda raw: raw["distill"].update(two))
    assert found == ["params.yaml: distill.a.teacher: goes in a circle: a from b from a"]


OWN = {"from": "base", "prompts": "calibration", "windows": 4, "length": 32}


@pytest.mark.parametrize("family", ["prune", "quantize"])
def test_a_variant_is_made_on_any_text_but_the_one_it_is_judged_by(tmp_path, refused, family):
    raw = yaml.safe_load(GOOD)
    raw["generate"] = {"own": OWN}
    for variant in raw[family].values():
        variant["data"] = "own"
    assert [*read(tmp_path, yaml.safe_dump(raw)).texts.values()].count("own") == len(raw[family])
    key = next(iter(raw[family]))
    (line,) = refused(lambda raw: raw[family][key].update(data="evaluation"))
    expected = f"{family}.{key}.data: no text is named evaluation; there are distillation, calibration"
    assert line == f"params.yaml: {expected}"


def test_a_circle_through_a_text_is_found(refused):
    def change(raw):
        raw["generate"] = {"own": OWN | {"from": "shallow"}}
        raw["prune"]["shallow"]["data"] = "own"

    circle = "prune.shallow.data: goes in a circle: shallow from generate.own from shallow"
    assert refused(change) == [f"params.yaml: {circle}"]


@pytest.mark.parametrize(
    ("changed", "place"),
    [({"kv": [3]}, "gate.proof.kv.0"), ({"tp": [3]}, "gate.proof.tp.0"), ({"layouts": []}, "gate.proof.layouts")],
)
def test_a_proof_that_no_engine_could_give_is_refused(refused, changed, place):
    demanded = {"kv": [16], "tp": [1], "layouts": ["llama"]} | changed
    (line,) = refused(lambda raw: raw.update({"gate": {"proof": demanded}}))
    assert line.startswith(f"params.yaml: {place}: ")


@pytest.mark.parametrize("key", ["base", "latest", "Latest", "v1", "v27", "summary", "a.b", "a b", "-x", "", "grün"])
def test_a_name_that_mlflow_or_a_file_of_ours_has_is_refused(refused, key):
    (line,) = refused(lambda raw: raw["quantize"].update({key: {"from": "base"}}))
    assert line.startswith(f"params.yaml: quantize.{key}: no name for a variant; use letters, digits, _ and -")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD + "prune: {}\n", "params.yaml:15: key 'prune' occurs twice"),
        (GOOD.replace("windows: 8,", "windows: 8, windows: 9,", 1), "params.yaml:4: key 'windows' occurs twice"),
        (GOOD + "quantize\n", "params.yaml:16: could not find expected ':'"),
        ("\tbase: x\n", "params.yaml:1: found character '\\t' that cannot start any token"),
        ("", "params.yaml: the file: input should be a valid dictionary"),
        ("base: \x00", "params.yaml: unacceptable character"),
    ],
)
def test_text_that_is_no_such_file_is_refused_with_its_line(tmp_path, text, expected):
    with pytest.raises(ParamsError) as error:
        read(tmp_path, text)
    assert str(error.value).startswith(expected)
    assert "\n" not in str(error.value)
