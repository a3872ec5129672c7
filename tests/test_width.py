"""What is idle or double in a model can go without a trace; what is not is made good; the engine takes what is left."""

import weakref
from dataclasses import dataclass, field

import pytest
import torch
from safetensors.torch import save_file
from tiny import CONFIG, internlm2_tensors, windows, write_config

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.load import load_model
from compress.checkpoint.runner import LayerRunner
from compress.checkpoint.write import ModelWriter
from compress.evaluate.compare import compare_models
from compress.prune.prune import Work, decide, most_waiting, write
from compress.prune.recipe import Compensation, DepthRecipe, WidthRecipe
from compress.prune.text import Text
from compress.quantize.resources import Resources

WIDE = CONFIG | {"num_hidden_layers": 2, "intermediate_size": 384, "vocab_size": 128}
SMALL_DAMPING = 1e-5
LAYERS = range(2)


def ids(count=16, length=32):
    return windows(count, length, 128)


def source(folder, change=None, config=WIDE):
    """A model folder, its tensors changed before they are written."""
    tensors = internlm2_tensors(config)
    if change is not None:
        change(tensors)
    write_config(folder, config)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def pruned(folder, out, recipe, text=None, **resources):
    checkpoint = Checkpoint(folder)
    work = Work(checkpoint, text or Text(ids()), Resources(**resources), "prune.narrow")
    out.mkdir()
    decision = decide(work, recipe, out.parent)
    write(work, recipe, decision, ModelWriter(out, decision.config, "llama"))
    return out


def width(**sizes):
    return WidthRecipe(method="width", **sizes)


def logits(folder):
    with torch.no_grad():
        return load_model(folder)(ids(2)).logits


def kl(variant, base):
    return compare_models(load_model(variant), load_model(base), ids(8)).means()["kl_nats"]


# --- what is idle goes and nothing changes


def idle_channels(tensors):
    """A third of the feed-forward channels are never active."""
    for n in LAYERS:
        tensors[f"model.layers.{n}.feed_forward.w3.weight"][n::3] = 0


def idle_group(tensors):
    """One kv head of each layer has no values, so its query heads give nothing."""
    fused = (WIDE["num_attention_heads"] + 2 * WIDE["num_key_value_heads"]) // WIDE["num_key_value_heads"]
    for n in LAYERS:
        rows = tensors[f"model.layers.{n}.attention.wqkv.weight"].view(WIDE["num_key_value_heads"], fused, 64, 256)
        rows[n % 2, -1] = 0


def idle_stream(tensors):
    """Half of the residual stream's channels hold nothing anywhere."""
    gone = torch.arange(256) % 2 == 1
    tensors["model.tok_embeddings.weight"][:, gone] = 0
    for n in LAYERS:
        for name in ("attention.wo", "feed_forward.w2"):
            tensors[f"model.layers.{n}.{name}.weight"][gone] = 0


IDLE = {
    "intermediate_size": (idle_channels, 256),
    "kv_heads": (idle_group, 1),
    "hidden_size": (idle_stream, 128),
}


@pytest.mark.parametrize("importance", ["gram", "activation"])
@pytest.mark.parametrize("name", IDLE)
def test_what_is_idle_goes_and_no_logit_changes(tmp_path, name, importance):
    change, size = IDLE[name]
    folder = source(tmp_path / "m", change)
    out = pruned(folder, tmp_path / "p", width(**{name: size}, importance=importance, damping=SMALL_DAMPING))
    assert torch.allclose(logits(out), logits(folder), atol=2e-3)
    assert not torch.allclose(logits(out), torch.zeros(1), atol=0.1)


