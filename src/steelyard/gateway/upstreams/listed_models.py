"""What a server says of its models, and of the length of a prompt, by any of the protocols."""

import msgspec

from steelyard.gateway.upstreams.base import ListedModel, UpstreamFailed
from steelyard.metering.token_bound import TokenizerFacts


class _Tokenizer(msgspec.Struct):
    tokenizer_sha256: str
    byte_level: bool
    bytes_per_token_max: int
    template_tokens_base: int
    template_tokens_per_message: int
    special_tokens_added: int = 1
    has_chat_template: bool = True
    paths: frozenset[str] | None = None


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None
    steelyard: _Tokenizer | None = None


class _Models(msgspec.Struct):
    data: list[_Model] | None = None


class _Count(msgspec.Struct):
    """A count as our engine and vLLM give it, or as Anthropic does."""

    count: int | None = None
    input_tokens: int | None = None


def read_models(body: bytes, *, upstream: str) -> list[ListedModel]:
    """The models in a list; raises UpstreamFailed."""
    try:
        listed = msgspec.json.decode(body, type=_Models)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UpstreamFailed(f"{upstream} lists its models in a way we cannot read") from error
    return [_listed(model) for model in listed.data or ()]


def read_count(body: bytes, *, upstream: str) -> int:
    """How many tokens a prompt has; raises UpstreamFailed."""
    try:
        counted = msgspec.json.decode(body, type=_Count)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UpstreamFailed(f"{upstream} counts in a way we cannot read") from error
    count = counted.input_tokens if counted.count is None else counted.count
    if count is None or count < 0:
        raise UpstreamFailed(f"{upstream} was asked to count, and gave no count")
    return count


def _listed(model: _Model) -> ListedModel:
    facts = model.steelyard
    if facts is None:
        return ListedModel(model.id, model.max_model_len)
    return ListedModel(
        id=model.id,
        context_tokens_max=model.max_model_len,
        has_chat_template=facts.has_chat_template,
        tokenizer=TokenizerFacts(
            sha256=facts.tokenizer_sha256,
            is_byte_level=facts.byte_level,
            bytes_per_token_max=facts.bytes_per_token_max,
            template_tokens_base=facts.template_tokens_base,
            template_tokens_per_message=facts.template_tokens_per_message,
            special_tokens_added=facts.special_tokens_added,
        ),
        paths=facts.paths,
    )
