"""What is trained, as a table: a method is stages in order, a stage is weighted terms, a term is a site and a loss."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ia2.anatomy import Anatomy
from ia2.capture import Selection, Site, layer_numbers
from ia2.prompt import Positions

Responses = Literal["labels", "teacher"]


@dataclass(frozen=True)
class Term:
    """`weight` x `loss` (a name in `ia2.losses.LOSSES`) of what the student computes at `site`."""

    site: Site
    loss: str
    weight: float = 1.0

    @property
    def needs_teacher(self) -> bool:
        """Whether it is compared with the teacher; cross-entropy is with the response itself."""
        return self.loss != "ce"


@dataclass(frozen=True)
class Stage:
    """One training: the sum of its terms, each a mean over positions.

    Attributes:
        terms: what is minimised.
        responses: whose responses the labelled rows have: the given labels, or what the teacher itself answers.
        layers: where activations are compared, as `ia2.capture.layer_numbers` reads it.
        positions: and at which positions.
        temperature: of losses that take a softmax.
        top_k: tokens of the vocabulary that soft labels count; all of them if None.
    """

    terms: tuple[Term, ...]
    responses: Responses = "labels"
    layers: str = "all"
    positions: Positions = "response"
    temperature: float = 1.0
    top_k: int | None = None

    @property
    def sites(self) -> frozenset[Site]:
        """What must be read from the student."""
        return frozenset(term.site for term in self.terms)

    @property
    def teacher_sites(self) -> frozenset[Site]:
        """What must be collected from the teacher."""
        return frozenset(term.site for term in self.terms if term.needs_teacher)

    def selection(self, anatomy: Anatomy) -> Selection:
        """What must be collected from the teacher, where."""
        return Selection(self.teacher_sites, layer_numbers(self.layers, len(anatomy.layers)), self.positions)

    @property
    def imitates(self) -> bool:
        """Whether all it learns comes from the teacher, so that it can also learn from queries without labels."""
        return self.responses == "teacher" or all(term.needs_teacher for term in self.terms)


@dataclass(frozen=True)
class Method:
    """Stages in order, and what they amount to in a line and as an equation."""

    stages: tuple[Stage, ...]
    what: str
    equation: str


def methods(
    loss: str = "nmse",
    soft_loss: str = "kl",
    beta: float = 0.5,
    responses: Responses = "labels",
    layers: str = "all",
    positions: Positions = "response",
    temperature: float = 1.0,
    top_k: int | None = None,
) -> dict[str, Method]:
    """The table of methods.

    Every leading part of a method is a method too: an adapter is named by the stages that it went through.

    Args:
        loss: where activations are aligned, one of `ia2.losses.ALIGNMENT_LOSSES`.
        soft_loss: where output distributions are, one of `ia2.losses.SOFT_LOSSES`.
        beta: weight of the cross-entropy in `joint` (paper, joint loss).
        responses, layers, positions, temperature, top_k: of every stage with a teacher, as `Stage` has them.
    """

    def taught(*terms: Term, responses: Responses = responses) -> Stage:
        return Stage(terms, responses, layers, positions, temperature, top_k)

    ce = Term("logits", "ce")
    tune, distil = Stage((ce,)), Stage((ce,), "teacher")
    prime, residual = taught(Term("attn_out", loss)), taught(Term("hidden", loss))
    soft, both = taught(Term("logits", soft_loss)), taught(Term("attn_out", loss), Term("logits", soft_loss))
    joint = taught(Term("attn_out", loss, 1 - beta), Term("logits", "ce", beta), responses="labels")
    attn, kl, res = "Σ_l D(a_l, a_l^ICL)", "KL(p^ICL ‖ p)", "Σ_l D(h_l, h_l^ICL)"
    return {
        "sft": Method((tune,), "fine-tune on the labels", "CE(y)"),
        "ia2": Method((prime,), "align attention outputs with ICL's (the paper's stage 1)", attn),
        "ia2-sft": Method((prime, tune), "align, then fine-tune (the paper's method)", f"{attn}; CE(y)"),
        "sft-ia2": Method((tune, prime), "fine-tune, then align", f"CE(y); {attn}"),
        "joint": Method((joint,), "align and fine-tune at once", f"(1-β) {attn} + β CE(y)"),
        "soft": Method((soft,), "soft labels: ICL's output distribution", kl),
        "soft-sft": Method((soft, tune), "soft labels, then fine-tune", f"{kl}; CE(y)"),
        "hidden": Method((residual,), "align the residual stream with ICL's", res),
        "hidden-sft": Method((residual, tune), "align the residual stream, then fine-tune", f"{res}; CE(y)"),
        "icl-distill": Method((distil,), "fine-tune on what ICL answers", "CE(ŷ), ŷ from p^ICL"),
        "ia2+soft": Method((both,), "align attention outputs and output distribution", f"{attn} + {kl}"),
    }


METHODS = tuple(methods())


def named_stages(method: str, table: Mapping[str, Method]) -> dict[str, Stage]:
    """The stages of a method by the name of the adapter that each yields: that of the method up to there."""
    stages = table[method].stages
    names = {of.stages: name for name, of in table.items()}
    return {names[stages[: i + 1]]: stage for i, stage in enumerate(stages)}
