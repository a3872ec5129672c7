"""Losses between layers are their formulas, look only back, and learn where widths differ."""

import copy

import pytest
import torch
from test_distill_loop import losses, models, recipe, texts, uneven  # noqa: F401 - a fixture

from compress.distill.inherited import inherited_pairs
from compress.distill.layer_losses import Depth, LayerLosses, hidden, pairs, relations
from compress.distill.losses import AttentionRelation, Hidden
from compress.distill.stream import run
from compress.distill.train import distill_
from compress.errors import CompressError

EVEN = Hidden(kind="hidden")


def streams(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def masked():
    w = torch.rand(2, 7, generator=torch.Generator().manual_seed(3))
    w[:, ::3] = 0
    return w


def test_the_hidden_loss_and_its_gradient_are_the_formula_s_in_float64():
    s, t, w = streams(2, 7, 12), streams(2, 7, 12, seed=1), masked()
    value = hidden(s, t.detach(), w)
    exact = s.detach().double().requires_grad_()
    target = t.detach().double()
    wanted = sum(
        w[b, n].double() * (exact[b, n] - target[b, n]).norm() ** 2 / target[b, n].norm() ** 2
        for b in range(2)
        for n in range(7)
    )
    assert value.item() == pytest.approx(wanted.item(), rel=1e-5)
    got, (gradient,) = torch.autograd.grad(value, [s])[0], torch.autograd.grad(wanted, [exact])
    assert (got - gradient).norm() < 1e-5 * gradient.norm()


def test_the_relation_loss_and_its_gradient_are_the_formula_s_in_float64():
    ours, theirs, w = [streams(2, 3, 7, 4)], [streams(2, 3, 7, 9, seed=1)], masked()
    value = relations(ours, [t.detach() for t in theirs], w)
    exact, wanted = ours[0].detach().double().requires_grad_(), 0.0
    for b in range(2):
        for head in range(3):
            for n in range(7):  # position n and those before it
                relation = [
                    (x[b, head, : n + 1] @ x[b, head, n] / x.shape[-1] ** 0.5).softmax(0)
                    for x in (exact, theirs[0].detach().double())
                ]
                wanted = wanted + w[b, n].double() / 3 * (relation[1] * (relation[1] / relation[0]).log()).sum()
    assert value.item() == pytest.approx(wanted.item(), rel=1e-4)
    got, (gradient,) = torch.autograd.grad(value, ours)[0], torch.autograd.grad(wanted, [exact])
    assert (got - gradient).norm() < 1e-4 * gradient.norm()


@pytest.mark.parametrize(
    ("loss", "student", "teacher", "expected"),
    [
        (EVEN, 2, 4, [(0, 1), (1, 3)]),
        (EVEN, 3, 3, [(0, 0), (1, 1), (2, 2)]),
        (EVEN, 6, 8, [(0, 0), (1, 2), (2, 3), (3, 4), (4, 6), (5, 7)]),
        (Hidden(kind="hidden", pairs=[[0, 2], [-1, -1]]), 2, 4, [(0, 2), (1, 3)]),
        (AttentionRelation(kind="attention_relation"), 2, 4, [(1, 3)]),
    ],
)
def test_layers_pair_as_said_or_evenly(loss, student, teacher, expected):
    assert pairs(loss, student, teacher) == expected


def without(model, *removed):
    """The model without some layers, as depth pruning leaves it."""
    student = copy.deepcopy(model)
    kept = [layer for n, layer in enumerate(student.model.layers) if n not in removed]
    student.model.layers = torch.nn.ModuleList(kept)
    return student


@pytest.mark.parametrize(
    ("removed", "expected"),
    [
        ([1], [[0, 1], [1, 2]]),
        ([0], [[0, 1], [1, 2]]),  # the first that is left reads what it never read, and gives what it gave
        ([2], [[1, 2]]),
        ([0, 2], [[0, 2]]),
        ([], [[0, 0], [1, 1], [2, 2]]),
    ],
)
def test_inherited_pairs_are_what_the_next_layer_expects_from_the_first_gap_on(models, removed, expected):  # noqa: F811
    _, teacher = models()
    assert inherited_pairs(without(teacher, *removed), teacher) == expected


@pytest.mark.parametrize("narrowed", [["mlp.down_proj"], ["self_attn.o_proj"], ["mlp.down_proj", "self_attn.o_proj"]])
def test_layers_of_a_narrowed_student_are_known_again_by_what_kept_its_shape(models, narrowed):  # noqa: F811
    _, teacher = models()
    for layer in teacher.model.layers:
        torch.nn.init.normal_(layer.post_attention_layernorm.weight, mean=1.0)
    student = without(teacher, 1)
    for layer in student.model.layers:
        for name in narrowed:
            linear = layer.get_submodule(name)
            linear.weight = torch.nn.Parameter(linear.weight[:, ::2] + 1e-3)  # and made good a little
    assert inherited_pairs(student, teacher) == [[0, 1], [1, 2]]


def test_layers_that_came_from_nowhere_inherit_nothing(models):  # noqa: F811
    student, teacher = models()
    with pytest.raises(CompressError, match="stream is narrower; use even"):
        inherited_pairs(student, teacher)
    doubled = without(teacher, 2)
    doubled.model.layers[1] = copy.deepcopy(doubled.model.layers[0])
    with pytest.raises(CompressError, match=r"resemble the teacher's \[0, 0\]; use even"):
        inherited_pairs(doubled, teacher)


def test_a_student_without_a_layer_learns_by_what_it_inherited(models):  # noqa: F811
    _, teacher = models()
    loss = [{"kind": "forward_kl"}, {"kind": "hidden", "pairs": "inherited"}]
    found = losses(distill_(without(teacher, 1), teacher, texts(), recipe(loss=loss, steps=20, learning_rate=0.01)))
    assert found[-1] < 0.9 * found[0]


@pytest.mark.parametrize("pair", [[2, 0], [0, 4], [-3, 0]])
def test_a_layer_that_is_not_there_is_refused(pair):
    with pytest.raises(CompressError, match=r"^loss.hidden.pairs: \[.*\] of 2 and 4 layers; use 0 to 1 and 0 to 3"):
        pairs(Hidden(kind="hidden", pairs=[pair]), 2, 4)


def test_heads_that_do_not_divide_the_channels_are_refused(models):  # noqa: F811
    loss = {"kind": "attention_relation", "relation_heads": 3}
    with pytest.raises(CompressError, match=r"relation_heads: 3 do not divide the 32 channels of q_proj in layer 1"):
        distill_(*models(), texts(), recipe(loss=loss))


def test_projections_are_there_only_where_widths_differ():
    depths = Depth(2, 8), Depth(4, 8), Depth(4, 16)
    assert len(LayerLosses([EVEN], depths[0], depths[1]).projections) == 0
    assert [p.weight.shape for p in LayerLosses([EVEN], depths[0], depths[2]).projections] == [(16, 8)] * 2


@pytest.mark.parametrize(
    "loss",
    [
        [{"kind": "hidden"}],
        [{"kind": "attention_relation", "relation_heads": 4}],
        [
            {"kind": "forward_kl"},
            {"kind": "hidden", "weight": 0.1},
            {"kind": "attention_relation", "relation_heads": 4},
        ],
    ],
    ids=["hidden", "relation", "mix"],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_layer_losses_fall_in_training_also_when_layers_are_computed_twice(models, loss, checkpointing):  # noqa: F811
    said = recipe(loss=loss, steps=20, learning_rate=0.01, checkpointing=checkpointing)
    student, teacher = models()
    before = student.model.layers[0].mlp.up_proj.weight.clone()
    found = losses(distill_(student, teacher, texts(), said, counted=uneven()))
    assert found[-1] < 0.9 * found[0]
    assert not torch.equal(before, student.model.layers[0].mlp.up_proj.weight)


def test_layers_run_by_hand_are_the_model_s_own_pass(models):  # noqa: F811
    _, teacher = models()
    tokens = texts(3)
    with torch.no_grad():
        out = teacher.model(tokens, output_hidden_states=True)
        seen = run(teacher, tokens, frozenset({0, 1}), frozenset({2}))
    assert torch.allclose(seen.final, out.last_hidden_state, atol=1e-5)
    assert all(torch.allclose(seen.residuals[n], out.hidden_states[n + 1], atol=1e-5) for n in (0, 1))
    assert {key[1] for key in seen.projections} == {"q_proj", "k_proj", "v_proj"}
