"""Attacks on a saved model spread over processes, an attack each at a time.

Small models gain more from a second function than from a second thread inside one product, and threads of one process
would wait for each other's Python code between products. A process loads the model for itself and runs its products on
one thread; this one hands out the work and takes the results.
"""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING

from moekd import numerics
from moekd.attack.schedule import Names, Work, run_here
from moekd.errors import MoekdError
from moekd.processes import end_now, process_pool, submit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from moekd.attack.victims import SavedVictim, Victim
    from moekd.config import Attack
    from moekd.records import AttackResult

_IN_FLIGHT = 2  # attacks for each process: the next one is there when one ends


def run_in_processes(
    victim: SavedVictim, work: Iterable[Work], settings: Attack, names: Names, processes: int
) -> Iterator[tuple[int, AttackResult]]:
    """Yield results by number as they come.

    Raises:
        MoekdError: a process died.
        SettingsError: the victim cannot be loaded.
    """
    waiting = iter(work)
    running: set[Future[tuple[int, AttackResult]]] = set()
    pool = process_pool(processes)
    try:
        while True:
            for one in islice(waiting, processes * _IN_FLIGHT - len(running)):
                substitutes = names.substitutes(one.sample) if one.attack == "alert" else {}
                running.add(submit(pool, _result, victim, one, settings, names.vocabulary, substitutes))
            if not running:
                pool.shutdown()
                return
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in sorted(finished, key=lambda future: future.exception() is not None):  # results first
                yield future.result()
    except BrokenProcessPool as error:
        raise MoekdError(
            f"a process that attacked {victim.place} died, most often for lack of memory; finished attacks are kept, "
            "and the same command continues from there"
        ) from error
    finally:
        end_now(pool)


def _result(
    victim: SavedVictim,
    work: Work,
    settings: Attack,
    vocabulary: Sequence[str],
    substitutes: Mapping[str, Sequence[str]],
) -> tuple[int, AttackResult]:
    names = Names(vocabulary, lambda sample: substitutes)
    (result,) = run_here(_loaded(victim), [work], settings, names, at_once=1)
    return result


@cache
def _loaded(victim: SavedVictim) -> Victim:
    numerics.configure(1)
    return victim.load()
