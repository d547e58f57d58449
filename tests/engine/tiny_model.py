"""A very small random model with a real byte-level tokenizer, made in a second or two."""

import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT = 2048
_TEXT = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "A gateway counts every token, holds the money, and settles when the answer is done.",
    "你好，世界。今天天气很好，我们一起去公园散步吧。北京是中国的首都。",
    "def add(first: int, second: int) -> int:\n    return first + second\n",
    "for i in range(10):\n    print(i, i * i)\n",
    "Émile a mangé une crème brûlée 🍮 à Genève 🙂.",
]
_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_EOS_ID = _SPECIALS.index("<|im_end|>")
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tiny_model(folder: Path) -> Path:
    """Build the model into `folder`, the same weights every time, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _make_tokenizer()
    tokenizer.save_pretrained(folder)
    model = _make_weights(len(tokenizer), eos_token_id=_EOS_ID)
    model.save_pretrained(folder)
    return folder


def copy_tiny_model(tiny_model: Path, folder: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_model, folder))


def _make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=_SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _make_weights(vocabulary_size: int, *, eos_token_id: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        # Wide weights, so that logits differ clearly and rounding cannot swap the best two.
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=eos_token_id,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20240607)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=eos_token_id, pad_token_id=0)
    return model.eval()
