"""What the ledger promises, said again in plain dicts and whole numbers, with no code of ours.

It is written to be read against docs/reference/ledger.md, not to be fast. Every method returns
whether the thing is done; whoever calls it compares that, and every number, with the real books.
"""

from collections import defaultdict
from datetime import datetime
from typing import Any

Draws = list[tuple[str, int]]
Reserved = list[tuple[str, str, int]]
CREDIT = "credit-line"
BOTH = ("paid", "promotional")


class ReferenceLedger:
    """One payer with grants, a credit line, holds, events and budgets."""

    def __init__(self) -> None:
        self.grants: dict[str, Any] = {}  # id -> kind, priority, expires, granted, left
        self.limit, self.owed, self.held = 0, 0, 0
        self.ours: dict[str, int] = defaultdict(
            int
        )  # revenue, clearing, promo_expense, breakage, ...
        self.holds: dict[str, Any] = {}  # id -> amount, draws, reserved
        self.ended: dict[str, str] = {}  # id -> how
        self.events: dict[str, Any] = {}  # id -> spent, refunded
        self.refunds: dict[str, Any] = {}  # id -> amount, event, is_undone
        self.budgets: dict[str, Any] = {}  # id -> scope, unit, period, amount, is_hard
        self.windows: dict[tuple[str, str], list[int]] = defaultdict(
            lambda: [0, 0]
        )  # reserved, used

    def give(
        self,
        grant_id: str,
        picos: int,
        *,
        kind: str,
        now: datetime,
        expires: datetime | None = None,
        priority: int = 50,
    ) -> None:
        new = {"kind": kind, "priority": priority, "expires": expires, "granted": now, "left": 0}
        self.grants.setdefault(grant_id, new)["left"] += picos
        self.ours["clearing" if kind == "paid" else "promo_expense"] -= picos

    def sweep(self, now: datetime) -> None:
        for grant in self.grants.values():
            if grant["expires"] and grant["expires"] <= now:
                self.ours["breakage" if grant["kind"] == "paid" else "promo_expense"] += grant[
                    "left"
                ]
                grant["left"] = 0

    def burning(self, now: datetime, kinds: tuple[str, ...] = BOTH) -> list[str]:
        last = datetime.max.replace(tzinfo=now.tzinfo)
        live = [
            (g["priority"], g["expires"] or last, g["kind"] == "paid", g["granted"], name)
            for name, g in self.grants.items()
            if g["kind"] in kinds and g["left"] and (not g["expires"] or now < g["expires"])
        ]
        return [name for *_, name in sorted(live)]

    def draw(
        self, picos: int, now: datetime, *, credit: bool = True, kinds: tuple[str, ...] = BOTH
    ) -> Draws | None:
        """The places that cover an amount, or None; nothing is taken yet."""
        draws: Draws = []
        for name in self.burning(now, kinds):
            part = min(picos, self.grants[name]["left"])
            if part:
                draws.append((name, part))
            picos -= part
        if picos > (max(0, self.limit - self.owed) if credit else 0):
            return None
        return [*draws, (CREDIT, picos)] if picos else draws

    def move(self, draws: Draws, sign: int) -> None:
        for name, picos in draws:
            if name == CREDIT:
                self.owed -= sign * picos
            else:
                self.grants[name]["left"] += sign * picos

    def reservations(
        self, scopes: tuple[str, ...], picos: int, tokens: int, now: datetime
    ) -> Reserved:
        found: Reserved = []
        for name, budget in self.budgets.items():
            if budget["scope"] in scopes:
                form = {"day": "%Y-%m-%d", "month": "%Y-%m", "total": "total"}[budget["period"]]
                wanted = picos if budget["unit"] == "money" else tokens
                found.append((name, now.strftime(form), wanted))
        return found

    def has_room(self, reservations: Reserved) -> bool:
        for name, window, wanted in reservations:
            reserved, used = self.windows[name, window]
            budget = self.budgets[name]
            if budget["is_hard"] and wanted and reserved + used + wanted > budget["amount"]:
                return False
        return True

    def reserve(self, reservations: Reserved, sign: int) -> None:
        for name, window, wanted in reservations:
            self.windows[name, window][0] += sign * wanted

    def place(
        self, hold_id: str, picos: int, tokens: int, scopes: tuple[str, ...], now: datetime
    ) -> bool:
        if hold_id in self.holds:
            return True
        if hold_id in self.ended:
            return False
        draws = self.draw(picos, now)
        reserved = self.reservations(scopes, picos, tokens, now)
        if draws is None or not self.has_room(reserved):
            self.ended[hold_id] = "declined"
            return False
        self.holds[hold_id] = {"draws": draws, "reserved": reserved}
        self.take(draws, reserved)
        return True

    def grow(self, hold_id: str, picos: int, tokens: int, now: datetime) -> bool:
        hold = self.holds.get(hold_id)
        if hold is None:
            return False
        extra = max(0, picos - sum(part for _, part in hold["draws"]))
        more = [
            (
                name,
                window,
                max(0, (picos if self.budgets[name]["unit"] == "money" else tokens) - had),
            )
            for name, window, had in hold["reserved"]
        ]
        draws = self.draw(extra, now)
        if draws is None or not self.has_room(more):
            return False
        self.take(draws, more)
        hold["draws"] = hold["draws"] + draws
        grown = zip(hold["reserved"], more, strict=True)
        hold["reserved"] = [(name, window, had + new) for (name, window, had), (*_, new) in grown]
        return True

    def take(self, draws: Draws, reserved: Reserved) -> None:
        self.move(draws, -1)
        self.held += sum(part for _, part in draws)
        self.reserve(reserved, 1)

    def end(self, hold_id: str, how: str, picos: int = 0, tokens: int = 0) -> bool:
        """What was drawn first is spent first; the rest returns; what nothing covers is suspense."""
        hold = self.holds.pop(hold_id, None)
        if hold is None:
            return False
        self.ended[hold_id] = how
        spent: Draws = []
        left = picos
        for name, part in hold["draws"]:
            used = min(part, left)
            left -= used
            self.held -= part
            self.move([(name, part - used)], 1)
            spent += [(name, used)] if used else []
        self.ours["revenue"] += picos
        self.ours["suspense"] -= left
        self.reserve(hold["reserved"], -1)
        for name, window, _ in hold["reserved"]:
            self.windows[name, window][1] += (
                picos if self.budgets[name]["unit"] == "money" else tokens
            )
        if how == "settled":
            self.events[hold_id] = {"spent": spent, "refunded": 0}
        return True

    def refund(self, refund_id: str, event_id: str, picos: int | None) -> bool:
        event = self.events[event_id]
        left = sum(part for _, part in event["spent"]) - event["refunded"]
        amount: int = left if picos is None else picos
        if not 0 < amount <= left:
            return False
        # The last spent is the first returned, after what was returned before.
        skip, wanted = event["refunded"], amount
        for name, part in reversed(event["spent"]):
            skipped = min(skip, part)
            back = min(part - skipped, wanted)
            skip, wanted = skip - skipped, wanted - back
            self.move([(name, back)], 1)
        event["refunded"] += amount
        self.ours["revenue"] -= amount
        self.refunds[refund_id] = {"picos": amount, "event": event_id, "is_undone": False}
        return True

    def undo(self, refund_id: str, now: datetime) -> bool:
        refund = self.refunds[refund_id]
        if refund["is_undone"] or not self.charge(refund["picos"], now):
            return False
        refund["is_undone"] = True
        self.events[refund["event"]]["refunded"] -= refund["picos"]
        return True

    def charge(self, picos: int, now: datetime) -> bool:
        draws = self.draw(picos, now)
        if draws is None:
            return False
        self.move(draws, -1)
        self.ours["revenue"] += picos
        return True

    def correct(self, picos: int, now: datetime, *, standing: str) -> bool:
        if picos < 0:
            return self.charge(-picos, now)
        debt = min(picos, max(0, self.owed))
        self.give(standing, 0, kind="paid", now=now)
        self.move([(CREDIT, debt), (standing, picos - debt)], 1)
        self.ours["revenue"] -= picos
        return True

    def pay(self, picos: int, source: str) -> bool:
        if picos > self.owed:
            return False
        self.owed -= picos
        self.ours[source] -= picos
        return True

    def pay_out(self, picos: int, now: datetime) -> bool:
        draws = self.draw(picos, now, credit=False, kinds=("paid",))
        free = sum(self.grants[name]["left"] for name in self.burning(now, ("paid",)))
        if draws is None or picos > free - max(0, self.owed):
            return False
        self.move(draws, -1)
        self.ours["clearing"] += picos
        return True

    def allow(self, limit: int) -> bool:
        if self.owed > limit:
            return False
        self.limit = limit
        return True
