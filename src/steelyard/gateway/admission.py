"""Admission: everything that can say no, in the order of its cost. Ends with a hold."""

from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from steelyard import __version__
from steelyard.access.rate_limit import RequestCounts
from steelyard.access.virtual_key import VirtualKey
from steelyard.billing.budgets import BudgetExceeded
from steelyard.billing.hold_decisions import HoldDeclined
from steelyard.clock import Clock
from steelyard.eventlog.attempt_records import PendingOpening
from steelyard.eventlog.outbox import Outbox
from steelyard.gateway.answer_cache import AnswerCache, CacheUse
from steelyard.gateway.disconnect_policies import DisconnectPolicies
from steelyard.gateway.event_draft import opened_attempt
from steelyard.gateway.growing_hold import GrowingHold
from steelyard.gateway.holding import Holding
from steelyard.gateway.limit_directory import LimitDirectory, LimitsInForce
from steelyard.gateway.model_catalog import ModelCatalog
from steelyard.gateway.prices import PinnedPrices, PriceDirectory
from steelyard.gateway.prompt_counter import PromptCounter
from steelyard.gateway.refusals import (
    AnswerTooLong,
    PromptTooLong,
    SurfaceNotServed,
)
from steelyard.gateway.request_bound import (
    Bound,
    affordable_tokens,
    bound_by_meter,
    bound_of,
    bound_of_hit,
    highest_cost_of,
    too_little,
)
from steelyard.gateway.request_counting import RequestCounting
from steelyard.gateway.routing.deployment import Deployment
from steelyard.gateway.routing.route_plan import RoutePlan, RouteStep
from steelyard.gateway.upstreams.base import ServedModel, Upstream
from steelyard.gateway.upstreams.habits import MESSAGES
from steelyard.gateway.workloads.asked import Asked, Limits, Way
from steelyard.ledger.hold import Hold, HoldScope
from steelyard.metering.token_bound import input_tokens_lower_bound, input_tokens_upper_bound
from steelyard.metering.usage import (
    INPUT_TEXT,
    text_usage,
    tokens_within,
)
from steelyard.metering.usage_event import CountSource, OpenedRecord
from steelyard.money import Money
from steelyard.pricing.rating import rate_usage
from steelyard.timestamp import write_timestamp


class Received(msgspec.Struct, frozen=True):
    """A request, and where it may go. Each try of it is admitted; it is counted once."""

    asked: Asked
    key: VirtualKey
    request_id: str
    plan: RoutePlan
    counting: RequestCounting


class Admitted(msgspec.Struct, frozen=True):
    """An attempt that may run: who, where, at what price, and what is held for it."""

    asked: Asked
    key: VirtualKey
    model: ServedModel
    upstream: Upstream
    upstream_model: str
    way: Way
    pinned: PinnedPrices
    opened: OpenedRecord
    held: GrowingHold
    opening: PendingOpening
    input_tokens_max: int
    output_tokens_max: int
    counting: RequestCounting
    cache: CacheUse

    @property
    def hold(self) -> Hold:
        """What is held now."""
        return self.held.hold

    @property
    def upstream_path(self) -> str:
        return self.upstream.habits.path_for(self.way.path, model=self.upstream_model)

    def upstream_body(self) -> bytes:
        each = self.output_tokens_max // max(1, self.asked.choice_count)
        return self.way.upstream_body(
            model=self.upstream_model,
            is_streamed=self.asked.is_streamed,
            limits=Limits(self.input_tokens_max, each),
            habits=self.upstream.habits,
            tenant=self.opened.organisation_id,
        )


@dataclass(frozen=True, slots=True)
class Quote:
    """What a prompt has in tokens and costs alone, and what it costs at most with its answer."""

    model: ServedModel
    pinned: PinnedPrices
    count_source: CountSource
    input_tokens: int
    input_tokens_max: int
    output_tokens_max: int
    prompt_cost: Money
    highest_cost: Money


