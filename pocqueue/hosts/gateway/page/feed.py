"""What one open page has been told, and what is news to it."""

from __future__ import annotations

from typing import Any, Final

from pocqueue.hosts.gateway.page.view import View

#: Key of the row that says that a list is empty.
NOTHING: Final = "nothing"


class Feed:
    """Compares what a page shows with what it has shown: an event has the rows that differ, and no others."""

    def __init__(self) -> None:
        self._lists: dict[str, dict[str, Any]] = {}
        self._texts: dict[str, str] = {}
        self._beats: dict[str, str] = {}

    def news(self, view: View) -> dict[str, Any]:
        """Return what a page is to be told; empty: nothing.

        Returns:
            ``lists``: by name, ``keys`` of all rows in their order and ``rows``, by key, those that differ;
            ``texts``: by id of their place; ``beats``: last heartbeat of nodes whose row stays, by id.
        """
        news: dict[str, Any] = {}
        lists = {name: rows or {NOTHING: None} for name, rows in view.lists().items()}
        for name, rows in lists.items():
            known = self._lists.get(name, {})
            other = {
                key: view.row(name, row)
                for key, row in rows.items()
                if key not in known or known[key] != row
            }
            if other or list(known) != list(rows):
                told = news.setdefault("lists", {})
                told[name] = {"keys": list(rows), "rows": other}
        texts = view.texts()
        if changed := {name: text for name, text in texts.items() if self._texts.get(name) != text}:
            news["texts"] = changed
        beats = {node.id: node.last_heartbeat for node in view.nodes}
        rewritten = news.get("lists", {}).get("nodes", {}).get("rows", {})
        if heard := {
            key: at
            for key, at in beats.items()
            if key not in rewritten and self._beats.get(key) != at
        }:
            news["beats"] = heard
        self._lists, self._texts, self._beats = lists, texts, beats
        return news
