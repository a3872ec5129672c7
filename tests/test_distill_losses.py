"""Each loss over the vocabulary is its formula over full logits, value and gradients, and no full logits ever exist."""

import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from compress.distill import fused
from compress.distill.fused import FromHidden, FromTop, Mix, divergence, fused_loss
from compress.distill.losses import CrossEntropy, ForwardKl, JensenShannon, ReverseKl, TopKKl
from compress.distill.token_losses import term
from compress.errors import CompressError

TOKENS, VOCAB = 21, 257  # no multiple of any chunk below
LOSSES = {
    "forward": ForwardKl(), "forward, warm": ForwardKl(temperature=2.5), "reverse": ReverseKl(kind="reverse_kl"),
    "reverse, warm": ReverseKl(kind="reverse_kl", temperature=2.0),
    "jensen_shannon": JensenShannon(kind="jensen_shannon"),
    "jensen_shannon, uneven": JensenShannon(kind="jensen_shannon", share=0.2, temperature=1.5),
    "top_k": TopKKl(kind="top_k_kl", k=7), "top_k, warm": TopKKl(kind="top_k_kl", k=30, temperature=2.0),
    "cross_entropy": CrossEntropy(kind="cross_entropy"),
}  # fmt: skip


def heads(tokens=TOKENS, vocab=VOCAB, student=20, teacher=36, spread=2.0):
    """Hidden states and heads of a student and a teacher of other sizes, logits of about `spread`."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(tokens, student), (vocab, student), (tokens, teacher), (vocab, teacher)]
    hs, Ws, ht, Wt = (torch.randn(shape, generator=generator) for shape in shapes)
    return hs.requires_grad_(), (Ws * spread / student**0.5).requires_grad_(), ht, Wt * spread / teacher**0.5


def labels(tokens=TOKENS, vocab=VOCAB):
    return torch.randint(0, vocab, (tokens,), generator=torch.Generator().manual_seed(1))


def plain(loss, zs, zt, label):
    """A loss of each token by definition, left to autograd."""
    if isinstance(loss, CrossEntropy):
        return nn.functional.cross_entropy(zs, label, reduction="none")
    T = loss.temperature
    ls, lt = (zs / T).log_softmax(-1), (zt / T).log_softmax(-1)
    ps, pt = ls.exp(), lt.exp()
    match loss:
        case ForwardKl():
            v = (pt * (lt - ls)).sum(-1)
        case ReverseKl():
            v = (ps * (ls - lt)).sum(-1)
        case JensenShannon(share=share):
            m = share * pt + (1 - share) * ps
            v = share * (pt * (lt - m.log())).sum(-1) + (1 - share) * (ps * (ls - m.log())).sum(-1)
        case TopKKl(k=k):
            ids = pt.topk(k).indices
            ours, theirs = (torch.cat([p.gather(1, ids), 1 - p.gather(1, ids).sum(1, True)], 1) for p in (ps, pt))
            v = (theirs * (theirs.log() - ours.log())).sum(-1)
    return v * T * T


def expected(losses, inputs, w, label):
    """Value and gradients in float64, over logits of everything."""
    hs, Ws, ht, Wt = (tensor.detach().double() for tensor in inputs)
    hs.requires_grad_(), Ws.requires_grad_()
    zs, zt = hs @ Ws.t(), ht @ Wt.t()
    terms = zip(losses, w.double(), strict=True)
    value = sum(loss.weight * (plain(loss, zs, zt, label) * each).sum() for loss, each in terms)
    return value, torch.autograd.grad(value, [hs, Ws])


def ours(losses, inputs, w, label, scale=1.0):
    hs, Ws, ht, Wt = inputs
    mixed = Mix([(loss.weight, term(loss)) for loss in losses]).function()
    value = fused_loss(hs, Ws, FromHidden(ht, Wt), label, w, mixed)
    return value, torch.autograd.grad(value * scale, [hs, Ws])


def masked():
    """A weight a token, of which every third does not count."""
    w = torch.linspace(0.2, 1.7, TOKENS) / TOKENS
    w[::3] = 0
    return w


def chunks_of(monkeypatch, tokens, vocab=VOCAB):
    monkeypatch.setattr(fused, "CHUNK_BYTES", {"cpu": 4 * vocab * tokens})


@pytest.mark.parametrize("tokens", [1, 4, 64])
@pytest.mark.parametrize("spread", [0.1, 3.0])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_loss_and_its_gradients_are_those_of_the_formula_over_full_logits(monkeypatch, loss, spread, tokens):
    chunks_of(monkeypatch, tokens)
    inputs, w = heads(spread=spread), masked()[None]
    value, gradients = ours([loss], inputs, w, labels())
    wanted, wanted_gradients = expected([loss], inputs, w, labels())
    assert value.item() == pytest.approx(wanted.item(), rel=1e-5, abs=1e-6)
    for got, exact in zip(gradients, wanted_gradients, strict=True):
        assert exact.norm() > 1e-5
        assert (got - exact).norm() < 1e-4 * exact.norm()


def test_a_mix_is_the_weighted_sum_and_each_term_has_its_own_tokens(monkeypatch):
    chunks_of(monkeypatch, 8)
    mix = [ForwardKl(weight=0.7), CrossEntropy(kind="cross_entropy", weight=0.2), ReverseKl(kind="reverse_kl")]
    inputs, w = heads(), torch.stack([masked(), masked().flip(0), masked() * 2])
    value, gradients = ours(mix, inputs, w, labels(), scale=3.0)
    wanted, wanted_gradients = expected(mix, inputs, w, labels())
    assert value.item() == pytest.approx(wanted.item(), rel=1e-5)
    for got, exact in zip(gradients, wanted_gradients, strict=True):
        assert (got - 3 * exact).norm() < 3e-4 * exact.norm()


@pytest.mark.parametrize("spread", [0.1, 3.0, 60.0])
def test_divergence_is_the_formula_s_of_each_token(monkeypatch, spread):
    chunks_of(monkeypatch, 4)
    hs, Ws, ht, Wt = heads(spread=spread)
    logits = (hs @ Ws.t()).double(), (ht @ Wt.t()).double()
    wanted = plain(ForwardKl(), *logits, None).detach().float()
    assert torch.allclose(divergence(hs, Ws, ht, Wt), wanted, rtol=1e-4, atol=2e-5 * max(1.0, spread))


@pytest.mark.parametrize("tokens", [1, 4, 64])
@pytest.mark.parametrize("spread", [0.1, 3.0, 60.0])
def test_each_token_s_share_of_the_gradient_is_the_formula_s_however_far_apart_logits_are(monkeypatch, spread, tokens):
    chunks_of(monkeypatch, tokens)
    inputs, w = heads(spread=spread), torch.linspace(-1, 2, TOKENS)[None]
    got, wanted = (
        result[1] for result in (ours([ForwardKl()], inputs, w, None), expected([ForwardKl()], inputs, w, None))
    )
    assert all(torch.allclose(a, b.float(), rtol=1e-3, atol=1e-4) for a, b in zip(got, wanted, strict=True))
    assert all(gradient.abs().max() > 1e-3 for gradient in wanted)


def test_the_teacher_gets_no_gradient():
    hs, Ws, ht, Wt = heads()
    ht, Wt = ht.requires_grad_(), Wt.requires_grad_()
    mixed = Mix([(1.0, term(ForwardKl()))]).function()
    fused_loss(hs, Ws, FromHidden(ht, Wt), None, masked()[None], mixed).backward()
    assert hs.grad is not None
    assert ht.grad is None
    assert Wt.grad is None


def test_equal_models_lose_nothing_and_are_not_moved():
    hs, Ws, _, _ = heads(student=36)
    assert divergence(hs, Ws, hs.detach(), Ws.detach()).abs().max() < 1e-5
    value, gradients = ours([ForwardKl()], (hs, Ws, hs.detach(), Ws.detach()), torch.ones(1, TOKENS), None)
    assert value.abs() < 1e-4
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


def test_a_stored_top_k_gives_the_loss_of_the_teacher_itself():
    inputs, w, loss = heads(), masked()[None], TopKKl(kind="top_k_kl", k=9)
    hs, Ws, ht, Wt = inputs
    lt, ids = (ht @ Wt.t()).log_softmax(-1).topk(9)
    mixed = Mix([(1.0, term(loss))]).function()
    stored = fused_loss(hs, Ws, FromTop(lt, ids), None, w, mixed)
    value, gradients = ours([loss], inputs, w, None)
    assert stored.item() == pytest.approx(value.item(), rel=1e-6)
    for got, wanted in zip(torch.autograd.grad(stored, [hs, Ws]), gradients, strict=True):
        assert torch.allclose(got, wanted, atol=1e-7)


def test_a_loss_over_all_entries_cannot_be_had_from_a_stored_top_k():
    hs, Ws, ht, Wt = heads()
    lt, ids = (ht @ Wt.t()).log_softmax(-1).topk(9)
    with pytest.raises(CompressError, match="holds the top k; cache: hidden has all"):
        fused_loss(hs, Ws, FromTop(lt, ids), None, masked()[None], Mix([(1.0, term(ForwardKl()))]).function())


def test_a_head_that_is_not_trained_costs_no_gradient():
    hs, Ws, ht, Wt = heads()
    mixed = Mix([(1.0, term(ForwardKl()))]).function()
    with Memory(hs, Ws, ht, Wt) as memory:
        value = fused_loss(hs, Ws.detach(), FromHidden(ht, Wt), None, masked()[None], mixed)
    assert not any(shape == tuple(Ws.shape) for shape in memory.shapes)
    (gradient,) = torch.autograd.grad(value, [hs])
    assert torch.allclose(gradient, ours([ForwardKl()], (hs, Ws, ht, Wt), masked()[None], None)[1][0])


class Memory(TorchDispatchMode):
    """Follows the bytes of all tensors that operations make while it is on, until they are gone; views are no more."""

    def __init__(self, *there):
        super().__init__()
        self.now = self.most = 0
        self.shapes, self.types = set(), set()
        self._known = {tensor.untyped_storage()._cdata for tensor in there}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in {torch.ops.aten.mm.default, torch.ops.aten.addmm_.default}:
            self.types.add(args[-1].dtype)
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor)
        return out

    def _follow(self, tensor):
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self.shapes.add(tuple(tensor.shape))
            self._known.add(key)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, key, storage.nbytes())

    def _gone(self, key, size):
        self._known.discard(key)
        self.now -= size


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_memory_is_what_the_docstring_states_at_internlm2_s_vocabulary(monkeypatch, loss):
    tokens, vocab, hidden, chunk = 64, 92_544, 16, 4
    chunks_of(monkeypatch, chunk, vocab)
    inputs = heads(tokens, vocab, hidden, hidden)
    w = torch.full((1, tokens), 1 / tokens)
    with Memory(*inputs) as memory:
        value, _ = ours([loss], inputs, w, labels(tokens, vocab))
    returned = 4 * (vocab * hidden + tokens * hidden)
    assert value > 0
    assert (tokens, vocab) not in memory.shapes
    assert memory.most <= returned + fused.LIVE * 4 * chunk * vocab + 2**16
    assert memory.most > returned + 2 * 4 * chunk * vocab  # so the measure sees what it should


def test_under_autocast_products_are_in_its_type_and_gradients_in_float32():
    inputs = heads()
    hs, Ws, ht, Wt = inputs
    _, wanted = expected([ForwardKl()], inputs, masked()[None], None)
    with Memory(*inputs) as memory:
        with torch.autocast("cpu", torch.bfloat16):
            mixed = Mix([(1.0, term(ForwardKl()))]).function()
            value = fused_loss(hs, Ws, FromHidden(ht, Wt), None, masked()[None], mixed)
        got = torch.autograd.grad(value, [hs, Ws])
    assert memory.types == {torch.bfloat16}
    assert all(gradient.dtype == torch.float32 for gradient in got)
    for gradient, exact in zip(got, wanted, strict=True):
        assert (gradient - exact).norm() < 0.05 * exact.norm()
