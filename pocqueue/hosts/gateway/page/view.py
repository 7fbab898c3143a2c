"""What the page shows of a wallet: how it is read, and its templates."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from pocqueue.hosts.gateway.page.rows import (
    EarningRow,
    JobRow,
    NodeRow,
    TokenRow,
    clock,
    earning_row,
    job_row,
    node_row,
    token_row,
)
from pocqueue.hosts.gateway.page.sparkline import load_of
from pocqueue.hosts.pay import hyper
from pocqueue.hosts.records import Balance, NodeStatus
from pocqueue.hosts.store import HostStore
from pocqueue.hosts.store.overview import MAX_NODES, Earning, Standing

#: Rows of a table.
PAGE: Final = 25
#: What can be asked for of the nodes.
SHOWN: Final = {
    "all": "All",
    "busy": "Busy",
    "online": "Online",
    "offline": "Offline",
    "mend": "To mend",
}
templates = Environment(
    loader=PackageLoader("pocqueue.hosts.gateway.page"),
    autoescape=select_autoescape(),
    trim_blocks=True,
    lstrip_blocks=True,
)
#: Who has JavaScript reads how long ago it was instead.
templates.filters["clock"] = clock


@dataclass(frozen=True, slots=True)
class Asked:
    """What a page is of, as its address says."""

    wallet: str = ""
    show: str = "all"  #: of `SHOWN`
    nodes: str = ""  #: cursor of a page of nodes; empty: the first
    jobs: str = ""
    earnings: str = ""

    def link(self, **changes: str) -> str:
        """Return the address of the page with some of it changed."""
        to = replace(self, **changes)
        pairs = {"wallet": to.wallet, "show": to.show if to.show != "all" else ""}
        pairs |= {"nodes": to.nodes, "jobs": to.jobs, "earnings": to.earnings}
        return "/app?" + urlencode({name: text for name, text in pairs.items() if text})


@dataclass(frozen=True, slots=True)
class Glance:
    """All of a wallet in a few numbers."""

    num_nodes: int
    is_cut: bool  #: there are more, which are not counted
    num: dict[str, int]  #: of nodes, by `SHOWN`
    num_held: int  #: nodes whose pay is held
    num_unfit: int
    num_stopped: int  #: banned, paused, or drained by the operator
    earned: str
    held: str  #: empty: nothing
    paid: str
    payable: str


@dataclass(frozen=True, slots=True)
class Money:
    """What a wallet has earned: sums over all of its rows, so read again only where they may differ."""

    key: tuple[Any, ...]  #: while it is the same, so is all of this
    by_node: dict[str, int]
    balance: Balance
    entries: Sequence[Earning]  #: of the page that is asked for; others than the owner see none


@dataclass(frozen=True, slots=True)
class View:
    """What a page shows."""

    asked: Asked
    is_owner: bool
    money: Money
    glance: Glance
    nodes: tuple[NodeRow, ...]
    jobs: tuple[JobRow, ...]
    earnings: tuple[EarningRow, ...]
    tokens: tuple[TokenRow, ...]
    more_nodes: str  #: cursor; empty: these were the last
    more_jobs: str
    more_earnings: str

    def lists(self) -> dict[str, dict[str, Any]]:
        """Return the rows of each list, by name and key."""
        found: dict[str, dict[str, Any]] = {
            "nodes": {row.id: row for row in self.nodes},
            "jobs": {row.key: row for row in self.jobs},
        }
        if self.is_owner:
            found["earnings"] = {row.key: row for row in self.earnings}
            found["tokens"] = {row.id: row for row in self.tokens}
        return found

    def row(self, name: str, row: Any) -> Markup:
        """Write a row of a list; None: that there is none."""
        return _write(f"_{name}.html", row=row, view=self)

    def texts(self) -> dict[str, str]:
        """Write what is no list, by the id of its place."""
        names = ["glance", "nodes-filter", "nodes-more", "jobs-more"]
        names += ["earnings-more"] * self.is_owner
        return {name: self.text(name) for name in names}

    def text(self, name: str) -> Markup:
        """Write one of `texts`."""
        if not name.endswith("-more"):
            return _write(f"_{name}.html", view=self, shown=SHOWN)
        of = name.removesuffix("-more")
        cursor = {"nodes": self.more_nodes, "jobs": self.more_jobs}.get(of, self.more_earnings)
        return _write(
            "_more.html",
            of=of,
            first=self.asked.link(**{of: ""}) if getattr(self.asked, of) else "",
            more=self.asked.link(**{of: cursor}) if cursor else "",
        )


def _write(template: str, **values: Any) -> Markup:
    # What a template has written is escaped already.
    return Markup(templates.get_template(template).render(values))  # noqa: S704


def read(store: HostStore, asked: Asked, *, is_owner: bool, before: View | None = None) -> View:
    """Read what the page shows of a wallet. Blocks.

    Args:
        is_owner: in a session of that wallet: with self-tests, loads, earnings and tokens.
        before: what the same page has shown.
    """
    wallet, now_ms = asked.wallet, store.now_ms()
    standings = [
        (one, one.node.status(now_ms, store.offline_ms, busy=one.is_busy))
        for one in store.overview.standings(wallet)
    ]
    chosen = [pair for pair in standings if asked.show in _groups(*pair)]
    page, more_nodes = _paged(sorted(chosen, key=_place), asked.nodes)
    ids = [one.node.id for one, _ in page]
    have = store.overview.nodes(ids)
    work = store.overview.work(ids)
    tests = store.overview.self_tests(ids) if is_owner else {}
    loads = defaultdict[str, dict[str, Any]](dict)
    for (node_id, uuid), day in (store.health.loads(ids) if is_owner else {}).items():
        loads[node_id][uuid] = day
    money = _money(store, asked, standings, is_owner, None if before is None else before.money)
    balance, entries = money.balance, money.entries
    nodes = tuple(
        node_row(
            have[one.node.id],
            status,
            work.get(one.node.id, ()),
            tests.get(one.node.id, ()),
            {uuid: load_of(day, now_ms) for uuid, day in loads.get(one.node.id, {}).items()},
            money.by_node.get(one.node.id, 0),
            is_owner=is_owner,
        )
        for one, status in page
        if one.node.id in have
    )
    turns, more_jobs = store.jobs.of_wallet(wallet, cursor=asked.jobs or None, limit=PAGE)
    num = Counter(group for pair in standings for group in _groups(*pair))
    return View(
        asked,
        is_owner,
        money,
        Glance(
            len(standings),
            len(standings) >= MAX_NODES,
            {name: num[name] for name in SHOWN},
            sum(not one.node.proven for one, _ in standings),
            sum(one.is_unfit for one, _ in standings),
            sum(_is_stopped(*pair) for pair in standings),
            hyper(balance.earned + balance.held),
            hyper(balance.held) if balance.held else "",
            hyper(balance.paid),
            hyper(balance.payable),
        ),
        nodes,
        tuple(map(job_row, turns)),
        tuple(map(earning_row, entries)),
        tuple(map(token_row, store.tokens.open(wallet))) if is_owner else (),
        more_nodes,
        more_jobs or "",
        str(entries[-1].entry.id) if len(entries) == PAGE else "",
    )


def _money(
    store: HostStore,
    asked: Asked,
    standings: Sequence[tuple[Standing, NodeStatus]],
    is_owner: bool,
    before: Money | None,
) -> Money:
    wallet = asked.wallet
    # A new row of the ledger, a node that is adopted, another session: nothing else changes it.
    held = [one.node.id for one, _ in standings if not one.node.proven]
    key = (*store.overview.ledger_mark(wallet), is_owner, *held)
    if before is not None and before.key == key:
        return before
    start = int(asked.earnings) if _is_number(asked.earnings) else None
    return Money(
        key,
        store.ledger.earned_by_node(wallet),
        store.ledger.balance(wallet),
        store.overview.earnings(wallet, before=start, limit=PAGE) if is_owner else (),
    )


def _groups(one: Standing, status: NodeStatus) -> Iterator[str]:
    """Yield in which of `SHOWN` a node is."""
    yield "all"
    if status in {"online", "busy", "offline"}:
        yield status
    if status == "offline" or _is_stopped(one, status) or one.is_unfit or not one.node.proven:
        yield "mend"


def _is_stopped(one: Standing, status: NodeStatus) -> bool:
    is_admins = one.node.state == "draining" and one.node.drained_by == "admin"
    return status in {"paused", "banned"} or is_admins


def _place(pair: tuple[Standing, NodeStatus]) -> tuple[int, int, str]:
    """Return where a node stands: what cannot work, what else is to mend, what is well; of these the newest first."""
    (one, status), node = pair, pair[0].node
    urgency = 2 - ("mend" in _groups(*pair)) - (status == "offline" or one.is_unfit)
    return urgency, -node.first_ms, node.id


def _paged(
    found: Sequence[tuple[Standing, NodeStatus]], cursor: str
) -> tuple[Sequence[tuple[Standing, NodeStatus]], str]:
    """Return a page of nodes, which are in their places, and the cursor of the next one; empty: there is none."""
    urgency, _, rest = cursor.partition(".")
    first_ms, _, node_id = rest.partition(".")
    if _is_number(urgency) and _is_number(first_ms) and node_id:
        at = (int(urgency), -int(first_ms), node_id)
        found = [pair for pair in found if _place(pair) > at]
    page = found[:PAGE]
    if len(found) <= PAGE:
        return page, ""
    last, minus_ms, last_id = _place(page[-1])
    return page, f"{last}.{-minus_ms}.{last_id}"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 16
