"""Which models are served, by which upstream; kept fresh in the background."""

from collections.abc import Sequence, Set
from dataclasses import dataclass, field

import anyio

from steelyard.errors import Failure
from steelyard.gateway.refusals import ModelNotFound
from steelyard.gateway.upstreams.base import ServedModel, Upstream, UpstreamUnavailable

EAGER_S = 0.25
CALM_S = 10.0


@dataclass(slots=True)
class ModelCatalog:
    """The models of all upstreams that have ever answered."""

    upstreams: Sequence[Upstream]
    _models: dict[str, tuple[ServedModel, Upstream]] = field(
        default_factory=dict[str, tuple[ServedModel, Upstream]]
    )

    def find(
        self, model: str | None, *, paths: Set[str] = frozenset()
    ) -> tuple[ServedModel, Upstream]:
        """The model of this name, or the first that is served at one of the paths, or else the
        first; raises ModelNotFound or UpstreamUnavailable."""
        if not self._models:
            raise UpstreamUnavailable("no model is ready yet; try again in a moment")
        if model is None:
            fitting = (
                (served, upstream)
                for served, upstream in self._models.values()
                if paths & (served.paths or upstream.habits.paths)
            )
            return next(fitting, next(iter(self._models.values())))
        found = self._models.get(model)
        if found is None:
            known = ", ".join(sorted(self._models))
            raise ModelNotFound(f"there is no model {model[:100]!r} here; there is {known}")
        return found

    def models(self) -> list[ServedModel]:
        return [model for model, _ in self._models.values()]

    async def refresh(self) -> bool:
        """Ask every upstream; one that does not answer keeps its place. True if all answered."""
        is_complete = True
        for upstream in self.upstreams:
            try:
                models = await upstream.models()
            except Failure:
                is_complete = False
                continue
            gone = [name for name, (_, by) in self._models.items() if by is upstream]
            for name in gone:
                del self._models[name]
            self._models.update({model.id: (model, upstream) for model in models})
        return is_complete

    async def watch(self) -> None:
        while True:
            await anyio.sleep(CALM_S if await self.refresh() else EAGER_S)
