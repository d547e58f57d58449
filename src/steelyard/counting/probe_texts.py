"""Texts that tell vocabularies apart. English alone cannot: there most agree within two per cent."""

import random
from collections.abc import Iterator
from typing import Final, NamedTuple


class Probe(NamedTuple):
    """A text and what it is good for. No probe begins or ends with white space: templates strip."""

    name: str
    text: str


PROBES: Final = (
    Probe(
        "english", "The invoice for 342 hours is due on the 15th; please pay it by bank transfer."
    ),
    Probe(
        "chinese",
        "北京是中国的首都，也是一座有三千多年历史的城市。我们按照模型实际处理的词元数量计费。",
    ),
    Probe("traditional chinese", "請問這張發票什麼時候到期？我們希望依照實際使用量付款。"),
    Probe("japanese", "東京タワーの近くで、おいしいラーメンを食べました。請求書をお送りください。"),
    Probe("korean", "서울의 날씨는 오늘 아주 맑습니다. 청구서를 보내 주세요."),
    Probe("arabic", "الفاتورة مستحقة الدفع في نهاية الشهر، وشكرًا لتعاونكم معنا."),
    Probe("hindi", "कृपया इस महीने का बिल समय पर जमा करें।"),
    Probe("thai", "กรุณาชำระเงินภายในสิ้นเดือนนี้"),
    Probe("accents", "Übergrößenträger où l’été naïf coûte 9,50 €; smørrebrød, żółć, ěščřž."),
    Probe("emoji with joiners", "ok 👨‍👩‍👧‍👦 🏳️‍🌈 👩🏽‍🔬 ❤️‍🔥 🇩🇪🇨🇳 done"),
    Probe(
        "code", "def f(x: int) -> str:\n\tif x >= 10_000:\n        return f'{x:,}'  # ok\n\n\n    y"
    ),
    Probe("white space", "a  b   c    d\t\te\n\n\nf\r\n\r\ng \u00a0 h\u3000i"),
    Probe("digits", "1 22 333 4444 55555 666666 3.14159265 0x7fff 2026-11-25T12:00:00Z"),
    Probe("control characters", "x\x00\x01\x07\x1b[0m\x7fy\u200b\u200e\ufeffz\ufffd"),
    Probe("a long word", "Donaudampfschifffahrtsgesellschaftskapitän" * 3 + "0" * 40 + "=" * 33),
    Probe("special names", "say <s> and </s> and [INST] and <unk> aloud"),
)

# What generated texts are made of: characters of each script, and stretches that break merges.
_RANGES: Final = (
    (0x4E00, 0x9FA5),
    (0x3041, 0x30FE),
    (0x0621, 0x064A),
    (0xAC00, 0xD7A3),
    (0x0410, 0x044F),
    (0x0904, 0x0939),
    (0x0E01, 0x0E3A),
    (0x00C0, 0x017F),
    (0x1F600, 0x1F64F),
    (0x20, 0x7E),
)
_STRETCHES: Final = (
    *(" ", "  ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u3000", "    ", " \n "),
    *("👨‍👩‍👧‍👦", "🏳️‍🌈", "👩🏽‍🔬", "\u200d", "\ufe0f", "🇯🇵", "e\u0301", "\u0651"),
    *("'s", "'LL", "’t", "don't", "I'm", "the", " of", "ing", "Invoice", "TOKEN", "camelCase"),
    *("def ", "return ", "!=", "->", "::", "</div>", "{{", "}}", "//", "#!/bin/sh", "\\n", "```"),
    *("0", "12", "345", "6789", "1,000.50", "٣٤", "Ⅷ", "½", "０１", "x²", "ſ"),
    *("\x00", "\x01", "\x1b", "\x7f", "\u200b", "\ufeff", "\ufffd", "\U0010fffd", "\ue000"),
    *("。", "，", "「", "…", "—", "¿", "€", "$", "%", "_", "--", "***", "||"),
)


def generated_texts(seed: int, count: int) -> Iterator[str]:
    """Texts of every script and kind, the same for the same seed; one in sixteen is very long."""
    rng = random.Random(seed)
    for number in range(count):
        length = rng.randint(120, 400) if number % 16 == 15 else rng.randint(1, 24)
        yield "".join(_stretch(rng) for _ in range(length))


def _stretch(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.45:
        return rng.choice(_STRETCHES)
    if kind < 0.55:
        # A long word, and a long run of one character.
        letters = "abcdefghijklmnopqrstuvwxyz"
        word = "".join(rng.choice(letters) for _ in range(rng.randint(1, 30)))
        return word if kind < 0.54 else rng.choice("aあ你 \n=0-") * rng.randint(2, 60)
    first, last = rng.choice(_RANGES)
    return "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 6)))
