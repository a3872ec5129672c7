"""What `explain` says of a variant is what a direct computation on whole models says, whoever quantized it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CONFIG, windows, write_internlm2

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.load import load_model
from compress.checkpoint.runner import LayerRunner
from compress.checkpoint.write import ModelWriter
from compress.corpus import Windows
from compress.errors import CompressError
from compress.evaluate.compare import compare_models
from compress.explain.clipping import Scheme, clipped, grid_range, scheme_of
from compress.explain.fold import folds
from compress.explain.streams import Chosen
from compress.explain.walk import explain
from compress.quantize.formats.awq import pack_linear, unpack_linear
from compress.quantize.grid import fit_grid
from compress.quantize.recipe import AwqRecipe, Nearest
from compress.quantize.sites import LINEARS, SITES
from compress.quantize.walk import quantize_model

PLAIN = AwqRecipe(scale=None, clip=None, feedback=None, rounding=Nearest(method="nearest"))
TEXT = Windows(windows(6, seed=3).numpy().astype(np.int32), ["a", "a", "b", "b", "b", "b"])


def quantized(parent, out, recipe, layout="llama"):
    out.mkdir()
    checkpoint = Checkpoint(parent)
    writer = ModelWriter(out, checkpoint.config.replace(torch_dtype="float16"), layout)
    quantize_model(checkpoint, windows(8), recipe, writer)
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A parent, its variant by the whole recipe, and by plain rounding."""
    root = tmp_path_factory.mktemp("made")
    write_internlm2(root / "parent")
    for name, recipe in (("awq", AwqRecipe()), ("plain", PLAIN)):
        quantized(root / "parent", root / name, recipe)
    return root


@pytest.fixture(scope="module")
def measured(made):
    parent = Checkpoint(made / "parent")
    return {name: explain(parent, Checkpoint(made / name), TEXT, "all") for name in ("awq", "plain")}


def tokens():
    return torch.from_numpy(TEXT.tokens).long()


# --- folds


def layers_of(made, name, number=1):
    runners = [LayerRunner(Checkpoint(made / folder), "cpu", 8) for folder in ("parent", name)]
    return [runner.load(number) for runner in runners], runners[0].checkpoint.config


def test_undoing_the_folds_of_the_whole_recipe_leaves_only_its_rounding_errors(made):
    (parent, variant), config = layers_of(made, "awq")
    for name, fold in folds(parent, variant, config).items():
        W, V = (layer.get_parameter(f"{name}.weight").data for layer in (parent, variant))
        error, untouched = ((x - W).norm() / W.norm() for x in (fold.undone(V), V))
        assert error < 0.2, name
        assert fold.done(W).shape == V.shape
        assert torch.allclose(fold.undone(fold.done(W)), W, rtol=1e-4, atol=1e-6)
        if name in ("self_attn.q_proj", "mlp.gate_proj"):  # their inputs have channels of eight times the rest
            assert untouched > 1.3 * error, name


def test_where_nothing_was_folded_the_folds_are_one(made):
    (parent, variant), config = layers_of(made, "plain")
    for fold in folds(parent, variant, config).values():
        assert (fold.s - 1).abs().max() < 0.03
        assert (fold.r - 1).abs().max() < 0.03


# --- linears and inputs


def inputs_of(folder, layer):
    """The inputs of a layer's linears in the whole model, by hooks of our own."""
    seen, model = {}, load_model(folder)
    for name in LINEARS:
        module = model.get_submodule(f"model.layers.{layer}.{name}")
        module.register_forward_hook(lambda _, args, __, name=name: seen.update({name: args[0].flatten(0, 1)}))
    with torch.no_grad():
        model(tokens())
    return seen, model


