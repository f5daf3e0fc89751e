"""What is trained, as a table: a method is stages in order, a stage is weighted terms, a term is a site and a loss."""

from dataclasses import dataclass, replace

from ia2.capture import Site
from ia2.errors import choose
from ia2.losses import ALIGNMENT_LOSSES


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
    """One training: the sum of its terms, a mean over response positions."""

    terms: tuple[Term, ...]

    @property
    def sites(self) -> frozenset[Site]:
        """What must be read from the student."""
        return frozenset(term.site for term in self.terms)

    @property
    def teacher_sites(self) -> frozenset[Site]:
        """What must be collected from the teacher."""
        return frozenset(term.site for term in self.terms if term.needs_teacher)

    @property
    def aligns(self) -> bool:
        """Whether it only imitates the teacher, so that it can also learn from queries without labels."""
        return all(term.needs_teacher for term in self.terms)


PRIME = Stage((Term("attn_out", "nmse"),))
SOFT = Stage((Term("logits", "kl"),))
FINETUNE = Stage((Term("logits", "ce"),))

# Every leading part of a method is a method too: an adapter is named by the stages that it went through.
METHODS: dict[str, tuple[Stage, ...]] = {
    "sft": (FINETUNE,),
    "soft": (SOFT,),
    "ia2": (PRIME,),
    "ia2-sft": (PRIME, FINETUNE),
}


def stages_of(method: str, loss: str) -> dict[str, Stage]:
    """The stages of a method by the name of the adapter that each yields, with `loss` where activations are aligned."""
    stages = METHODS[choose("method", method, METHODS)]
    choose("loss", loss, ALIGNMENT_LOSSES)
    names = {parts: name for name, parts in METHODS.items()}
    return {names[stages[: i + 1]]: _with_loss(stage, loss) for i, stage in enumerate(stages)}


def _with_loss(stage: Stage, loss: str) -> Stage:
    return Stage(tuple(replace(t, loss=loss) if t.site == "attn_out" else t for t in stage.terms))
