"""The measures of a variant are those of dense logits, and its size is what lies on the disk."""

import pytest
import torch
from safetensors.torch import load_file
from tiny import CONFIG, windows, write_config, write_internlm2
from transformers import Qwen3Config, Qwen3ForCausalLM

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.load import load_model
from compress.checkpoint.write import ModelWriter
from compress.evaluate import tokens as scoring
from compress.evaluate.compare import WindowScores, compare_models
from compress.evaluate.size import sizes
from compress.quantize.recipe import AwqRecipe, Nearest
from compress.quantize.walk import quantize_model

SCORES = ("nll_nats", "base_nll_nats", "kl_nats", "top1")
PLAIN = AwqRecipe(scale=None, clip=None, rounding=Nearest(method="nearest"))

# By hand: of CONFIG's layer the weights of q, k, v, o and gate, up, down, and its two norms; 3 layers.
LINEAR = 256 * (256 + 128 + 128 + 256) + 3 * 256 * 384
OUTER = 2 * 512 * 256 + 256
PARAMETERS = 3 * (LINEAR + 2 * 256) + OUTER


@pytest.fixture
def models(tmp_path):
    """A base and a variant that answers a little differently."""
    write_internlm2(tmp_path / "base")
    base, variant = load_model(tmp_path / "base"), load_model(tmp_path / "base")
    for parameter in variant.parameters():
        parameter.data += 0.15 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 16
    return variant, base


def by_hand(variant, base, tokens):
    """Every score from whole logits, one window and one position at a time."""
    rows = []
    for window in tokens:
        with torch.no_grad():
            ours, theirs = (model(window[None]).logits[0].double().log_softmax(-1) for model in (variant, base))
        targets = list(enumerate(window[1:].tolist()))
        rows.append([
            -sum(ours[at, target].item() for at, target in targets) / len(targets),
            -sum(theirs[at, target].item() for at, target in targets) / len(targets),
            sum((q.exp() * (q - p)).sum().item() for p, q in zip(ours, theirs, strict=True)) / len(window),
            sum(p.argmax().item() == q.argmax().item() for p, q in zip(ours, theirs, strict=True)) / len(window),
        ])  # fmt: skip
    return dict(zip(SCORES, torch.tensor(rows).T, strict=True))


# --- scores


def test_scores_equal_a_dense_computation_by_hand(models):
    expected = by_hand(*models, windows(5))
    scores = compare_models(*models, windows(5))
    for name in SCORES:
        assert torch.allclose(getattr(scores, name), expected[name].float(), rtol=1e-4, atol=1e-5), name
    assert (scores.kl_nats > 1e-3).all()
    assert 0 < scores.top1.mean() < 1


def test_positions_that_do_not_count_do_not_count(models):
    """Scores of a window of which only its beginning counts are those of the shorter window, whatever comes after."""
    tokens, counted = windows(3), torch.zeros(3, 32, dtype=torch.bool)
    for window, length in enumerate((8, 20, 32)):
        counted[window, :length] = True
    scores = compare_models(*models, tokens, counted=counted)
    assert scores.counted.tolist() == [8, 20, 32]
    for window, length in enumerate((8, 20, 32)):
        alone = compare_models(*models, tokens[window : window + 1, :length])
        for name in ("kl_nats", "top1"):
            assert torch.allclose(getattr(scores, name)[window], getattr(alone, name)[0], rtol=1e-4), name
    followed = compare_models(*models, tokens[:1, :9])  # its eight predictions
    assert torch.allclose(scores.nll_nats[0], followed.nll_nats[0], rtol=1e-4)
    by_token = (scores.kl_nats * scores.counted).sum() / 60
    assert scores.means()["kl_nats"] == pytest.approx(by_token.item())
    assert compare_models(*models, tokens, counted=counted | True).means() == pytest.approx(
        compare_models(*models, tokens).means(), rel=1e-5
    )


@pytest.mark.parametrize("at_once", [1, 512 * 3, 512 * 7 * 2, 2**24])
@pytest.mark.parametrize("batch", [1, 2, 8])
def test_scores_depend_neither_on_the_slice_nor_on_the_batch(models, monkeypatch, at_once, batch):
    expected = compare_models(*models, windows(5, 17))
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", at_once)
    scores = compare_models(*models, windows(5, 17), batch=batch)
    for name in SCORES:
        assert torch.allclose(getattr(scores, name), getattr(expected, name), rtol=1e-5, atol=1e-6), name