def test_errors_of_plain_rounding_are_those_of_a_direct_computation(made, measured):
    x, parent = inputs_of(made / "parent", 1)
    variant = load_model(made / "plain")
    for linear in (found for found in measured["plain"].linears if found.layer == 1):
        W, V = (m.get_parameter(f"model.layers.1.{linear.name}.weight") for m in (parent, variant))
        y, wrong = x[linear.name] @ W.T, x[linear.name] @ (V - W).T
        assert linear.error == pytest.approx((wrong.square().sum() / y.square().sum()).item(), rel=0.02)
        assert linear.error == pytest.approx(linear.plain_error, rel=0.02)


def test_the_recipe_lowers_the_errors_below_plain_rounding_s(measured):
    ratios = [x.error / x.plain_error for x in measured["awq"].linears]
    assert np.median(ratios) < 0.8


def test_inputs_are_described_as_a_direct_computation_does(made, measured):
    x, _ = inputs_of(made / "parent", 1)
    for site in SITES:
        found = next(i for i in measured["plain"].inputs if (i.layer, i.name) == (1, site.key))
        sizes = x[site.key].abs().mean(0)
        assert found.peak == pytest.approx((sizes.max() / sizes.median()).item(), rel=1e-4)
        assert found.channels == tuple(sizes.topk(3).indices.tolist())
        power = x[site.key].double().square()
        assert found.kurtosis == pytest.approx((power.square().mean() / power.mean() ** 2).item(), rel=1e-4)
    norms = [i for i in measured["awq"].inputs if i.name in ("self_attn.q_proj", "mlp.gate_proj")]
    assert all(i.peak > 4 and i.channels[0] % 37 == 0 for i in norms)  # as tiny.py makes them
    assert all(i.scaled > 1.3 for i in norms)


# --- divergences


def swapped(made, name, layer):
    """The parent with one layer of the variant, whole in memory."""
    model, other = load_model(made / "parent"), load_model(made / name)
    model.model.layers[layer].load_state_dict(other.model.layers[layer].state_dict())
    return model


@pytest.mark.parametrize("name", ["awq", "plain"])
def test_a_layer_alone_loses_what_the_parent_with_that_layer_swapped_loses(made, measured, name):
    parent = load_model(made / "parent")
    for layer in measured[name].layers:
        expected = compare_models(swapped(made, name, layer.layer), parent, tokens()).means()["kl_nats"]
        assert layer.kl_nats == pytest.approx(expected, rel=1e-2)


def test_the_whole_loss_is_the_evaluation_s(made, measured):
    scores = compare_models(load_model(made / "awq"), load_model(made / "parent"), tokens())
    assert measured["awq"].kl_nats == pytest.approx(scores.means()["kl_nats"], rel=1e-3)
    first = scores.means(torch.tensor([domain == "a" for domain in TEXT.domains]))
    assert measured["awq"].kl_by_domain["a"] == pytest.approx(first["kl_nats"], rel=1e-3)
    assert measured["awq"].outer_kl_nats < 1e-4 * measured["awq"].kl_nats


def test_only_positions_that_count_count(made):
    mask = np.zeros(TEXT.tokens.shape, bool)
    mask[:, 9:20] = True
    masked = replace(TEXT, mask=mask)
    found = explain(Checkpoint(made / "parent"), Checkpoint(made / "plain"), masked, "worst:1")
    counted = torch.from_numpy(masked.predicts)
    expected = compare_models(load_model(made / "plain"), load_model(made / "parent"), tokens(), counted=counted)
    assert found.kl_nats == pytest.approx(expected.means()["kl_nats"], rel=1e-3)


def test_either_layout_is_explained_alike(made, measured, tmp_path):
    fused = quantized(made / "parent", tmp_path / "fused", PLAIN, "internlm2")
    assert explain(Checkpoint(made / "parent"), Checkpoint(fused), TEXT, "all") == measured["plain"]


