"""A teacher beside the student and what it once said give the same loss; what no cache can give is refused."""

import pytest
from full_disk import full_disk
from test_distill_loop import losses, models, recipe, texts, uneven  # noqa: F401 - a fixture

from compress.distill.cache import cached, fill
from compress.distill.train import distill_
from compress.errors import CompressError

TOP = {"kind": "top_k_kl", "k": 9}


def from_cache(models, folder, said):  # noqa: F811
    student, teacher = models()
    fill(folder, teacher, texts(), said)
    kept = cached(folder, teacher.lm_head.weight.detach(), said.cache)
    return losses(distill_(student, kept, texts(), said, counted=uneven()))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("loss", [{"kind": "forward_kl"}, [{"kind": "reverse_kl"}, {"kind": "cross_entropy"}]])
def test_kept_hidden_states_give_the_losses_of_the_teacher_beside(tmp_path, models, precision, loss):  # noqa: F811
    said = {"precision": precision, "loss": loss, "steps": 3}
    beside = losses(distill_(*models(), texts(), recipe(**said), counted=uneven()))
    kept = from_cache(models, tmp_path / "cache", recipe(**said, cache="hidden"))
    assert kept == pytest.approx(beside, rel=1e-5 if precision == "float32" else 2e-3)
    assert beside[0] > 0.1


@pytest.mark.parametrize("top_k", [9, 30])
def test_kept_likeliest_entries_give_the_top_k_loss_of_the_teacher_beside(tmp_path, models, top_k):  # noqa: F811
    beside = losses(distill_(*models(), texts(), recipe(loss=TOP, steps=3), counted=uneven()))
    kept = from_cache(models, tmp_path / "cache", recipe(loss=TOP, cache={"top_k": top_k}, steps=3))
    assert kept == pytest.approx(beside, rel=1e-5)


def test_a_cache_is_a_fraction_of_the_logits(tmp_path, models):  # noqa: F811
    teacher = models()[1]
    fill(tmp_path / "cache", teacher, texts(), recipe(precision="bf16", cache="hidden"))
    size_bytes = sum(path.stat().st_size for path in (tmp_path / "cache").iterdir())
    assert size_bytes < texts().numel() * teacher.config.vocab_size * 2 / 2


def test_a_full_disk_loses_nothing_that_is_cached(tmp_path, models):  # noqa: F811
    said, teacher, folder = recipe(cache="hidden"), models()[1], tmp_path / "cache"
    with full_disk() as fill_up:

        def full_after_two(items, what):
            for number, item in enumerate(items):
                if number == 2:
                    fill_up(512)
                yield item

        with pytest.raises(CompressError, match=r"window-000016.safetensors: not written .* stay cached$") as error:
            fill(folder, teacher, texts(), said, full_after_two)
    assert "\n" not in str(error.value)
    there = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(there) == 16
    fill(folder, teacher, texts(), said)
    assert len(list(folder.iterdir())) == 24
    assert {path: path.stat().st_mtime_ns for path in there} == there
    whole = recipe(cache="hidden", steps=3)
    kept = cached(folder, teacher.lm_head.weight.detach(), "hidden")
    found = losses(distill_(models()[0], kept, texts(), whole))
    assert found == pytest.approx(losses(distill_(*models(), texts(), recipe(steps=3))), rel=1e-5)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"cache": {"top_k": 9}}, "cache: top_k: 9 serves cross_entropy and top_k_kl .* use cache: hidden for forward"),
        ({"cache": {"top_k": 8}, "loss": TOP}, "with k of at most 8 at temperature 1"),
        ({"cache": {"top_k": 9}, "loss": TOP | {"temperature": 2.0}}, "at temperature 1"),
        ({"cache": "hidden", "loss": {"kind": "hidden"}}, "cache: hidden needs the teacher's layers"),
        ({"loss": []}, "at least 1 item"),
        ({"loss": {"kind": "backward_kl"}}, "does not match any of the expected tags"),
        ({"compile": True, "loss": {"kind": "attention_relation"}}, "compile: attention_relation looks inside"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(said, expected):
    with pytest.raises(ValueError, match=expected):
        recipe(**said)
