"""The words of an invoice's renderings, in English and in Chinese; the document itself has none."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

from steelyard.metering import usage

Language = Literal["en", "zh"]

_MONTHS: Final = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)

# Each word in English and in Chinese.
_WORDS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "invoice": ("Invoice", "账单"),
        "credit_note": ("Credit note", "贷项通知单"),
        "corrects": ("Corrects invoice", "更正账单"),
        "payer": ("Payer", "付款方"),
        "credited": ("Credited", "贷记金额"),
        "off_debts": ("Taken off what is owed", "冲抵欠款"),
        "credited_left": (
            "Of what the invoice billed this payer, {0} {1} is left.",
            "该账单向付款方收取的金额尚余 {0} {1}。",
        ),
        "number": ("Number", "编号"),
        "billed_to": ("Billed to", "客户"),
        "period": ("Period", "账期"),
        "issued": ("Issued", "出具日期"),
        "currency": ("Currency", "币种"),
        "time_zone": ("Time zone", "时区"),
        "requests": ("Requests", "请求数"),
        "until": ("{0} to {1}", "{0}至{1}"),
        "total": ("Total", "合计"),
        "from_balance": ("Paid from the balance", "余额已支付"),
        "to_balance": ("Returned to the balance", "退回余额"),
        "to_pay": ("To pay", "应付金额"),
        "in_favour": ("In your favour", "贵方贷项余额"),
        "usage": ("Usage", "用量费用"),
        "not_covered": ("Beyond what was set aside, not charged", "超出预留金额，未收取"),
        "promotional": ("Promotional credit", "赠送额度抵扣"),
        "adjusted": ("Adjustments", "调整"),
        "net": ("Net", "未税金额"),
        "tax": ("Tax {0} %", "税额（{0} %）"),
        "rounding": ("Rounding", "舍入"),
        "carried_forward": ("Rounding carried forward", "结转至下期的舍入"),
        "summary": ("Summary", "汇总"),
        "usage_detail": ("Usage in detail", "用量明细"),
        "late": (
            "Used in an earlier period, too late for invoice {0}",
            "前期用量（未及计入账单 {0}）",
        ),
        "key": ("key {0}", "密钥 {0}"),
        "model": ("Model", "模型"),
        "meter": ("Meter", "计量项"),
        "count": ("Count", "数量"),
        "unit_price": ("Unit price", "单价"),
        "amount": ("Amount", "金额"),
        "per_million": ("{0} / million", "{0} / 百万"),
        "adjustments": ("Adjustments in detail", "调整明细"),
        "date": ("Date", "日期"),
        "kind": ("Kind", "类型"),
        "department": ("Department", "部门"),
        "reference": ("Reference", "参考号"),
        "reason": ("Reason", "原因"),
        "kind.refund": ("Refund", "退款"),
        "kind.correction": ("Correction", "更正"),
        "kind.re_rating": ("Re-rating", "重新计价"),
        "kind.suspense": ("Decision on suspense", "挂账裁定"),
        "nothing": ("Nothing was used in this period.", "本账期内没有用量。"),
        "exact": (
            "Amounts are exact. Only a total is rounded; what that adds is taken off the next one.",
            "各项金额均为精确值，仅合计舍入至币种最小单位；舍入差额在下期抵减。",
        ),
        "document": (
            "This is a rendering of the document with the SHA-256",
            "本文件由具有以下 SHA-256 的原始单据生成：",
        ),
        "page": ("Page {0} of {1}", "第 {0} 页，共 {1} 页"),
    }
)

_METERS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        usage.INPUT_TEXT: ("Input tokens", "输入 token"),
        usage.INPUT_TEXT_CACHE_READ: ("Input tokens, from cache", "输入 token（缓存命中）"),
        usage.INPUT_TEXT_CACHE_WRITE: ("Input tokens, to cache", "输入 token（写入缓存）"),
        usage.INPUT_TEXT_CACHE_WRITE_1H: (
            "Input tokens, to cache for an hour",
            "输入 token（写入 1 小时缓存）",
        ),
        usage.INPUT_AUDIO_TOKENS: ("Audio input tokens", "音频输入 token"),
        usage.INPUT_AUDIO_TOKENS_CACHE_READ: (
            "Audio input tokens, from cache",
            "音频输入 token（缓存命中）",
        ),
        usage.INPUT_AUDIO_SECONDS: ("Audio input, seconds", "音频输入（秒）"),
        usage.INPUT_IMAGE_TOKENS: ("Image input tokens", "图像输入 token"),
        usage.INPUT_IMAGE_TOKENS_CACHE_READ: (
            "Image input tokens, from cache",
            "图像输入 token（缓存命中）",
        ),
        usage.INPUT_CHARACTERS: ("Input characters", "输入字符"),
        usage.OUTPUT_TEXT: ("Output tokens", "输出 token"),
        usage.OUTPUT_TEXT_REASONING: ("Reasoning tokens", "推理 token"),
        usage.OUTPUT_AUDIO_TOKENS: ("Audio output tokens", "音频输出 token"),
        usage.OUTPUT_AUDIO_CHARACTERS: ("Spoken characters", "语音合成字符"),
        usage.OUTPUT_TRANSCRIPT_TOKENS: ("Transcript tokens", "语音转写 token"),
        usage.OUTPUT_TRANSCRIPT_CHARACTERS: ("Transcript characters", "语音转写字符"),
        usage.OUTPUT_IMAGE_COUNT: ("Images", "图像（张）"),
        usage.OUTPUT_IMAGE_STEPS: ("Image steps", "图像生成步数"),
        usage.OUTPUT_IMAGE_PIXELS: ("Image pixels", "图像像素"),
        usage.OUTPUT_IMAGE_WIDTH: ("Image width", "图像宽度"),
        usage.OUTPUT_IMAGE_HEIGHT: ("Image height", "图像高度"),
        usage.OUTPUT_IMAGE_TOKENS: ("Image output tokens", "图像输出 token"),
        usage.SEARCH: ("Web searches", "联网搜索"),
        usage.CACHE_HIT: ("Answers from the cache", "缓存应答"),
        usage.CALL: ("Requests", "请求"),
        usage.ITEM: ("Batch items", "批处理条目"),
        usage.ENGINE_GPU_MICROSECONDS: ("GPU microseconds", "GPU 微秒"),
        usage.ENGINE_CPU_MICROSECONDS: ("CPU microseconds", "CPU 微秒"),
    }
)


class Words:
    """What an invoice is told with, in one language."""

    def __init__(self, language: Language) -> None:
        self.language: Final = language
        self._column = ("en", "zh").index(language)

    def say(self, word: str, *values: object) -> str:
        return _WORDS[word][self._column].format(*values)

    def adjustment(self, kind: str) -> str:
        """The name of a kind of adjustment."""
        return self.say(f"kind.{kind}")

    def meter(self, meter: str) -> str:
        """What a meter counts; a meter that is not ours has its own name."""
        names = _METERS.get(meter)
        return names[self._column] if names else meter

    def day(self, year: int, month: int, day: int) -> str:
        if self.language == "zh":
            return f"{year}年{month}月{day}日"
        return f"{day} {_MONTHS[month - 1]} {year}"
