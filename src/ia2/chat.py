"""Chat templates as pieces of text: what stands around a question and its answer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ia2.errors import IA2Error, choose

Chat = Literal["none", "turns", "message"]
CHATS: tuple[Chat, ...] = get_args(Chat)
QUESTION, ANSWER = "Whither?", "Thither."  # found again in what a template renders


@dataclass(frozen=True)
class ChatFormat:
    """How a chat template renders `start question to_answer answer between question to_answer answer end`.

    Attributes:
        style: whether each demo is a turn (`turns`), or all demos and the query are one message (`message`).
        start: before the first question, a default system text and BOS included.
        to_answer: between a question and its answer; where generation begins.
        between: between an answer and the next question.
        end: behind an answer: what ends the turn.
        trims: whether outer spaces of a question or an answer are dropped.
        system: what stands around a system text, up to the first question; None where the template has no such role.
    """

    style: Chat
    start: str
    to_answer: str
    between: str
    end: str
    trims: bool
    system: tuple[str, str] | None

    def opening(self, text: str) -> tuple[str, ...]:
        """What comes before the first question, with a text that the conversation begins with."""
        if not text:
            return (self.start,)
        return (self.system[0], text, self.system[1]) if self.system else (self.start, text, "\n\n")


def find_chat(tokenizer: PreTrainedTokenizerBase, style: Chat) -> ChatFormat:
    """Take a tokenizer's chat template apart.

    Raises:
        IA2Error: it has none, or one that does not render a conversation as such pieces.
    """
    choose("chat", style, CHATS)
    if not tokenizer.chat_template:
        raise IA2Error(f"chat is '{style}' and the tokenizer has no chat template; use a chat model, or chat=none")

    def rendered(*messages: tuple[str, str], **more: Any) -> str:
        turns = [{"role": role, "content": content} for role, content in messages]
        return str(tokenizer.apply_chat_template(turns, tokenize=False, **more))

    q, a = ("user", QUESTION), ("assistant", ANSWER)
    start, to_answer = _split(rendered(q, add_generation_prompt=True), QUESTION)
    _, _, end = _split(rendered(q, a), QUESTION, ANSWER)
    _, _, between, _, _ = _split(rendered(q, a, q, a), QUESTION, ANSWER, QUESTION, ANSWER)
    whole = start + QUESTION + to_answer + ANSWER + between + QUESTION + to_answer
    if whole != rendered(q, a, q, add_generation_prompt=True) or not between.startswith(end.rstrip()):
        raise IA2Error(
            "the chat template renders earlier turns unlike the last one, so that demos cannot be turns exactly; "
            "use --set chat=none"
        )
    trims = f" {QUESTION} " not in rendered(("user", f" {QUESTION} "))
    return ChatFormat(style, start, to_answer, between, end, trims, _system(rendered, q))


def _system(rendered: Callable[..., str], question: tuple[str, str]) -> tuple[str, str] | None:
    """What stands around a system text; None where the template refuses or drops that role."""
    try:
        text = rendered(("system", ANSWER), question, add_generation_prompt=True)
    except TemplateError:
        return None
    before, found, rest = text.partition(ANSWER)
    return (before, rest.partition(QUESTION)[0]) if found else None


def _split(text: str, *marks: str) -> list[str]:
    """The pieces between the marks, which stand there in this order, once each."""
    pieces = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            raise IA2Error(f"the chat template changes what it is given ('{mark}' is not in it); use --set chat=none")
        pieces.append(before)
    return [*pieces, text]
