"""One token a word, a label, or a piece of a template; spaces are not tokens."""

import re

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ia2.world.text import BOS, ID, SPECIAL, STOP, TEMPLATE

MAX_LENGTH = 1152


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of both models: unknown words become `<unk>`, and `<s>` is added where special tokens are."""
    pieces = sorted((piece for piece in TEMPLATE if piece != STOP), key=len, reverse=True)
    pattern = "|".join([*map(re.escape, pieces), r"\n\[\w+\]", r"\n\n", "####", r"\d", "[^\\W\\d]+", r"[^ ]"])
    tokenizer = Tokenizer(models.WordLevel(ID, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="\0", cleanup=False),  # tokens apart by a space,
            decoders.Fuse(),
            decoders.Replace(Regex(r" (?=\n)|(?<=[:\]\n]) "), ""),  # but for those of a template
        ]
    )
    pad, bos, eos, unk = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        model_max_length=MAX_LENGTH,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
