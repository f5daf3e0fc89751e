"""Chat templates: pieces that join to exactly what the template renders, and ids that teacher and student share."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GENERATED, LABELS, reasoned_rows
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ia2 import evaluation
from ia2.chat import CHATS
from ia2.config import make_config
from ia2.contexts import Contexts
from ia2.data import parse_examples
from ia2.errors import IA2Error
from ia2.evaluation import StopAt, Variant, answer, generate
from ia2.models import LanguageModel, wrap_model
from ia2.prompt import Encoder, build_prompt
from ia2.run import Data, Run

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>", "<turn>", "</turn>"]
TEMPLATES = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama-3": "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start|>' + m.role + '<|end|>\n\n' + m.content + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}",
    "gemma": "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{{ '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ m.content + '</turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}",
}
DEMOS, ROW = reasoned_rows(4)[:3], reasoned_rows(4)[3]


def build(template: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE, trained on a few texts."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    texts = [f"{row.query}{row.label} user assistant system model" for row in reasoned_rows(20)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


def messages(turns: bool, text: str = "") -> list[dict[str, str]]:
    found = [{"role": "system", "content": text}] if text else []
    if turns:
        for demo in DEMOS:
            found += [{"role": "user", "content": demo.query}, {"role": "assistant", "content": demo.label}]
        return [*found, {"role": "user", "content": ROW.query}]
    shown = "".join(f"{demo.query}{demo.label}\n\n" for demo in DEMOS)
    return [*found, {"role": "user", "content": shown + ROW.query}]


@pytest.mark.parametrize("style", ["turns", "message"])
@pytest.mark.parametrize(
    ("name", "text"), [*((name, "") for name in TEMPLATES), ("chatml", "Be brief."), ("llama-3", "Be brief.")]
)
def test_pieces_join_to_what_the_template_renders(name: str, style: Any, text: str) -> None:
    tokenizer = build(TEMPLATES[name])
    encoder = Encoder(tokenizer, 10**6, style)
    prompt = build_prompt(GENERATED, DEMOS, ROW.query, None, text)
    conversation = messages(style == "turns", text)
    joined = "".join(piece for part in encoder.pieces(prompt) for piece in part)
    assert joined == tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    ids = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
    assert list(encoder.encode(prompt).ids) == ids
    whole = [*conversation, {"role": "assistant", "content": ROW.label}]
    answered = encoder.encode(build_prompt(GENERATED, DEMOS, ROW.query, ROW.label, text))
    assert list(answered.ids) == tokenizer.apply_chat_template(whole, return_dict=False)
    bare = encoder.encode(build_prompt(GENERATED, (), ROW.query, ROW.label))
    n = bare.n_query + bare.n_response
    assert bare.ids[-n:] == answered.ids[-n:]
    assert tokenizer.decode(bare.ids[len(bare.ids) - bare.n_response :]).startswith(ROW.label + (encoder.stop or ""))


@pytest.mark.parametrize("name", ["chatml", "llama-3"])
def test_a_row_of_messages_is_rendered_as_the_template_renders_it(name: str) -> None:
    turns = [*messages(turns=False, text="Be brief."), {"role": "assistant", "content": ROW.label}]
    (row,) = parse_examples(json.dumps({"messages": turns}), "x")
    tokenizer = build(TEMPLATES[name])
    encoder = Encoder(tokenizer, 10**6, "turns")
    teacher = Contexts(()).prompt(GENERATED, row, row.label, np.random.default_rng(0))
    student = build_prompt(GENERATED, (), row.query, row.label)
    for prompt, conversation in ((teacher, turns), (student, turns[1:])):
        assert list(encoder.encode(prompt).ids) == tokenizer.apply_chat_template(conversation, return_dict=False)


def test_a_text_without_a_system_role_begins_the_first_message() -> None:
    encoder = Encoder(build(TEMPLATES["gemma"]), 10**6, "turns")
    pieces = encoder.pieces(build_prompt(LABELS, (), ROW.query, "1", "Be brief."))
    assert (
        "".join(piece for part in pieces for piece in part)
        == f"<s><turn>user\nBe brief.\n\n{ROW.query}</turn>\n<turn>model\n1"
    )


def test_a_template_that_drops_outer_spaces_is_followed() -> None:
    tokenizer = build(TEMPLATES["chatml"].replace("m.content", "(m.content | trim)"))
    encoder = Encoder(tokenizer, 10**6, "turns")
    prompt = build_prompt(LABELS, (), f" {ROW.query} ", " 1")
    text = "".join(piece for part in encoder.pieces(prompt) for piece in part)
    assert text == f"<|im_start|>user\n{ROW.query}<|im_end|>\n<|im_start|>assistant\n1"
    turns = [{"role": "user", "content": prompt.query}]
    assert text == tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) + "1"
    n = encoder.encode(prompt).n_response
    assert encoder.label_ids((" 1", " 0"))[0] == list(encoder.encode(prompt).ids[-n:])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "the tokenizer has no chat template"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "changes what it is given"),
        ("{% for m in messages %}{{ loop.index ~ m.content ~ '.' }}{% endfor %}", "earlier turns unlike the last one"),
    ],
)
def test_a_template_that_cannot_be_taken_apart_is_refused(template: str | None, message: str) -> None:
    tokenizer = build(TEMPLATES["chatml"])
    tokenizer.chat_template = template
    with pytest.raises(IA2Error, match=message):
        Encoder(tokenizer, 99, "turns")


def chat_model(style: Any) -> LanguageModel:
    tokenizer = build(TEMPLATES["chatml"])
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=2048, **shape))
    return wrap_model(base, tokenizer, style)


def test_a_generated_turn_ends_where_the_template_ends_it() -> None:
    lm = chat_model("turns")
    (end,) = lm.encoder.piece("<|im_end|>")
    with torch.no_grad():  # a model that always says the same token, then the end of the turn
        lm.base.lm_head.weight.zero_()
    calls = iter([3 * [40], 3 * [end], 3 * [40]])
    lm.base.lm_head.register_forward_hook(
        lambda module, args, out: torch.nn.functional.one_hot(torch.tensor(next(calls)), out.shape[-1]).float()[:, None]
    )
    rows = [lm.encoder.encode(build_prompt(GENERATED, (), "soup")) for _ in range(3)]
    assert generate(lm, rows, GENERATED) == 3 * [[40, end]]


def test_a_separator_of_many_tokens_is_seen() -> None:
    tokenizer = build(TEMPLATES["chatml"])
    ids = list(tokenizer("soup。。", add_special_tokens=False).input_ids)
    stop = StopAt(tokenizer, "。。", 0)
    assert [n for n in range(1, len(ids) + 1) if stop.ends(ids[:n])] == [len(ids)]


def test_a_turn_that_another_token_ends_is_read_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = chat_model("turns")
    lm.base.generation_config.eos_token_id = lm.encoder.piece("</s>")
    ids = lm.encoder.piece("soup</s>")
    monkeypatch.setattr(evaluation, "generate", lambda lm, rows, *_: [ids for _ in rows])
    assert [given.text for given in answer(lm, GENERATED, [ROW], Variant("zero-shot"))] == ["soup"]


@pytest.mark.parametrize("style", CHATS)
def test_a_whole_run_of_each_style(style: Any, tmp_path: Path) -> None:
    lm = chat_model(style)
    options = {"model": "chat", "chat": style, "labels": ("0", "1"), "num_train_epochs": 1, "learning_rate": (1e-2,)}
    rows = [replace(row, response=str(i % 2)) for i, row in enumerate(reasoned_rows(6))]
    run = Run.create(tmp_path / "run", make_config(options), Data(rows[:4], rows[4:]))
    run.train(lm)
    metrics = run.evaluate(rows[4:], lm)
    assert metrics["methods"]["icl"]["tokens_per_query"] > metrics["methods"]["ia2-sft"]["tokens_per_query"]
    texts = answer(lm, GENERATED, rows[:2], Variant("zero-shot"))
    assert all("<|im_end|>" not in given.text for given in texts)