def test_the_base_against_itself_lost_nothing_exactly(tmp_path, models):
    _, base = models
    for same in (base, load_model(tmp_path / "base")):
        scores = compare_models(same, base, windows())
        assert torch.equal(scores.kl_nats, torch.zeros(4))
        assert torch.equal(scores.top1, torch.ones(4))
        assert scores.means()["perplexity_delta"] == 0


def test_the_progress_sees_every_batch(models):
    seen = []

    def watch(items, what):
        for item in items:
            seen.append((what, len(item)))
            yield item

    compare_models(*models, windows(5), batch=2, progress=watch)
    assert seen == [("batch", 2), ("batch", 2), ("batch", 1)]


def test_means_are_over_the_chosen_windows():
    columns = {"nll_nats": [1.0, 3.0, 5.0], "base_nll_nats": [1.0, 1.0, 2.0], "kl_nats": [0.0, 2.0, 7.0]}
    scores = WindowScores(**{k: torch.tensor(v) for k, v in columns.items()}, top1=torch.tensor([1.0, 0.5, 0.0]))
    chosen = scores.means(torch.tensor([True, True, False]))
    e = torch.e
    expected = {"perplexity": e**2, "perplexity_delta": e**2 - e, "kl_nats": 1.0, "top1_agreement": 0.75}
    assert chosen == pytest.approx(expected, rel=1e-5)
    assert scores.means()["kl_nats"] == 3.0


# --- sizes


def quantized(folder, out, layout):
    out.mkdir()
    checkpoint = Checkpoint(folder)
    writer = ModelWriter(out, checkpoint.config.replace(torch_dtype="float16"), layout)
    quantize_model(checkpoint, windows(2), PLAIN, writer)
    return out


def test_sizes_of_a_float_model_are_those_worked_out_by_hand(tmp_path):
    write_internlm2(tmp_path / "m")
    assert sizes(tmp_path / "m") == {
        "parameters": PARAMETERS,
        "size_bytes": 4 * PARAMETERS,
        "bits_per_weight": 32,
        "bits_per_linear_weight": 32,
    }


@pytest.mark.parametrize("layout", ["llama", "internlm2"])
def test_sizes_of_an_awq_model_are_those_worked_out_by_hand_in_either_layout(tmp_path, layout):
    write_internlm2(tmp_path / "m")
    found = sizes(quantized(tmp_path / "m", tmp_path / "q", layout))
    bits = 4 + (16 + 4) / 128  # a code, and a 128th of a float16 scale and of a zero
    size_bytes = 3 * (LINEAR * bits / 8 + 2 * 2 * 256) + 2 * OUTER
    assert found["parameters"] == PARAMETERS
    assert found["bits_per_linear_weight"] == bits == 4.15625
    assert found["size_bytes"] == size_bytes
    assert found["bits_per_weight"] == 8 * size_bytes / PARAMETERS
    stored = [t for shard in (tmp_path / "q").glob("*.safetensors") for t in load_file(shard).values()]
    assert size_bytes == sum(t.numel() * t.element_size() for t in stored)


def test_biases_count_as_parameters_and_not_as_linear_weights(tmp_path):
    write_internlm2(tmp_path / "m", CONFIG | {"bias": True})
    found = sizes(tmp_path / "m")
    assert found["parameters"] == PARAMETERS + 3 * (256 + 128 + 128 + 256)
    assert found["bits_per_linear_weight"] == 32


def test_a_tied_head_is_counted_and_stored_once(tmp_path):
    tied = CONFIG | {"tie_word_embeddings": True}
    write_internlm2(tmp_path / "m")
    write_config(tmp_path / "m", tied)  # the file holds a head, the model has none
    quantized(tmp_path / "m", tmp_path / "q", "llama")
    found = sizes(tmp_path / "q")
    bits = 4.15625
    assert found["parameters"] == PARAMETERS - 512 * 256
    assert found["bits_per_linear_weight"] == bits
    assert found["size_bytes"] == 3 * (LINEAR * bits / 8 + 2 * 2 * 256) + 2 * (OUTER - 512 * 256)


def test_qwen_norms_inside_attention_are_no_linear_weights(tmp_path):
    config = Qwen3Config(
        hidden_size=128, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=64, vocab_size=64, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    model.half().save_pretrained(tmp_path / "m")
    found = sizes(tmp_path / "m")
    assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert found["size_bytes"] == 2 * found["parameters"]
    assert found["bits_per_linear_weight"] == 16