class _Route(msgspec.Struct, frozen=True):
    """Where a request goes, and at what price."""

    model: ServedModel
    upstream: Upstream
    upstream_model: str
    way: Way
    pinned: PinnedPrices

    @property
    def can_count(self) -> bool:
        """Whether the upstream counts prompts that are put to it in this way."""
        counts_at = self.upstream.habits.counts_at
        return counts_at == "tokenize" or (counts_at == "messages" and self.way.path == MESSAGES)

    async def count(self, asked: Asked) -> int:
        """Exactly as many tokens as the model will see, but for those that are no text."""
        body = self.way.count_body(model=self.upstream_model)
        counted = await self.upstream.count_prompt_tokens(self.way.path, body)
        return counted + asked.size.extra_tokens


@dataclass(frozen=True, slots=True)
class Admission:
    """Admits requests, or refuses them."""

    catalog: ModelCatalog
    prices: PriceDirectory
    limits: LimitDirectory
    counts: RequestCounts
    holding: Holding
    outbox: Outbox
    clock: Clock
    disconnect_policies: DisconnectPolicies
    # Of a stream's answer so many tokens are held for at a time; zero: all of it at once.
    hold_chunk_tokens: int = 0
    prompt_counter: PromptCounter | None = None
    cache: AnswerCache | None = None

    def receive(self, asked: Asked, key: VirtualKey, *, request_id: str) -> Received:
        """Find out where a request may go; raises one of the refusals."""
        self.outbox.check()
        plan = self.catalog.plan(asked)
        return Received(asked, key, request_id, plan, RequestCounting(self.counts))

    async def admit(self, received: Received, step: RouteStep) -> Admitted:
        """Raises one of the refusals, with nothing held, or returns with the money held."""
        asked, key = received.asked, received.key
        route = self._route(asked, key, step.deployment)
        requested = asked.model or received.plan.models[0].name
        # What a key may ask for by an alias, it may not get by a fallback.
        is_first = step.model is received.plan.models[0]
        limits = self.limits.over(
            key, model=route.model.id, asked=asked.model if is_first else None
        )
        output = self._output_tokens(asked, route, limits)
        tokens_max = _tokens_max(asked, route, limits, output)
        await received.counting.count(route.model.id, limits.counted, tokens=tokens_max)
        bound = await self._bound(asked, route, limit=limits.input_tokens_max, output=output)
        opened = self._open(asked, key, route, request_id=received.request_id, requested=requested)
        use = CacheUse(route.upstream)
        if self.cache is not None and key.cache_ttl_s is not None:
            use = await self.cache.find(
                route.upstream, asked, route.way, key=key, model_id=route.model.id
            )
        try:
            bound = bound_of_hit(route.pinned) if use.is_hit else bound
            hold, bound = await self._hold(asked, opened, bound, route)
        except BaseException:
            await use.end(is_whole=False)
            raise
        attempt = opened_attempt(
            hold, bound_input=bound.input_tokens, bound_output=bound.output_tokens
        )
        return Admitted(
            asked=asked,
            key=key,
            model=route.model,
            upstream=use.upstream,
            upstream_model=route.upstream_model,
            way=route.way,
            pinned=route.pinned,
            opened=opened,
            held=self._growing(hold, bound, route.pinned),
            # Its way to the disk overlaps with the upstream's own latency. The first byte of an
            # answer that comes whole waits for the event, which is behind it.
            opening=self.outbox.open(attempt, is_awaited=asked.is_streamed),
            input_tokens_max=bound.input_tokens,
            output_tokens_max=bound.output_tokens,
            counting=received.counting,
            cache=use,
        )

    async def quote(self, asked: Asked, key: VirtualKey) -> Quote:
        """Count and price a prompt; refuses as `admit` does, and holds nothing."""
        route = self._route(asked, key, self.catalog.plan(asked).first().deployment)
        limits = self.limits.over(key, model=route.model.id, asked=asked.model)
        output = self._output_tokens(asked, route, limits)
        prices, currency = route.pinned.prices, route.pinned.currency
        counted = await self.counts.count(limits.counted, tokens=0)
        try:
            count = await self._count(asked, route)
        finally:
            counted.end(tokens=0)
        if count is None:
            raise SurfaceNotServed(f"nobody counts the prompts of {route.model.id}")
        bound = bound_of(asked, count, output, is_exact=True)
        usage = text_usage(input_tokens=count, output_tokens=0)
        return Quote(
            model=route.model,
            pinned=route.pinned,
            count_source=route.upstream.count_source if route.can_count else "tokenizer",
            input_tokens=count,
            input_tokens_max=limits.input_tokens_max,
            output_tokens_max=output,
            prompt_cost=rate_usage(usage, prices=prices, currency=currency).total,
            highest_cost=highest_cost_of(bound, route.pinned),
        )

    async def _count(self, asked: Asked, route: _Route) -> int | None:
        """The tokens of a prompt: by its upstream, or else by a registered tokenizer."""
        if route.can_count:
            return await route.count(asked)
        if self.prompt_counter is None:
            return None
        count = await self.prompt_counter.count(route.model.id, route.way.fields())
        return count + asked.size.extra_tokens if count is not None else None

    async def count(self, asked: Asked, key: VirtualKey) -> int:
        """Exactly as many tokens as the model will see; counts against no limit."""
        route = self._route(asked, key, self.catalog.plan(asked).first().deployment)
        count = await self._count(asked, route)
        if count is None:
            raise SurfaceNotServed(f"the server of {route.model.id} does not count prompts")
        return count

    def highest_cost(
        self, asked: Asked, key: VirtualKey, *, input_tokens: int, output_tokens: int
    ) -> Money:
        """What a request with so many tokens costs at most, at the prices of now."""
        route = self._route(asked, key, self.catalog.plan(asked).first().deployment)
        bound = Bound(input_tokens, output_tokens, is_exact=True, extra_tokens=0)
        return highest_cost_of(bound, route.pinned)

    def _output_tokens(self, asked: Asked, route: _Route, limits: LimitsInForce) -> int:
        """The longest answer, all choices together."""
        choices, limit = asked.choice_count, limits.output_tokens_max
        wanted = asked.output_tokens_max or self.limits.defaults.output_tokens_default
        output = min(wanted, route.model.context_tokens_max) * choices
        if limit is None or output <= limit:
            return output
        if asked.output_tokens_max is not None or limit < choices:
            raise AnswerTooLong(
                f"the answer may have {output} tokens; at most {limit} are allowed (max_tokens)"
            )
        return limit // choices * choices

    def _route(self, asked: Asked, key: VirtualKey, deployment: Deployment) -> _Route:
        model, upstream = deployment.served, deployment.upstream
        assert model is not None, "only a deployment that is ready is chosen"
        way = asked.way_over(deployment.paths)
        pinned = self.prices.pin(
            model.id,
            organisation=key.department.organisation,
            is_batch=asked.batch_id is not None,
        )
        return _Route(model, upstream, deployment.upstream_model, way, pinned)

    async def _bound(self, asked: Asked, route: _Route, *, limit: int, output: int) -> Bound:
        """Bytes bound the tokens of most prompts; only one near the limit is counted."""
        if asked.counts_max is not None:
            return bound_by_meter(asked.counts_max, route.pinned)
        is_told_counts = asked.is_streamed and route.upstream.habits.has_running_usage
        chunk = self.hold_chunk_tokens if is_told_counts else 0
        at_least = input_tokens_lower_bound(asked.size, facts=route.model.tokenizer)
        if at_least > limit:
            raise PromptTooLong(
                f"the prompt has at least {at_least} tokens; at most {limit} are allowed"
            )
        at_most = input_tokens_upper_bound(asked.size, facts=route.model.tokenizer)
        if at_most is not None and at_most <= limit:
            return bound_of(asked, at_most, output, is_exact=False, chunk=chunk)
        count = await self._count(asked, route)
        if count is None:
            most = f"up to {at_most}" if at_most is not None else "nobody knows how many"
            raise PromptTooLong(
                f"the prompt may have {most} tokens by its length, and nobody counts those of "
                f"{route.model.id}; at most {limit} are allowed"
            )
        if count > limit:
            raise PromptTooLong(f"the prompt has {count} tokens; at most {limit} are allowed")
        if not route.can_count and at_most is not None:
            # It is within its limit; what it costs at most, its bytes say more safely.
            return bound_of(asked, at_most, output, is_exact=False, chunk=chunk)
        return bound_of(asked, count, output, is_exact=True, chunk=chunk)

    def _open(
        self, asked: Asked, key: VirtualKey, route: _Route, *, request_id: str, requested: str
    ) -> OpenedRecord:
        department = key.department
        return OpenedRecord(
            request_id=request_id,
            organisation_id=department.organisation.id,
            department_id=department.id,
            project_id=key.project.id if key.project else None,
            key_id=key.id,
            payer_id=department.payer_id,
            endpoint=asked.endpoint,
            is_streamed=asked.is_streamed,
            model_requested=requested,
            model_served=route.model.id,
            upstream=route.model.upstream,
            admitted_at=write_timestamp(route.pinned.at),
            price_version=route.pinned.version.sha256,
            currency=route.pinned.currency,
            request_digest=asked.request_digest,
            build=__version__,
            disconnect_policy=self.disconnect_policies.policy_of(
                key, model=route.model.id, is_repeatable=asked.is_repeatable
            ),
            batch_id=asked.batch_id,
            split=msgspec.UNSET if asked.split is None else dict(asked.split),
        )

    async def _hold(
        self, asked: Asked, opened: OpenedRecord, bound: Bound, route: _Route
    ) -> tuple[Hold, Bound]:
        """Hold for the bound; on a thin balance or budget count first, then shorten what may be
        shortened."""
        pinned = route.pinned
        try:
            return await self._place(asked, opened, bound, pinned), bound
        except (HoldDeclined, BudgetExceeded) as error:
            declined = error
        is_text = bool(asked.choice_count or pinned.prices.bearer_of(INPUT_TEXT))
        if not bound.is_exact and is_text and route.can_count:
            bound = replace(bound, input_tokens=await route.count(asked), is_exact=True)
            try:
                return await self._place(asked, opened, bound, pinned), bound
            except (HoldDeclined, BudgetExceeded) as error:
                declined = error
        if not asked.choice_count:
            raise too_little(declined, 0, bound, pinned) from declined
        affordable = affordable_tokens(declined, bound, pinned) // asked.choice_count
        if asked.output_tokens_max is not None or affordable < 1:
            raise too_little(declined, affordable, bound, pinned) from declined
        shortened = min(affordable * asked.choice_count, bound.output_tokens)
        bound = replace(bound, output_tokens=shortened)
        try:
            return await self._place(asked, opened, bound, pinned), bound
        except (HoldDeclined, BudgetExceeded) as error:
            raise too_little(error, 0, bound, pinned) from error

    async def _place(
        self, asked: Asked, opened: OpenedRecord, bound: Bound, pinned: PinnedPrices
    ) -> Hold:
        hold = Hold(
            id=asked.new_attempt_id(),
            payer_id=opened.payer_id,
            amount=highest_cost_of(bound.first, pinned),
            source=self.outbox.source,
            placed_at=self.clock.now(),
            opened=msgspec.json.encode(opened).decode(),
        )
        scope = HoldScope(
            organisation_id=opened.organisation_id,
            department_id=opened.department_id,
            project_id=opened.project_id,
            key_id=opened.key_id,
            tokens_max=bound.first.tokens_max,
        )
        return await self.holding.place(
            hold, scope, new_id=asked.new_attempt_id, run_lease=asked.run_lease
        )

    def _growing(self, hold: Hold, bound: Bound, pinned: PinnedPrices) -> GrowingHold:
        return GrowingHold(
            hold,
            self.holding,
            input_tokens=bound.input_tokens,
            covered_tokens=bound.first.output_tokens,
            output_tokens_max=bound.output_tokens,
            chunk_tokens=bound.chunk_tokens,
            amount_for=lambda tokens: highest_cost_of(replace(bound, output_tokens=tokens), pinned),
        )


def _tokens_max(asked: Asked, route: _Route, limits: LimitsInForce, output: int) -> int:
    """The most tokens that a request may have, before its prompt was counted."""
    if asked.counts_max is not None:
        return tokens_within(asked.counts_max)
    at_most = input_tokens_upper_bound(asked.size, facts=route.model.tokenizer)
    # A longer prompt is refused as soon as it is counted.
    limit = limits.input_tokens_max
    return (limit if at_most is None else min(at_most, limit)) + output
