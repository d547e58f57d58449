"""Counts equal those of the makers' own packages, on real vocabularies and in every script."""

import codecs
import unicodedata
from pathlib import Path

import pytest

from steelyard.counting.fast_path import FastTokenizer
from steelyard.counting.known_tokenizers import count_probes, known_by_model, known_tokenizers
from steelyard.counting.probe_texts import PROBES, generated_texts
from steelyard.metering.tokenizer import TextNotEncodable
from tests.counting.makers import makers_encode
from tests.counting.vocabularies import VOCABULARIES, fast, found, reference, vocabulary_bytes

NAMES = sorted(VOCABULARIES)
# What the makers' packages say of one short text in six scripts; a changed vocabulary changes them.
GOLDEN_TEXT = "Pay 北京 إلى 東京 👨‍👩‍👧 ok"
GOLDEN_IDS = {
    "cl100k": [
        21243,
        95405,
        245,
        47653,
        86253,
        84659,
        61696,
        109,
        47653,
        62904,
        101,
        378,
        235,
        9468,
        239,
        102,
        378,
        235,
        9468,
        239,
        100,
        5509,
    ],
    "deepseek-v3": [
        25694,
        223,
        6127,
        11287,
        223,
        66771,
        52780,
        104,
        46088,
        25730,
        105,
        46088,
        25730,
        103,
        9109,
    ],
    "llama-2": [
        14617,
        29871,
        30662,
        30675,
        29871,
        30754,
        30138,
        30480,
        29871,
        30591,
        30675,
        29871,
        243,
        162,
        148,
        171,
        30722,
        243,
        162,
        148,
        172,
        30722,
        243,
        162,
        148,
        170,
        3431,
    ],
    "llama-3": [
        21243,
        110536,
        101095,
        119109,
        62904,
        101,
        102470,
        9468,
        239,
        102,
        102470,
        9468,
        239,
        100,
        5509,
    ],
    "mistral-v1": [
        9260,
        28705,
        29799,
        29936,
        28705,
        29834,
        28933,
        29591,
        28705,
        30366,
        29936,
        28705,
        243,
        162,
        148,
        171,
        29274,
        243,
        162,
        148,
        172,
        29274,
        243,
        162,
        148,
        170,
        3614,
    ],
    "o200k": [15753, 15439, 7179, 185244, 61138, 101, 2524, 28823, 102, 2524, 28823, 100, 4763],
    "qwen": [
        20595,
        94305,
        245,
        46553,
        128252,
        60596,
        109,
        46553,
        61804,
        101,
        378,
        235,
        145233,
        378,
        235,
        145665,
        5394,
    ],
    "tekken": [
        36807,
        60007,
        12513,
        2910,
        48798,
        119685,
        1145,
        1168,
        29568,
        1240,
        1159,
        1145,
        1169,
        29568,
        1240,
        1159,
        1145,
        1167,
        5913,
    ],
}
# Those whose vocabulary the fast path cannot hold are counted by the reference library.
WITHOUT_FAST_PATH = {"llama-3", "tekken"}


@pytest.mark.parametrize("name", NAMES)
def test_a_vocabulary_gives_its_golden_ids(name: str, vocabulary_folder: Path) -> None:
    tokenizer = reference(name, vocabulary_folder)

    assert tokenizer.encode(GOLDEN_TEXT) == GOLDEN_IDS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_ids_equal_the_makers_on_every_kind_of_text(name: str, vocabulary_folder: Path) -> None:
    _compare(name, vocabulary_folder, seed=11, count=300)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_ids_equal_the_makers_on_ten_thousand_texts(name: str, vocabulary_folder: Path) -> None:
    _compare(name, vocabulary_folder, seed=20_261_125, count=10_000)


@pytest.mark.parametrize("name", NAMES)
def test_streamed_pieces_join_to_the_decoded_whole(name: str, vocabulary_folder: Path) -> None:
    tokenizer = reference(name, vocabulary_folder)
    texts = [*(probe.text for probe in PROBES), *generated_texts(5, 200)]
    # Qwen brings text to Unicode's composed form before it counts.
    wanted = [unicodedata.normalize("NFC", text) for text in texts] if name == "qwen" else texts

    streamed: list[str] = []
    for text in texts:
        decoder = codecs.getincrementaldecoder("utf-8")()
        pieces = tokenizer.pieces(tokenizer.encode(text))
        streamed.append(
            "".join(decoder.decode(piece) for piece in pieces) + decoder.decode(b"", True)
        )

    assert streamed == wanted


@pytest.mark.parametrize("name", NAMES)
def test_half_of_a_surrogate_pair_is_refused_and_never_counted(
    name: str, vocabulary_folder: Path
) -> None:
    tokenizer = fast(name, vocabulary_folder)

    for text in ("\ud83d", "ok \udc00 ok", "\udc00\ud83d"):
        with pytest.raises(TextNotEncodable):
            tokenizer.count(text)
        with pytest.raises(TextNotEncodable):
            tokenizer.encode(text)


@pytest.mark.parametrize("name", NAMES)
def test_the_fast_path_is_on_wherever_it_can_hold_the_vocabulary(
    name: str, vocabulary_folder: Path
) -> None:
    is_fast = isinstance(fast(name, vocabulary_folder), FastTokenizer)

    assert is_fast is (name not in WITHOUT_FAST_PATH)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_known_of_a_vocabulary_is_what_it_counts(
    name: str, vocabulary_folder: Path
) -> None:
    files = found(name, vocabulary_folder)

    assert files.known_as == name
    assert count_probes(reference(name, vocabulary_folder)) == known_tokenizers()[name].probe_counts


def test_the_probes_tell_every_two_vocabularies_apart_and_english_does_not() -> None:
    counts = {name: known.probe_counts for name, known in known_tokenizers().items()}
    english = [probe.name for probe in PROBES].index("english")

    assert len({tuple(c) for c in counts.values()}) == len(counts)
    assert len({c[english] for c in counts.values()}) < len(counts)


@pytest.mark.parametrize(
    ("model", "vocabulary"),
    [
        ("gpt-4", "cl100k"),
        ("gpt-4o-mini", "o200k"),
        ("openai/gpt-4.1", "o200k"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2"),
        ("Meta-Llama-3.1-8B-Instruct", "llama-3"),
        ("DeepSeek-R1", "deepseek-v3"),
        ("deepseek-r1-distill-qwen-7b", "qwen"),
        ("Qwen2.5-7B", "qwen"),
        ("mistralai/Mistral-7B-v0.1", "mistral-v1"),
        ("SmolLM2-135M-Instruct", "smollm2"),
    ],
)
def test_a_models_name_says_its_vocabulary(model: str, vocabulary: str) -> None:
    known = known_by_model(model)

    assert known is not None
    assert known.name == vocabulary


def test_a_name_that_says_nothing_is_not_guessed_at() -> None:
    assert known_by_model("our-own-model") is None
    assert known_by_model("qwen3.5-max") is None


def _compare(name: str, folder: Path, *, seed: int, count: int) -> None:
    makers, ours, quick = makers_encode(name, folder), reference(name, folder), fast(name, folder)
    compared = 0
    for text in generated_texts(seed, count):
        ids = makers(text)
        assert ours.encode(text) == ids, f"{name}: other ids for {text!a}"
        assert quick.count(text) == len(ids), f"{name}: another count for {text!a}"
        compared += 1
    assert compared == count
    assert vocabulary_bytes(name)
