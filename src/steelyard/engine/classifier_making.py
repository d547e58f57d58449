"""Makes the small classifiers that ship as a recipe: trained once, in some twenty seconds, from a seed.

`python -m steelyard.engine.classifier_making NAME FOLDER` makes one by hand.
"""

import random
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from filelock import FileLock
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from steelyard.engine.classifier_texts import AFTER, BEFORE, MODERATION, TICKETS
from steelyard.engine.model_manifest import MANIFEST_NAME, write_manifest

Progress = Callable[[str], None]
# Counted up when the recipe changes: an older one is not used again.
RECIPE: Final = 1
CONTEXT: Final = 256
_SPECIALS: Final = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
_STEPS: Final = 300
_TEXTS_A_STEP: Final = 48
_LEARNING_RATE: Final = 3e-3
_SEED: Final = 20261125
_LETTERS: Final = "eeeaaiioottnnsshrdlucmfwygpbvk"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Phrases by label; where labels are independent, the label \"\" is for texts with none."""

    phrases: Mapping[str, tuple[str, ...]]
    are_independent: bool

    @property
    def labels(self) -> list[str]:
        return sorted(label for label in self.phrases if label)


RECIPES: Final = {
    "ticket-classifier": Recipe(TICKETS, are_independent=False),
    "text-moderation": Recipe(MODERATION, are_independent=True),
}


def made_classifier(name: str, models_dir: Path, *, progress: Progress) -> Path:
    """The folder of a classifier, which is made if it is not there."""
    folder = models_dir / f"{name}-{RECIPE}"
    if (folder / MANIFEST_NAME).is_file():
        return folder
    models_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(models_dir / f"{folder.name}.lock"):
        if not (folder / MANIFEST_NAME).is_file():
            progress(f"training {name} once, some twenty seconds")
            make_classifier(name, folder)
            progress(f"made {folder}")
    return folder


def make_classifier(name: str, folder: Path) -> None:
    """Train a classifier into a folder: the same weights every time on one machine."""
    temporary = folder.with_name(folder.name + ".making")
    for leftover in (temporary, folder):
        shutil.rmtree(leftover, ignore_errors=True)
    if name in RECIPES:
        _make_text_classifier(RECIPES[name], temporary)
    else:
        # It draws what it learns from with the packages for images, which texts do not need.
        from steelyard.engine.image_classifier_making import make_image_classifier

        make_image_classifier(temporary)
    write_manifest(temporary, source_name=name, source_sha256="")
    temporary.rename(folder)


def _make_text_classifier(recipe: Recipe, folder: Path) -> None:
    tokenizer = _make_tokenizer(recipe)
    model = _train(recipe, tokenizer)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def _make_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=2_000, special_tokens=_SPECIALS, show_progress=False
    )
    texts = [phrase for phrases in recipe.phrases.values() for phrase in phrases]
    tokenizer.train_from_iterator([*texts, *BEFORE, *AFTER, _LETTERS], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", _SPECIALS.index("[CLS]")), ("[SEP]", _SPECIALS.index("[SEP]"))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=CONTEXT,
    )


def _train(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> BertForSequenceClassification:
    chance = random.Random(_SEED)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = BertForSequenceClassification(_config(recipe, len(tokenizer))).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=_LEARNING_RATE, total_steps=_STEPS
        )
        for _ in range(_STEPS):
            texts, targets = _draw(recipe, chance)
            fed: Any = tokenizer(texts, padding=True, return_tensors="pt")
            output: Any = model(
                input_ids=fed["input_ids"], attention_mask=fed["attention_mask"], labels=targets
            )
            output.loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return model.eval()


def _config(recipe: Recipe, vocabulary_size: int) -> BertConfig:
    labels = recipe.labels
    config = BertConfig(
        vocab_size=vocabulary_size,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=CONTEXT,
        hidden_dropout_prob=0.2,
        attention_probs_dropout_prob=0.1,
    )
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    config.problem_type = (
        "multi_label_classification" if recipe.are_independent else "single_label_classification"
    )
    return config


def _draw(recipe: Recipe, chance: random.Random) -> tuple[list[str], torch.Tensor]:
    """Texts of a step with what they are; some are two phrases."""
    texts: list[str] = []
    targets: list[list[float]] = []
    names = list(recipe.phrases)
    for _ in range(_TEXTS_A_STEP):
        label = chance.choice(names)
        chosen = [label]
        if chance.random() < 0.3:
            chosen.append(chance.choice(names) if recipe.are_independent else label)
        parts = [_varied(chance.choice(recipe.phrases[one]), chance) for one in chosen]
        texts.append(" ".join([chance.choice(BEFORE), *parts, chance.choice(AFTER)]))
        targets.append([float(one in chosen) for one in recipe.labels])
    found = torch.tensor(targets)
    return texts, found if recipe.are_independent else found.argmax(dim=-1)


def _varied(phrase: str, chance: random.Random) -> str:
    """The phrase, or the same with a word missing, or with one that nobody knows among it."""
    words = phrase.split()
    if len(words) >= 4 and chance.random() < 0.4:
        del words[chance.randrange(len(words))]
    if chance.random() < 0.4:
        unknown = "".join(chance.choices(_LETTERS, k=chance.randint(3, 9)))
        words.insert(chance.randint(0, len(words)), unknown)
    return " ".join(words)


if __name__ == "__main__":
    make_classifier(sys.argv[1], Path(sys.argv[2]))
