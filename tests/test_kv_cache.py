"""The simulated quantized KV cache: rounding by hand, attention by hand, and what it costs a model."""

import torch
from tiny import CONFIG, windows, write_internlm2

from compress.checkpoint.load import load_model
from compress.evaluate.compare import compare_models
from compress.evaluate.kv_cache import quantized_cache, rounded
from compress.evaluate.tokens import LiveReference, score_tokens


def test_rounding_is_on_a_grid_from_the_least_to_the_greatest_number():
    x = torch.tensor([[-1.0, 0.0, 0.49, 14.0]])
    assert torch.equal(rounded(x, 4), torch.tensor([[-1.0, 0.0, 0.0, 14.0]]))


def test_an_error_is_at_most_half_a_step_and_what_16_bits_of_step_and_least_add():
    x = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0))
    for bits in (8, 4):
        step = (x.amax(-1) - x.amin(-1)) / (2**bits - 1)
        error = (rounded(x, bits) - x).abs().amax(-1)
        assert (error <= 0.5 * step + 2**-10 * x.abs().amax(-1)).all()
        assert error.max() > 0.4 * step.min()


def test_each_token_of_each_head_has_a_grid_of_its_own():
    x = torch.randn(1, 2, 3, 64, generator=torch.Generator().manual_seed(0))
    louder = x * torch.tensor([1.0, 1000.0]).view(1, 2, 1, 1)
    assert torch.equal(rounded(louder, 4)[:, 0], rounded(x, 4)[:, 0])


def test_equal_numbers_survive():
    x = torch.full((2, 64), 0.75)
    assert torch.equal(rounded(x, 4), x)


def test_attention_reads_the_rounded_keys_and_values(tmp_path):
    """A prompt in one pass is a prompt token by token: every token reads the others through the cache."""
    write_internlm2(tmp_path, CONFIG)
    model, tokens = load_model(tmp_path), windows(1, 12)
    with torch.no_grad():
        whole = model(tokens, None, None, quantized_cache(4), use_cache=True).logits
        cache = quantized_cache(4)
        steps = [model(tokens[:, n : n + 1], None, None, cache, use_cache=True).logits for n in range(12)]
        plain = model(tokens).logits
    assert torch.allclose(whole, torch.cat(steps, 1), atol=1e-4)
    assert (whole - plain).abs().max() > 0.01


def test_fewer_bits_lose_more_and_none_lose_nothing(tmp_path):
    write_internlm2(tmp_path, CONFIG)
    model, tokens = load_model(tmp_path), windows(8, 32)
    scores = {bits: score_tokens(model, LiveReference(model), tokens, kv_bits=bits) for bits in (None, 8, 4)}
    lost = {bits: score.kl_nats.mean().item() for bits, score in scores.items()}
    assert abs(lost[None]) < 1e-6
    assert lost[None] < lost[8] < lost[4] / 20
    assert torch.equal(scores[None].kl_nats.mean(1), compare_models(model, model, tokens).kl_nats)
