"""Admission: everything that can say no, in the order of its cost. Ends with a hold."""

import asyncio
from concurrent.futures import Future
from dataclasses import dataclass

import msgspec

from steelyard import __version__
from steelyard.access.rate_limit import RequestRateLimit
from steelyard.access.virtual_key import VirtualKey
from steelyard.billing.authorization import affordable_output_tokens, highest_charge
from steelyard.billing.budgets import BudgetExceeded
from steelyard.billing.hold_decisions import HoldDeclined
from steelyard.billing.hold_desk import HoldDesk
from steelyard.clock import Clock
from steelyard.eventlog.attempt_records import PendingOpening
from steelyard.eventlog.outbox import Outbox
from steelyard.gateway.disconnect_policies import DisconnectPolicies
from steelyard.gateway.event_draft import opened_attempt, unserved_draft
from steelyard.gateway.model_catalog import ModelCatalog
from steelyard.gateway.prices import PinnedPrices, PriceDirectory
from steelyard.gateway.refusals import NotEnoughMoney, OverBudget, PromptTooLong
from steelyard.gateway.upstreams.base import ServedModel, Upstream
from steelyard.gateway.workloads.asked import Asked
from steelyard.ids import new_id
from steelyard.ledger.hold import Hold, HoldScope
from steelyard.metering.token_bound import input_tokens_lower_bound, input_tokens_upper_bound
from steelyard.metering.usage_event import OpenedRecord
from steelyard.money import Money
from steelyard.timestamp import write_timestamp


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """What a key may ask for where it has no limit of its own; tokens and requests."""

    input_tokens_max: int
    output_tokens_default: int
    requests_per_minute: int


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that may run: who, where, at what price, and what is held for it."""

    asked: Asked
    key: VirtualKey
    model: ServedModel
    upstream: Upstream
    pinned: PinnedPrices
    opened: OpenedRecord
    hold: Hold
    opening: PendingOpening
    input_tokens_max: int
    output_tokens_max: int
    requests_per_minute: int
    requests_remaining: int

    def upstream_body(self) -> bytes:
        return self.asked.upstream_body(
            model=self.model.id,
            input_tokens_max=self.input_tokens_max,
            output_tokens_max=self.output_tokens_max,
        )


@dataclass(frozen=True, slots=True)
class _Route:
    """Where a request goes, and at what price."""

    model: ServedModel
    upstream: Upstream
    pinned: PinnedPrices

    async def count(self, asked: Asked) -> int:
        """Exactly as many tokens as the model will see."""
        return await self.upstream.count_prompt_tokens(asked.count_body(model=self.model.id))


@dataclass(frozen=True, slots=True)
class _Bound:
    """The tokens that a request may use at most; `is_exact` where the prompt was counted."""

    input_tokens: int
    output_tokens: int
    is_exact: bool


@dataclass(frozen=True, slots=True)
class Admission:
    """Admits requests, or refuses them."""

    catalog: ModelCatalog
    prices: PriceDirectory
    rate_limit: RequestRateLimit
    hold_desk: HoldDesk
    outbox: Outbox
    limits: AdmissionLimits
    clock: Clock
    disconnect_policies: DisconnectPolicies

    async def admit(self, asked: Asked, key: VirtualKey, *, request_id: str) -> Admitted:
        """Raises one of the refusals, with nothing held, or returns with the money held."""
        self.outbox.check()
        per_minute = key.requests_per_minute
        if per_minute is None:
            per_minute = self.limits.requests_per_minute
        remaining = self.rate_limit.admit(key.id, per_minute=per_minute)
        route = self._route(asked, key)
        bound = await self._bound(asked, key, route)
        opened = self._open(asked, key, route, request_id=request_id)
        hold, bound = await self._hold(asked, opened, bound, route)
        attempt = opened_attempt(
            hold, bound_input=bound.input_tokens, bound_output=bound.output_tokens
        )
        return Admitted(
            asked=asked,
            key=key,
            model=route.model,
            upstream=route.upstream,
            pinned=route.pinned,
            opened=opened,
            hold=hold,
            # Its way to the disk overlaps with the upstream's own latency.
            opening=self.outbox.open(attempt),
            input_tokens_max=bound.input_tokens,
            output_tokens_max=bound.output_tokens,
            requests_per_minute=per_minute,
            requests_remaining=remaining,
        )

    def _route(self, asked: Asked, key: VirtualKey) -> _Route:
        model, upstream = self.catalog.find(asked.model)
        pinned = self.prices.pin(model.id, organisation=key.department.organisation)
        return _Route(model, upstream, pinned)

    async def _bound(self, asked: Asked, key: VirtualKey, route: _Route) -> _Bound:
        """Bytes bound the tokens of most prompts; only one near the limit is counted."""
        limit = key.input_tokens_max
        if limit is None:
            limit = self.limits.input_tokens_max
        wanted = asked.output_tokens_max or self.limits.output_tokens_default
        output = min(wanted, route.model.context_tokens_max)
        at_least = input_tokens_lower_bound(asked.size, facts=route.model.tokenizer)
        if at_least > limit:
            raise PromptTooLong(
                f"the prompt has at least {at_least} tokens; at most {limit} are allowed"
            )
        at_most = input_tokens_upper_bound(asked.size, facts=route.model.tokenizer)
        if at_most is not None and at_most <= limit:
            return _Bound(at_most, output, is_exact=False)
        count = await route.count(asked)
        if count > limit:
            raise PromptTooLong(f"the prompt has {count} tokens; at most {limit} are allowed")
        return _Bound(count, output, is_exact=True)

    def _open(
        self, asked: Asked, key: VirtualKey, route: _Route, *, request_id: str
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
            model_requested=asked.model or route.model.id,
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
        )

    async def _hold(
        self, asked: Asked, opened: OpenedRecord, bound: _Bound, route: _Route
    ) -> tuple[Hold, _Bound]:
        """Hold for the bound; on a thin balance or budget count first, then shorten what may be
        shortened."""
        pinned = route.pinned
        try:
            return await self._place(opened, bound, pinned), bound
        except (HoldDeclined, BudgetExceeded) as error:
            declined = error
        if not bound.is_exact:
            bound = _Bound(await route.count(asked), bound.output_tokens, is_exact=True)
            try:
                return await self._place(opened, bound, pinned), bound
            except (HoldDeclined, BudgetExceeded) as error:
                declined = error
        affordable = _affordable(declined, bound, pinned)
        if asked.output_tokens_max is not None or affordable < 1:
            raise _too_little(declined, affordable, bound, pinned) from declined
        bound = _Bound(bound.input_tokens, min(affordable, bound.output_tokens), is_exact=True)
        try:
            return await self._place(opened, bound, pinned), bound
        except (HoldDeclined, BudgetExceeded) as error:
            raise _too_little(error, 0, bound, pinned) from error

    async def _place(self, opened: OpenedRecord, bound: _Bound, pinned: PinnedPrices) -> Hold:
        hold = Hold(
            id=new_id(),
            payer_id=opened.payer_id,
            amount=_highest(bound, pinned),
            source=self.outbox.source,
            placed_at=self.clock.now(),
            opened=msgspec.json.encode(opened).decode(),
        )
        scope = HoldScope(
            organisation_id=opened.organisation_id,
            department_id=opened.department_id,
            project_id=opened.project_id,
            key_id=opened.key_id,
            tokens_max=bound.input_tokens + bound.output_tokens,
        )
        placing = self.hold_desk.place(hold, scope)
        try:
            return await asyncio.shield(asyncio.wrap_future(placing))
        except asyncio.CancelledError:
            # Nobody waits any more, but the hold may still be granted: then it is closed at once.
            placing.add_done_callback(lambda placed: self._abandon(hold, placed))
            raise

    def _abandon(self, hold: Hold, placed: "Future[Hold]") -> None:
        if placed.exception() is None:
            at = self.clock.now()
            self.outbox.append(unserved_draft(hold, end_cause="gateway_stopped", at=at))


def _affordable(
    declined: HoldDeclined | BudgetExceeded, bound: _Bound, pinned: PinnedPrices
) -> int:
    """How many tokens of answer there is room for, once the prompt has had its own."""
    if isinstance(declined, BudgetExceeded) and declined.unit == "tokens":
        return declined.left - bound.input_tokens
    left = (
        Money(declined.left, pinned.currency)
        if isinstance(declined, BudgetExceeded)
        else declined.available
    )
    return affordable_output_tokens(left, input_tokens=bound.input_tokens, prices=pinned.prices)


def _too_little(
    declined: HoldDeclined | BudgetExceeded, affordable: int, bound: _Bound, pinned: PinnedPrices
) -> NotEnoughMoney | OverBudget:
    advice = f"ask for at most {affordable} tokens (max_tokens), or " if affordable >= 1 else ""
    if isinstance(declined, BudgetExceeded):
        return OverBudget(f"{declined}; {advice}ask for a larger budget")
    return NotEnoughMoney(
        f"this request may cost up to {_highest(bound, pinned)} "
        f"({bound.input_tokens} tokens in, up to {bound.output_tokens} out); "
        f"available: {declined.available}; {advice}top up"
    )


def _highest(bound: _Bound, pinned: PinnedPrices) -> Money:
    return highest_charge(
        input_tokens=bound.input_tokens,
        output_tokens=bound.output_tokens,
        prices=pinned.prices,
        currency=pinned.currency,
    )
