"""Which models are served, by which upstreams; kept fresh in the background."""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

import anyio
import structlog

from steelyard.errors import Failure
from steelyard.gateway.refusals import ModelNotFound, SurfaceNotServed
from steelyard.gateway.routing.breaker import BreakerState, CircuitBreaker
from steelyard.gateway.routing.deployment import Deployment, RoutedModel
from steelyard.gateway.routing.route_plan import RoutePlan
from steelyard.gateway.routing.rules import (
    NO_BREAKER,
    NO_RETRIES,
    DeploymentRules,
    HealthRules,
    ModelRules,
    RoutingTable,
    TokenizerRules,
)
from steelyard.gateway.upstreams.base import (
    ListedModel,
    ServedModel,
    Upstream,
    UpstreamUnavailable,
)
from steelyard.gateway.workloads.asked import Asked
from steelyard.metering.token_bound import TokenizerFacts

log = structlog.get_logger()

EAGER_S = 0.25
PLAIN_ROUTING = RoutingTable(retries=NO_RETRIES, breaker=NO_BREAKER, health=HealthRules())


@dataclass(frozen=True, slots=True)
class Routes:
    """Upstreams, and the models on them as an operator wants them.

    Of the upstreams in `discovered` every other model that they list is served, too.
    """

    upstreams: Sequence[Upstream]
    discovered: frozenset[str]
    models: Mapping[str, ModelRules] = field(default_factory=dict[str, ModelRules])
    table: RoutingTable = PLAIN_ROUTING


@dataclass(frozen=True, slots=True)
class DeploymentState:
    """How one deployment is doing."""

    model: str
    upstream: str
    upstream_model: str
    breaker: BreakerState
    open_count: int
    openings: int


def routes_to_all(upstreams: Sequence[Upstream]) -> Routes:
    """Every model of these upstreams under its own name, each request tried once."""
    return Routes(upstreams, frozenset(upstream.name for upstream in upstreams))


