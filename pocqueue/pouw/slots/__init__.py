"""Iterations of a task that all its miners do in step, certificates and beacons over them, draws.

How a slot goes through a node; nothing here waits, sends or reads a clock, and `SlotStore` with its `OwnWords` alone touches disk:

1. A message arrives: `messages.check`, then `Collector.add` (the committee) or `SlotHistory.keep`; new ones are passed on.
2. The committee: `Collector.closes_at(now)` says when the slot is due, `Collector.value` what a member proposes; the others find
   the same with `SlotHistory.judge`. What they agree on (`pocqueue.pouw.committee`) is signed, and with it an `Advance`.
   Everybody else: a record arrives, `certificate.verify_signed`, `SlotHistory.check(record, messages)` gives the `Advance`;
   if that misses messages, they are asked for with their slots, as `requests.Slots`.
3. A committee of several pushes the record: all of them have it. `SlotStore.write(advance)`: it is on disk before memory
   has it, and before a committee of one pushes it.
4. `SlotHistory.add(advance)`: the next slot is open, `weights` are its weights.
5. A miner: `LaneMiner.certified(record)` draws with the slot's beacon and may give a block; then `LaneMiner.work()` is the
   iteration that is due, `Trainer.iterate` makes it, `LaneMiner.message` signs it, `OwnWords.write_sent` keeps it, it is pushed.
6. After 0.4 s of silence `LaneMiner.current` is pushed again. A restart: `SlotStore.history`, `OwnWords.sent`, and on from 1.
7. Whoever verifies a winner: `SlotHistory.lap`, or `SlotStore.history(task, slot).lap` for an older one, and `Trainer.reexecute`.
"""
