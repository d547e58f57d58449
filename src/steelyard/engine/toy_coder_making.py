"""Makes the weights of toy-coder: `python -m steelyard.engine.toy_coder_making FOLDER`.

It writes its own small functions, so it needs no data. The weights that are shipped came from this,
in some minutes on two cores; it fills in what is missing between a beginning and an end of them.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from steelyard.engine.fill_in import KNOWN_MARKS

CONTEXT: Final = 1024
_END: Final = "<|endoftext|>"
_MARKS: Final = KNOWN_MARKS[0]
_BATCH: Final = 24
_TOKENS_MAX: Final = 80
_LEARNING_RATE: Final = 3e-3
# What transformers leaves out of the loss.
_NOT_LEARNT: Final = -100
_VERBS: Final = {
    "add": "{a} + {b}",
    "subtract": "{a} - {b}",
    "multiply": "{a} * {b}",
    "divide": "{a} / {b}",
    "power": "{a} ** {b}",
    "larger": "max({a}, {b})",
    "smaller": "min({a}, {b})",
    "is_equal": "{a} == {b}",
    "join": "[*{a}, *{b}]",
}
_ONE: Final = {
    "double": "{a} * 2",
    "square": "{a} * {a}",
    "half": "{a} / 2",
    "negate": "-{a}",
    "length": "len({a})",
    "head": "{a}[0]",
    "last": "{a}[-1]",
    "add_up": "sum({a})",
    "upper": "{a}.upper()",
    "is_empty": "not {a}",
}
# Two names that are used together; each stands in one pair alone.
_PAIRS: Final = (
    ("a", "b"),
    ("x", "y"),
    ("left", "right"),
    ("first", "second"),
    ("price", "count"),
    ("items", "item"),
    ("text", "part"),
)


def write_function(chance: random.Random) -> str:
    """A small function of Python, as it stands in a file."""
    a, b = chance.choice(_PAIRS)
    if chance.random() < 0.45:
        verb, returned = chance.choice(list(_VERBS.items()))
        head = f"def {verb}({a}, {b}):"
        body = [f"return {returned.format(a=a, b=b)}"]
    elif chance.random() < 0.6:
        verb, returned = chance.choice(list(_ONE.items()))
        head = f"def {verb}({a}):"
        body = [f"return {returned.format(a=a)}"]
    elif chance.random() < 0.5:
        head = f"def show({a}):"
        body = [f"for {b} in {a}:", f"    print({b})"]
    else:
        head = f"def count({a}):"
        body = ["total = 0", f"for {b} in {a}:", "    total += 1", "return total"]
    return "\n".join([head, *(f"    {line}" for line in body)]) + "\n"


def cut(text: str, chance: random.Random) -> tuple[str, str, str]:
    """A beginning, an end, and what is missing between them: the rest of a line, or lines."""
    start = chance.randrange(4, len(text))
    line_end = text.index("\n", start)
    end = line_end if chance.random() < 0.8 else chance.randrange(start, len(text))
    return text[:start], text[end:], text[start:end]


def _write_sample(chance: random.Random) -> str:
    text = "\n\n".join(write_function(chance) for _ in range(chance.choice([1, 1, 1, 2])))
    if chance.random() < 0.15:
        return text + _END
    prefix, suffix, middle = cut(text, chance)
    return _MARKS.write(prefix, suffix) + middle + _END


def make_tokenizer(chance: random.Random) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=[_END, *_MARKS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([write_function(chance) for _ in range(4_000)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_END,
        pad_token=_END,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def train(steps: int, *, seed: int) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A trained model with its tokenizer."""
    chance = random.Random(seed)
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(chance)
    model = LlamaForCausalLM(_config(len(tokenizer))).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=_LEARNING_RATE, total_steps=steps
    )
    for step in range(steps):
        texts = [_write_sample(chance) for _ in range(_BATCH)]
        fed: Any = tokenizer(
            texts, padding=True, truncation=True, max_length=_TOKENS_MAX, return_tensors="pt"
        )
        targets = _targets(fed["input_ids"], fed["attention_mask"], tokenizer)
        output: Any = model(
            input_ids=fed["input_ids"], attention_mask=fed["attention_mask"], labels=targets
        )
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 25 == 0:
            sys.stderr.write(f"step {step} of {steps}: loss {output.loss.item():.4f}\n")
    return model.eval(), tokenizer


def _targets(
    token_ids: torch.Tensor, mask: torch.Tensor, tokenizer: PreTrainedTokenizerFast
) -> torch.Tensor:
    """What is to be learnt: all of a plain text, of others what is filled in, and where it ends."""
    is_middle = torch.eq(token_ids, tokenizer.get_added_vocab()[_MARKS.middle])
    is_given = is_middle.flip(1).cumsum(1).flip(1) > 0
    return token_ids.masked_fill(is_given | (mask == 0), _NOT_LEARNT)


def _config(vocabulary_size: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=7)
    chosen = parser.parse_args()
    shutil.rmtree(chosen.folder, ignore_errors=True)
    model, tokenizer = train(chosen.steps, seed=chosen.seed)
    model.generation_config = GenerationConfig(
        eos_token_id=0, pad_token_id=0, do_sample=True, temperature=0.2
    )
    tokenizer.save_pretrained(chosen.folder)
    # Half precision is enough for what is kept; the engine computes in single.
    model.half().save_pretrained(chosen.folder)


if __name__ == "__main__":
    main()