@dataclass(slots=True)
class ModelCatalog:
    """The models that can be asked for, and where."""

    routes: Routes
    monotonic: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random
    _listed: dict[str, Sequence[ListedModel]] = field(
        default_factory=dict[str, Sequence[ListedModel]]
    )
    _down: dict[str, str] = field(default_factory=dict[str, str])
    _has_answered: bool = False
    _models: dict[str, RoutedModel] = field(default_factory=dict[str, RoutedModel])
    _aliases: dict[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        self._build()

    def plan(self, asked: Asked) -> RoutePlan:
        """Where this request may go; raises ModelNotFound, SurfaceNotServed or
        UpstreamUnavailable."""
        paths = {way.path for way in asked.ways}
        model = self.find(asked.model, paths=paths)
        models = [model]
        if model.fallbacks:
            models += [self._models[name] for name in model.fallbacks if name in self._models]
        able = [each for each in models if each.takes(paths)]
        if not able:
            served = sorted({path for each in model.deployments for path in each.paths})
            raise SurfaceNotServed(
                f"the model {asked.model!r} is not served at {asked.endpoint}; "
                f"its server takes {', '.join(served)}"
            )
        return RoutePlan(able, paths, self.monotonic, self.jitter)

    def find(self, model: str | None, *, paths: Set[str]) -> RoutedModel:
        """The model of this name or alias, or the first that is served at one of the paths, or else
        the first; raises ModelNotFound or UpstreamUnavailable."""
        known = self._models
        if not known:
            raise UpstreamUnavailable("no model is ready yet; try again in a moment")
        if model is None:
            fitting = (each for each in known.values() if each.takes(paths))
            return next(fitting, next(iter(known.values())))
        found = known.get(self._aliases.get(model, model))
        if found is None:
            names = ", ".join(sorted([*known, *self._aliases]))
            raise ModelNotFound(f"there is no model {model[:100]!r} here; there is {names}")
        return found

    def models(self) -> list[ServedModel]:
        """Those that can be asked for now."""
        return [model.served for model in self._models.values() if model.served is not None]

    @property
    def is_ready(self) -> bool:
        """Whether there is a model, and an upstream has answered once. That none answers now is no
        reason to take the gateway away: it tells callers more than nobody would."""
        return self._has_answered and bool(self.models())

    def aliases(self) -> Mapping[str, str]:
        """Other names, each with the model that it means."""
        return self._aliases

    def down(self) -> Mapping[str, str]:
        """Upstreams that did not answer when they were last looked at, and why."""
        return self._down

    def states(self) -> list[DeploymentState]:
        return [
            DeploymentState(
                model.name,
                each.upstream.name,
                each.upstream_model,
                each.breaker.state,
                each.open_count,
                each.breaker.openings,
            )
            for model in self._models.values()
            for each in model.deployments
        ]

    def replace(self, routes: Routes) -> None:
        """Take other routes from now on. What runs ends where it is; what stays keeps its state."""
        names = {upstream.name for upstream in routes.upstreams}
        known = {upstream.name: upstream for upstream in self.routes.upstreams}
        for upstream in routes.upstreams:
            if known.get(upstream.name) is not upstream:
                self._listed.pop(upstream.name, None)
        self._listed = {name: listed for name, listed in self._listed.items() if name in names}
        self._down = {name: reason for name, reason in self._down.items() if name in names}
        self.routes = routes
        self._build()

    async def refresh(self) -> bool:
        """Ask every upstream; one that does not answer keeps its place. True if all answered."""
        async with anyio.create_task_group() as tasks:
            for upstream in self.routes.upstreams:
                tasks.start_soon(self._look_at, upstream)
        self._build()
        return not self._down

    async def watch(self) -> None:
        while True:
            is_calm = await self.refresh() or self._knows_all()
            await anyio.sleep(self.routes.table.health.every_s if is_calm else EAGER_S)

    def _knows_all(self) -> bool:
        """Whether nothing more has to be learnt before every wanted model can be served."""
        wanted = self.routes.models
        return bool(wanted) and all(
            each.served is not None
            for name in wanted
            for each in (self._models[name].deployments if name in self._models else ())
        )

    async def _look_at(self, upstream: Upstream) -> None:
        try:
            listed = await upstream.models()
        except Failure as failure:
            if upstream.name not in self._down:
                log.warning("upstream.down", upstream=upstream.name, reason=str(failure))
            self._down[upstream.name] = failure.code
            return
        if self._down.pop(upstream.name, None):
            log.info("upstream.up", upstream=upstream.name)
        self._listed[upstream.name] = listed
        self._has_answered = True

    def _build(self) -> None:
        """The models as rules and upstreams say now; deployments keep what they have been through."""
        wanted = dict(self._wanted())
        known = {
            (model.name, each.upstream.name, each.upstream_model): each
            for model in self._models.values()
            for each in model.deployments
        }
        built: dict[str, RoutedModel] = {}
        for name, rules in wanted.items():
            deployments = [
                deployment
                for chosen in rules.deployments
                if (deployment := self._deployment(name, rules, chosen, known)) is not None
            ]
            if deployments:
                built[name] = self._routed(name, rules, deployments)
        self._aliases = {alias: name for name in built for alias in wanted[name].aliases}
        self._models = built

    def _wanted(self) -> Iterator[tuple[str, ModelRules]]:
        """The models of the rules, and then those that upstreams list besides."""
        yield from self.routes.models.items()
        found: dict[str, list[DeploymentRules]] = {}
        for upstream in self.routes.upstreams:
            if upstream.name not in self.routes.discovered:
                continue
            for listed in self._listed.get(upstream.name, ()):
                is_known = listed.tokenizer is not None and listed.context_tokens_max is not None
                if is_known and listed.id not in self.routes.models:
                    found.setdefault(listed.id, []).append(DeploymentRules(upstream=upstream.name))
        for name, deployments in found.items():
            yield name, ModelRules(deployments=deployments)

    def _deployment(
        self,
        name: str,
        rules: ModelRules,
        chosen: DeploymentRules,
        known: Mapping[tuple[str, str, str], Deployment],
    ) -> Deployment | None:
        upstream = next((u for u in self.routes.upstreams if u.name == chosen.upstream), None)
        if upstream is None:
            return None
        upstream_model = chosen.model or name
        before = known.get((name, upstream.name, upstream_model))
        breaker_rules = self.routes.table.breaker
        if before is not None and before.upstream is upstream:
            deployment = before
            deployment.weight, deployment.breaker.rules = chosen.weight, breaker_rules
        else:
            breaker = CircuitBreaker(breaker_rules, self.monotonic)
            deployment = Deployment(upstream, upstream_model, chosen.weight, breaker)
        listed = next(
            (m for m in self._listed.get(upstream.name, ()) if m.id == upstream_model), None
        )
        deployment.served = _served(name, rules, upstream, listed)
        deployment.is_up = upstream.name not in self._down
        return deployment

    def _routed(
        self, name: str, rules: ModelRules, deployments: Sequence[Deployment]
    ) -> RoutedModel:
        """The model, the one of before where its rules are the same, so that its budget lasts."""
        retries = self.routes.table.retries
        routed = self._models.get(name)
        if routed is None or routed.retries != retries:
            return RoutedModel(name, deployments, retries, rules.choice, rules.fallbacks)
        routed.deployments = deployments
        routed.choice, routed.fallbacks = rules.choice, rules.fallbacks
        return routed


def _served(
    name: str, rules: ModelRules, upstream: Upstream, listed: ListedModel | None
) -> ServedModel | None:
    """What is known of a model there: what the rules say goes before what the upstream says."""
    context = rules.context_tokens or (listed.context_tokens_max if listed else None)
    if context is None:
        return None
    told = listed.tokenizer if listed else None
    has_template = listed.has_chat_template if listed else True
    if rules.tokenizer is not None or told is None:
        told = _facts(rules.tokenizer or TokenizerRules())
    paths = listed.paths if listed else None
    return ServedModel(name, upstream.name, context, has_template, told, paths)


def _facts(rules: TokenizerRules) -> TokenizerFacts:
    return TokenizerFacts(
        sha256="",
        is_byte_level=rules.byte_level,
        bytes_per_token_max=rules.bytes_per_token_max,
        template_tokens_base=rules.template_tokens_base,
        template_tokens_per_message=rules.template_tokens_per_message,
        special_tokens_added=rules.special_tokens_added,
    )