def test_layers_that_stayed_in_16_bits_lost_nothing_and_have_no_grid(made, tmp_path):
    """As engines write it: some linears packed, others float."""
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    packed, floats = Checkpoint(made / "plain"), Checkpoint(made / "parent")
    writer = ModelWriter(mixed, packed.config, "llama")
    for n in range(3):
        source = floats if n == 1 else packed
        writer.layer(n, {name: to_half(t) for name, t in source.tensors(source.layer_names(n)).items()})
    writer.outer(packed.tensors(packed.outer_names()))
    writer.close({**packed.quantization, "modules_to_not_convert": ["model.layers.1"]})
    found = explain(floats, Checkpoint(mixed), TEXT, "all")
    kept = [x for x in found.linears if x.layer == 1]
    assert all(x.error < 1e-5 and x.plain_error is None and x.outside is None for x in kept)
    assert found.layers[1].kl_nats < 1e-3 * found.layers[0].kl_nats
    assert all(x.plain_error for x in found.linears if x.layer != 1)


def to_half(tensor):
    return tensor.half() if tensor.is_floating_point() else tensor


@pytest.mark.parametrize(("said", "count"), [("worst:1", 1), ("worst:2", 2), ("worst:0", 0), ("worst:9", 3)])
def test_the_worst_layers_are_those_of_greatest_error_and_measured_as_all_are(made, measured, said, count):
    found = explain(Checkpoint(made / "parent"), Checkpoint(made / "plain"), TEXT, said)
    ranked = sorted(measured["plain"].layers, key=lambda layer: -layer.error)[:count]
    assert {layer for layer in found.layers if layer.kl_nats is not None} == set(ranked)


def test_named_layers_are_measured(made, measured):
    found = explain(Checkpoint(made / "parent"), Checkpoint(made / "plain"), TEXT, "0,2")
    assert [layer.kl_nats for layer in found.layers] == [
        measured["plain"].layers[0].kl_nats, None, measured["plain"].layers[2].kl_nats
    ]  # fmt: skip


@pytest.mark.parametrize("said", ["some", "worst:", "3", "0,3", "-1", "", "worst:x"])
def test_layers_that_are_none_are_refused(said):
    with pytest.raises(CompressError, match=r"^--layers: .*; write all, worst:N, or numbers from 0 to 2 with commas"):
        Chosen.of(said, 3)


def test_the_cost_of_a_choice_is_the_layers_that_really_run_more(made, monkeypatch):
    runs = []
    run = LayerRunner.run
    monkeypatch.setattr(LayerRunner, "run", lambda self, layer, h: runs.append(layer) or run(self, layer, h))
    for said in ("worst:0", "all", "worst:1", "0,2"):
        runs.clear()
        explain(Checkpoint(made / "parent"), Checkpoint(made / "plain"), TEXT, said)
        assert len(runs) == 9 + Chosen.of(said, 3).runs(3)


def test_one_layer_of_each_model_is_in_memory_at_a_time(made, monkeypatch):
    held, most = {}, []
    load, release = LayerRunner.load, LayerRunner.release

    def loading(self, n):
        held.setdefault(self, set()).add(n)
        most.append(max(map(len, held.values())))
        return load(self, n)

    monkeypatch.setattr(LayerRunner, "load", loading)
    monkeypatch.setattr(LayerRunner, "release", lambda self, n: held[self].remove(n) or release(self, n))
    explain(Checkpoint(made / "parent"), Checkpoint(made / "awq"), TEXT, "all")
    assert len(most) == 6
    assert set(most) == {1}
    assert list(held.values()) == [set(), set()]


def test_two_models_of_other_sizes_are_refused(made, tmp_path):
    write_internlm2(tmp_path / "other", CONFIG | {"num_hidden_layers": 2})
    with pytest.raises(CompressError, match=r"plain: num_hidden_layers is 3, and 2 in .*other; name the model that"):
        explain(Checkpoint(tmp_path / "other"), Checkpoint(made / "plain"), TEXT)


# --- numbers that are none


def damaged(made, tmp_path, name, change):
    """A copy of the plain variant with one stored tensor changed."""
    folder = tmp_path / "damaged"
    folder.mkdir()
    for path in (made / "plain").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    for shard in folder.glob("*.safetensors"):
        stored = load_file(shard)
        if name in stored:
            stored[name] = change(stored[name])
            save_file(stored, shard, {"format": "pt"})
    return Checkpoint(folder)