def test_biases_go_with_their_outputs(tmp_path):
    config = WIDE | {"bias": True}

    def idle(tensors):
        for n in LAYERS:
            fused = tensors[f"model.layers.{n}.attention.wqkv.weight"].view(2, 4, 64, 256)
            fused[1, -1] = 0
            tensors[f"model.layers.{n}.attention.wqkv.bias"].view(2, 4, 64)[1, -1] = 0

    folder = source(tmp_path / "m", idle, config)
    out = pruned(folder, tmp_path / "p", width(kv_heads=1, damping=SMALL_DAMPING))
    assert Checkpoint(out).tensor("model.layers.0.self_attn.k_proj.bias").shape == (64,)
    assert torch.allclose(logits(out), logits(folder), atol=2e-3)


# --- what is double is made good


def test_of_two_equal_channels_one_goes_and_the_other_gives_for_both(tmp_path):
    def double(tensors):
        for n in LAYERS:
            for name in ("w1", "w3"):
                weight = tensors[f"model.layers.{n}.feed_forward.{name}.weight"]
                weight[256:] = weight[:128]

    folder = source(tmp_path / "m", double)
    recipe = {"intermediate_size": 256, "damping": SMALL_DAMPING}
    made_good, cut = (
        pruned(folder, tmp_path / kind, width(**recipe, importance=kind), Text(windows(128, 32, 128, seed=5)))
        for kind in ("gram", "activation")
    )
    assert kl(cut, folder) > 0.05
    assert kl(made_good, folder) < 0.1 * kl(cut, folder)


def test_few_tokens_for_many_inputs_are_not_trusted(tmp_path):
    """Fitted to 128 tokens, 256 inputs would follow their noise: what is made good is no worse than the plain cut."""
    folder, text = source(tmp_path / "m"), Text(ids(4))
    ours, plain = (
        kl(pruned(folder, tmp_path / kind, width(intermediate_size=256, importance=kind), text), folder)
        for kind in ("gram", "activation")
    )
    assert ours < 1.1 * plain


@pytest.mark.parametrize("name", IDLE)
def test_least_squares_lose_less_than_the_plain_cut(tmp_path, name):
    """Also where nothing is idle or double, on windows that were not fitted to."""
    folder, size = source(tmp_path / "m"), IDLE[name][1]
    text = Text(windows(64, 32, 128, seed=5))
    ours, plain = (
        kl(pruned(folder, tmp_path / kind, width(**{name: size}, importance=kind), text), folder)
        for kind in ("gram", "activation")
    )
    assert 0.01 < ours < plain


def test_the_layers_behind_a_gap_make_it_good(tmp_path):
    folder = source(tmp_path / "m", config=WIDE | {"num_hidden_layers": 3})
    text = Text(windows(64, 32, 128, seed=5))
    depth = {"method": "depth", "remove_layers": [1]}
    healed = pruned(folder, tmp_path / "h", DepthRecipe(**depth, compensation=Compensation()), text)
    plain = pruned(folder, tmp_path / "p", DepthRecipe(**depth), text)
    assert 0.01 < kl(healed, folder) < 0.95 * kl(plain, folder)
    before = Checkpoint(folder).tensors(Checkpoint(folder).layer_names(0))
    after = Checkpoint(healed).tensors(Checkpoint(healed).layer_names(0))
    assert all(torch.equal(after[name], before[name]) for name in before)  # what lies before the gap has nothing to do


def test_a_test_that_prunes_what_two_gpus_cannot_share_fails(tmp_path):
    three = {"num_attention_heads": 3, "num_key_value_heads": 3, "hidden_size": 192}
    recipe = DepthRecipe(method="depth", remove_layers=1, compensation=Compensation())
    with pytest.raises(AssertionError, match=r"tp 2, layout llama: 3 heads with 3 kv heads do not divide by tp 2"):
        pruned(source(tmp_path / "m", config=WIDE | three), tmp_path / "p", recipe)


def test_layers_and_width_go_in_one_variant(tmp_path):
    folder = source(tmp_path / "m", config=WIDE | {"num_hidden_layers": 3})
    recipe = width(intermediate_size=256, kv_heads=1, hidden_size=128, remove_layers=1)
    config = Checkpoint(pruned(folder, tmp_path / "p", recipe)).config
    sizes = (config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim)
    assert sizes == (2, 2, 1, 64)
    assert (config.fields["hidden_size"], config.fields["intermediate_size"]) == (128, 256)


