"""What a user says about the loss: one kind or a mix of several by weight, each a type with its own settings."""

from typing import Annotated, Literal

from pydantic import Field

from compress.strict import Strict

Pair = Annotated[list[int], Field(min_length=2, max_length=2)]
Pairs = Annotated[list[Pair], Field(min_length=1)]


class _Loss(Strict):
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="in the sum")


class _Tempered(_Loss):
    temperature: float = Field(
        default=1.0, gt=0, le=100, description="divides both logits; the loss is times its square"
    )


class ForwardKl(_Tempered):
    """KL(teacher ‖ student): the student covers all that the teacher says."""

    kind: Literal["forward_kl"] = "forward_kl"


class ReverseKl(_Tempered):
    """KL(student ‖ teacher): the student says nothing that the teacher would not."""

    kind: Literal["reverse_kl"]


class JensenShannon(_Tempered):
    """`share` · KL(teacher ‖ m) + (1 − share) · KL(student ‖ m), m the mixture with `share` of the teacher."""

    kind: Literal["jensen_shannon"]
    share: float = Field(default=0.5, gt=0, lt=1)


class TopKKl(_Tempered):
    """KL(teacher ‖ student) over the teacher's k likeliest entries and one bucket for all others."""

    kind: Literal["top_k_kl"]
    k: int = Field(default=64, ge=1)


class CrossEntropy(_Loss):
    """The text's own next token."""

    kind: Literal["cross_entropy"]


class Hidden(_Loss):
    """Residual streams behind paired layers: ‖P·student − teacher‖² / ‖teacher‖², P learned where widths differ."""

    kind: Literal["hidden"]
    pairs: Pairs | Literal["even", "inherited"] = Field(
        default="even",
        description="[student's layer, teacher's layer]; even: all of the student's, over the teacher's; inherited: "
        "each with the teacher's layer whose place it has since layers were left out",
    )


class AttentionRelation(_Loss):
    """How queries, keys and values relate to their like (MiniLM v2): KL of the softmaxed products."""

    kind: Literal["attention_relation"]
    pairs: Pairs = Field(default=[[-1, -1]], description="[student's layer, teacher's layer]; -1 is the last")
    relation_heads: int = Field(default=16, ge=1, description="into which queries, keys and values are divided")


VocabularyLoss = ForwardKl | ReverseKl | JensenShannon | TopKKl | CrossEntropy
LayerLoss = Hidden | AttentionRelation
Loss = Annotated[VocabularyLoss | LayerLoss, Field(discriminator="kind")]