def test_the_first_linear_beyond_float16_is_named(made, tmp_path):
    scales = "model.layers.1.mlp.up_proj.scales"
    loud = damaged(made, tmp_path, scales, lambda s: (s * 0 + 60000).half())
    found = explain(Checkpoint(made / "parent"), loud, TEXT, "all")
    assert found.overflow.place == "layers.1.mlp.up_proj"
    assert 65504 < found.overflow.largest < float("inf")
    assert found.parent_overflow is None


def test_a_stored_nan_is_refused_with_its_tensor(made, tmp_path):
    scales = "model.layers.2.self_attn.o_proj.scales"
    broken = damaged(made, tmp_path, scales, lambda s: s * float("nan"))
    with pytest.raises(CompressError, match=rf"{scales} holds \d+ values that are NaN or infinite"):
        explain(Checkpoint(made / "parent"), broken, TEXT)


# --- clipping and schemes


AWQ = Scheme(4, 128, "awq")


def groups(**weights):
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}


def test_what_lies_outside_of_a_grid_is_counted():
    W = torch.linspace(-1, 0.9, 128)[None].repeat(8, 1)
    codes = torch.zeros(8, 128, dtype=torch.uint8)
    full, half = (fit_grid(W, 4, 128, torch.full((8, 1), shrink)) for shrink in (1.0, 0.5))
    whole, shrunk = (clipped(W, grid_range(pack_linear(codes, grid), W, AWQ)) for grid in (full, half))
    assert whole == (0.0, pytest.approx(0.0, abs=1e-3))
    s, z = half.scales[0, 0], half.zeros[0, 0]
    outside = ((15.5 - z) * s < W) | ((-0.5 - z) * s > W)
    assert shrunk == (pytest.approx(outside.float().mean().item()), pytest.approx(0.5, abs=0.01))
    assert 0.4 < shrunk[0] < 0.5


def test_formats_without_zeros_span_what_they_store():
    V = torch.tensor([[-1.0, 0.5, 0.25, 2.0]])
    found = grid_range({}, V, Scheme(4, 2, "gptq"))
    assert found.low.tolist() == [[-1.0, 0.0]]
    assert found.high.tolist() == [[0.5, 2.0]]
    assert clipped(torch.tensor([[-1.0, 0.5, 0.25, 4.0]]), found)[0] == 0.25


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        (None, None),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, AWQ),
        (groups(num_bits=4, group_size=32, type="int"), Scheme(4, 32, "compressed-tensors")),
        (groups(num_bits=8, group_size=None, type="float"), None),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, None),
        ({"bits": 4, "group_size": -1}, None),
    ],
)
def test_a_scheme_is_read_in_either_spelling(quantization, expected):
    assert scheme_of(quantization) == expected


def test_a_variant_s_clipping_is_measured_on_its_stored_grids(made, measured):
    parent, variant = (Checkpoint(made / name) for name in ("parent", "awq"))
    (old, new), config = layers_of(made, "awq")
    for linear in (found for found in measured["awq"].linears if found.layer == 1):
        at = f"model.layers.1.{linear.name}"
        stored = {part: variant.tensor(f"{at}.{part}") for part in ("qweight", "qzeros", "scales")}
        grid = unpack_linear(stored)[1]
        W = folds(old, new, config)[linear.name].done(parent.tensor(f"{at}.weight")).unflatten(1, (-1, 128))
        s, z = grid.scales[..., None], grid.zeros[..., None]
        outside = ((W / s + z) > 15.5) | ((W / s + z) < -0.5)
        assert linear.outside == pytest.approx(outside.float().mean().item(), abs=1e-4)
        assert linear.given_up > 0.02


def test_ranges_of_a_plain_variant_clip_next_to_nothing(measured):
    assert all(x.outside < 0.005 and x.given_up < 0.03 for x in measured["plain"].linears)