def test_tokens_that_do_not_count_are_not_fitted_to(tmp_path):
    folder = source(tmp_path / "m")
    tokens, counted = ids(), torch.zeros(16, 32, dtype=torch.bool)
    counted[:, :20] = True
    other = tokens.clone()
    other[:, 20:] = windows(16, 12, 128, seed=9)
    one, two = (
        logits(pruned(folder, tmp_path / str(n), width(intermediate_size=256), Text(t, counted)))
        for n, t in enumerate((tokens, other))
    )
    assert torch.allclose(one, two, atol=1e-4)


# --- memory, and the same bytes


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("resources", [{}, {"prefetch": False}, {"disk": True}], ids=str)
def test_equal_inputs_give_equal_bytes_wherever_windows_wait(tmp_path, resources):
    folder, recipe = source(tmp_path / "m"), width(intermediate_size=256, kv_heads=1)
    resources = {"disk": tmp_path} if "disk" in resources else resources
    assert content(pruned(folder, tmp_path / "a", recipe)) == content(
        pruned(folder, tmp_path / "b", recipe, **resources)
    )


@dataclass
class Held:
    """Layers on the device, and windows that wait."""

    layers: set = field(default_factory=set)
    most_layers: int = 0
    windows: int = 0
    most_windows: int = 0


@pytest.fixture
def held(monkeypatch):
    """Counts what pruning holds on to, as long as it does."""
    count = Held()
    load, release, room = LayerRunner.load, LayerRunner.release, Resources.room

    def loading(self, n):
        count.layers.add((id(self), n))
        count.most_layers = max(count.most_layers, len(count.layers))
        return load(self, n)

    def leaving(number):
        count.windows -= number

    def taking(self, shape):
        made = room(self, shape)
        count.windows += shape[0]
        count.most_windows = max(count.most_windows, count.windows)
        weakref.finalize(made, leaving, shape[0])
        return made

    monkeypatch.setattr(LayerRunner, "load", loading)
    monkeypatch.setattr(LayerRunner, "release", lambda self, n: count.layers.remove((id(self), n)) or release(self, n))
    monkeypatch.setattr(Resources, "room", taking)
    return count


DEPTH = {"method": "depth", "remove_layers": 2}
MEASURED = 3  # windows


@pytest.mark.parametrize(
    ("recipe", "growth"),
    [
        (width(intermediate_size=256, kv_heads=1, hidden_size=128), 0),
        (DepthRecipe(method="depth", remove_layers=[0], compensation=Compensation()), 0),
        (DepthRecipe(**DEPTH), 0),
        (DepthRecipe(**DEPTH, contiguous=True), 0),
        (DepthRecipe(**DEPTH, score="kl", windows=MEASURED), MEASURED),
        (DepthRecipe(**DEPTH, score="kl", windows=MEASURED, contiguous=True), MEASURED),
    ],
    ids=["width", "depth made good", "influence", "influence of a run", "kl", "kl of a run"],
)  # fmt: skip
def test_what_is_held_does_not_grow_with_the_number_of_layers(tmp_path, held, recipe, growth):
    """One layer at a time, and as many copies of the windows in a deep model as in a shallow one; where KL is measured,
    each layer adds those few windows that it is measured on. The stage plans for all of them."""
    most = []
    for layers in (4, 7):
        held.most_windows = 0
        folder = source(tmp_path / f"m{layers}", config=WIDE | {"num_hidden_layers": layers})
        pruned(folder, tmp_path / f"p{layers}", recipe)
        most.append(held.most_windows)
        planned = max(sets * count for sets, count in most_waiting(recipe, layers, len(ids())))
        assert 0 < held.most_windows <= planned
    assert most[1] - most[0] == 3 * growth
    assert held.most_layers == 1
    assert held.layers == set()
