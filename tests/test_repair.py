"""A 4-bit model is trained as it is stored, comes closer to its teacher, and is written back as it was trained."""

import pytest
import torch
from formats import write_in_scheme
from tiny import CONFIG, windows, write_internlm2
from torch import nn

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.load import load_model
from compress.distill.fake_linear import FakeLinear
from compress.distill.moving import moving_
from compress.distill.quantized import load_quantized, write_quantized
from compress.distill.recipe import DistillRecipe
from compress.distill.repair import Codes, Scales
from compress.distill.train import distill_
from compress.errors import CompressError
from compress.quantize.grid import Grid, dequantize

SMALL = CONFIG | {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 128}
SCALES, CODES = Scales(method="scales"), Codes(method="codes", rate=120)
WHOLE = Scales(method="scales", embeddings=2)
RECIPE = DistillRecipe(steps=6, batch=4, learning_rate=0.003, warmup_steps=2)
KEPT = ("model.layers.1.mlp.down_proj", "model.layers.0.self_attn.o_proj")


def texts(count=8, seed=0):
    return windows(count, 16, SMALL["vocab_size"], seed)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Makes a model and its 4-bit artifact of a scheme and layout, once each."""
    root = tmp_path_factory.mktemp("repair")

    def make(scheme="awq-128", layout="llama", kept=(), **changes):
        name = f"{scheme}-{layout}-{len(kept)}-{'-'.join(changes)}"
        if not (root / name).exists():
            write_internlm2(root / f"{name}-base", SMALL | changes)
            write_in_scheme(root / f"{name}-base", root / name, scheme, layout, kept)
        return root / name, root / f"{name}-base"

    return make


def trained(folder, base, train, count=8, **changes):
    student = load_quantized(folder, train)
    steps = distill_(student, load_model(base), texts(count), RECIPE.model_copy(update=changes))
    return student, steps


def stored(folder):
    checkpoint = Checkpoint(folder)
    return checkpoint.tensors(sorted(checkpoint.names))


def logits(model):
    with torch.no_grad():
        return model(texts(2, seed=9)).logits


def is_trained_by(train, name):
    if train is not CODES:
        ends = ("embed_tokens.weight", "lm_head.weight") if train is WHOLE else ()
        return name.endswith((".scales", ".weight_scale", "norm.weight", *ends))
    return name.endswith((".scales", ".qweight", ".weight_scale", ".weight_packed", "norm.weight"))


# --- the linear


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_gradients_are_those_of_the_weight_that_codes_stand_for(groups):
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(0, 16, (24, 8 * groups), generator=generator, dtype=torch.uint8)
    grid = Grid((0.1 + torch.rand(24, groups, generator=generator)).half().float(), torch.full((24, groups), 7.0), 4, 8)
    linear = FakeLinear(q, grid, torch.float16, torch.randn(24, generator=generator), CODES)
    x = torch.randn(2, 5, 8 * groups, generator=generator, requires_grad=True)
    weights = torch.randn(2, 5, 24, generator=generator)
    got = torch.autograd.grad((linear(x) * weights).sum(), [x, *linear.parameters()])
    u, s = q.float().requires_grad_(), grid.scales.clone().requires_grad_()
    W = ((u.unflatten(1, (-1, 8)) - grid.zeros[..., None]) * s[..., None]).flatten(1)
    expected = torch.autograd.grad((nn.functional.linear(x, W, linear.bias) * weights).sum(), [x, u, s])
    assert torch.allclose(got[0], expected[0], atol=1e-4)
    named = dict(zip((name for name, _ in linear.named_parameters()), got[1:], strict=True))
    assert torch.allclose(named["latents"], CODES.rate * expected[1], rtol=1e-4, atol=1e-3)
    moved = named["parametrizations.scales.original"]  # the scale is a factor of where it began
    assert torch.allclose(moved, grid.scales * expected[2], rtol=1e-4, atol=1e-3)


def test_a_scale_is_computed_with_as_float16_stores_it_and_never_runs_away():
    linear = nn.LayerNorm(4, bias=False)
    linear.weight.data = torch.tensor([0.1, 1.0, -3.0, 0.5]).half().float()
    start = linear.weight.data.clone()
    moving_(linear, "weight", torch.float16)
    assert torch.equal(linear.weight, start)
    linear.parametrizations.weight.original.data = torch.tensor([0.0101, -5.0, 1e-5, 9.0])
    factors = torch.tensor([1.0101, 0.5, 1.0, 1.5])  # what is less than half a step of float16 is nothing
    assert torch.equal(linear.weight, (start * factors).half().float())


def test_latents_are_codes_of_four_bits_however_far_they_are_pushed():
    grid = Grid(torch.ones(8, 1), torch.full((8, 1), 8.0), 4, 8)
    linear = FakeLinear(torch.arange(64, dtype=torch.uint8).reshape(8, 8) % 16, grid, torch.float16, None, CODES)
    start = linear.codes()
    for push, end in ((-99.0, 0), (99.0, 15)):
        linear.latents.data.fill_(push)
        assert (linear.codes() == end).all()
    linear.latents.data.fill_(0.51 / CODES.rate)
    assert torch.equal(linear.codes(), (start + 1).clamp(max=15))
    assert torch.equal(linear(torch.eye(8)).t(), dequantize(linear.codes(), grid))


# --- the model


@pytest.mark.parametrize("train", [SCALES, CODES, WHOLE])
@pytest.mark.parametrize("scheme", ["awq-128", "ct-32"])
def test_before_training_it_is_the_stored_model(folders, scheme, train):
    folder, _ = folders(scheme)
    assert torch.allclose(logits(load_quantized(folder, train)), logits(load_model(folder)), atol=1e-4)


@pytest.mark.parametrize("train", [SCALES, CODES])
def test_training_lowers_the_loss_and_brings_it_closer_on_other_text(folders, train):
    folder, base = folders("awq-128")

    def apart(model):
        ours, theirs = (logits(m).log_softmax(-1) for m in (model, load_model(base)))
        return (theirs.exp() * (theirs - ours)).sum(-1).mean().item()

    slowly = Codes(method="codes", rate=10) if train is CODES else train
    student, steps = trained(folder, base, slowly, count=2048, batch=32, steps=60)
    assert steps[-1].loss_nats < 0.8 * steps[0].loss_nats
    assert apart(student) < 0.9 * apart(load_model(folder))


@pytest.mark.parametrize(
    ("train", "scheme", "layout", "kept", "changes"),
    [
        (SCALES, "awq-128", "llama", (), {}),
        (CODES, "awq-128", "internlm2", (), {}),
        (CODES, "awq-128", "llama", KEPT, {"tie_word_embeddings": True}),
        (WHOLE, "awq-128", "llama", KEPT, {"tie_word_embeddings": True}),
        (WHOLE, "awq-128", "internlm2", (), {}),
        (CODES, "ct-32", "llama", (), {}),
        (SCALES, "awq-128", "llama", (), {"bias": True}),
    ],
)
def test_what_is_written_is_what_was_trained_in_the_same_format(
    folders, tmp_path, train, scheme, layout, kept, changes
):
    folder, base = folders(scheme, layout, kept, **changes)
    student, _ = trained(folder, base, train)
    write_quantized(student, folder, tmp_path)
    assert torch.allclose(logits(load_model(tmp_path)), logits(student), atol=1e-4)
    assert Checkpoint(tmp_path).quantization == Checkpoint(folder).quantization
    assert (tmp_path / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    before, after = stored(folder), stored(tmp_path)
    assert {name: (t.dtype, t.shape) for name, t in before.items()} == {n: (t.dtype, t.shape) for n, t in after.items()}
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if is_trained_by(train, name)}


@pytest.mark.parametrize("train", [SCALES, CODES])
@pytest.mark.parametrize("scheme", ["awq-128", "ct-32"])
def test_what_did_not_move_is_written_with_the_same_bytes(folders, tmp_path, scheme, train):
    folder, base = folders(scheme, kept=KEPT)
    student, _ = trained(folder, base, train, learning_rate=1e-30)
    write_quantized(student, folder, tmp_path)
    names = sorted(path.name for path in folder.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert all((tmp_path / name).read_bytes() == (folder / name).read_bytes() for name in names)


def test_only_scales_norms_and_codes_are_trainable_and_codes_take_a_byte(folders):
    folder, _ = folders(kept=KEPT)
    for train, kinds in ((SCALES, {"original"}), (WHOLE, {"original"}), (CODES, {"original", "latents"})):
        model = load_quantized(folder, train)
        assert {name.rsplit(".", 1)[-1] for name, p in model.named_parameters() if p.requires_grad} == kinds
        linears = [module for module in model.modules() if isinstance(module, FakeLinear)]
        assert len(linears) == 2 * 7 - len(KEPT)
        assert all(linear.start.dtype == torch.uint8 for linear in linears)
        assert model.lm_head.weight.requires_grad == (train is WHOLE)


def test_a_head_that_is_the_embeddings_moves_with_them(folders):
    folder, base = folders(tie_word_embeddings=True)
    student, _ = trained(folder, base, WHOLE)
    assert torch.equal(student.lm_head.weight, student.model.embed_tokens.weight)
    assert not torch.equal(student.lm_head.weight, load_model(folder).lm_head.weight)
    assert len({id(p) for p in student.parameters() if p.shape == student.lm_head.weight.shape}) == 1


@pytest.mark.parametrize(("scheme", "said"), [("fp8", "fp8"), ("int8", "smooth_quant")])
def test_other_formats_are_refused(folders, scheme, said):
    folder, base = folders(scheme)
    with pytest.raises(CompressError, match=f"is in {said}, and only 4 bits in awq or compressed-tensors are repaired"):
        load_quantized(folder, SCALES)
    with pytest.raises(CompressError, match="is in 16 bits, and only 4 bits"):
        load_quantized(base, SCALES)
