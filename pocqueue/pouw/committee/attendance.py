"""Who of a committee takes part: heard from turn to turn, silent, or shown to have contradicted itself.

Time is an argument, in seconds of whichever clock.
"""

from __future__ import annotations

from typing import Final

#: A member that was not heard in so many turns in a row is silent, ...
WINDOW: Final = 8
#: ... or in an open one, whose first word is older than this.
PATIENCE_S: Final = 10.0


class Attendance:
    """What was heard of a committee's members.

    Args:
        num_members: of the committee.
        own: this node's place, which it does not hear itself from; None: it has none.
    """

    def __init__(self, num_members: int, own: int | None = None) -> None:
        self.num_members, self._own = num_members, own
        #: When a member was heard last.
        self.heard_s: dict[int, float] = {}
        #: Places of those who have contradicted themselves.
        self.faulty: set[int] = set()
        # By turn: when its first word came, and whose words did.
        self._turns: dict[int, tuple[float, set[int]]] = {}

    def hear(self, turn: int, member: int, now_s: float) -> None:
        """Note a word of a member, which was checked."""
        self.heard_s[member] = now_s
        self._turns.setdefault(turn, (now_s, set()))[1].add(member)
        if len(self._turns) > WINDOW + 1:
            del self._turns[min(self._turns)]

    def silent(self, open_turn: int, now_s: float) -> set[int]:
        """Return the places of those who say nothing.

        Args:
            open_turn: the turn that is not decided yet.
            now_s: as for `hear`.
        """
        others = set(range(self.num_members)) - {self._own}
        over = [heard for turn, (_, heard) in sorted(self._turns.items()) if turn < open_turn]
        found = others.difference(*over[-WINDOW:]) if len(over) >= WINDOW else set()
        if open_turn in self._turns:
            first_s, heard = self._turns[open_turn]
            if now_s - first_s >= PATIENCE_S:
                found |= others - heard
        return found

    def share(self, open_turn: int, now_s: float) -> float:
        """Return the share of members that are faulty or silent."""
        return len(self.faulty | self.silent(open_turn, now_s)) / self.num_members
