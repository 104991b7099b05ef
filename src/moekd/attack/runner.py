"""Many attacks at once on one model: their results are kept as they come.

The result of a sample depends on the sample, the attack, the settings and the model alone: each has a generator of its
own, seeded from its id. Neither the order of samples nor how many run at once or in how many processes changes
anything, so a killed run continues with what is missing and ends with the same file.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moekd import console
from moekd.attack.schedule import Names, Work, run_here
from moekd.attack.victims import SavedVictim, Victim
from moekd.attack.workers import run_in_processes
from moekd.errors import SettingsError
from moekd.files import sha256_text, write_bytes, writing
from moekd.records import AttackResult

if TYPE_CHECKING:
    from moekd.config import Attack
    from moekd.records import Sample

SCHEMA = 1
_WORTH_A_PROCESS = 8  # attacks of seconds to a minute each: a process starts and loads the model in some seconds


def attack(
    victim: Victim | SavedVictim,
    samples: Sequence[Sample],
    settings: Attack,
    names: Names,
    *,
    path: Path | None = None,
    model: str = "",
    at_once: int = 16,
    workers: int = 1,
) -> list[AttackResult]:
    """Run `settings.attacks` on each sample; return the results in the order of the samples, attack by attack.

    Args:
        victim: texts -> probabilities, or where such a model is saved.
        path: JSON lines file that results are appended to; finished ones in it are not computed again.
        model: what the victim is called in that file; a file of another model is refused.
        at_once: attacks that run side by side in this process; a plain callable is asked for the texts of all of them
            in one call.
        workers: processes that share the attacks on a saved victim, if there are enough for them. A script that asks
            for several needs its `if __name__ == "__main__":`, as they import it again.
    Raises:
        SettingsError: `path` holds results of another model, other settings, samples or names, or something else; or
            the victim cannot be loaded.
        MoekdError: a worker process died. Finished results are in `path`.
    """
    pairs = [(sample, name) for sample in samples for name in settings.attacks]
    done: dict[int, AttackResult] = {}
    ledger = None
    known: dict[tuple[str, str], AttackResult] = {}
    if path is not None:
        ledger = _Ledger(path, _header(model, settings, samples, names))
        known = ledger.read()
        done = {
            number: known[sample.id, name] for number, (sample, name) in enumerate(pairs) if (sample.id, name) in known
        }
    missing = [Work(number, *pair) for number, pair in enumerate(pairs) if number not in done]
    with (
        console.bar(len(pairs), f"attacks on {model}" if model else "attacks") as advance,
        closing(_results(victim, missing, settings, names, at_once, workers)) as found,
    ):
        advance(len(done))
        for number, result in found:
            done[number] = result
            if ledger is not None:
                ledger.append(result)
            advance(1)
    results = [done[number] for number in range(len(pairs))]
    if ledger is not None:
        wanted = set(settings.attacks)
        ledger.finish([*results, *(one for one in known.values() if one.attack not in wanted)])
    return results


def _results(
    victim: Victim | SavedVictim, work: Sequence[Work], settings: Attack, names: Names, at_once: int, workers: int
) -> Generator[tuple[int, AttackResult]]:
    """Yield results as they come, by their numbers in the work list."""
    if isinstance(victim, SavedVictim):
        processes = min(workers, len(work) // _WORTH_A_PROCESS)
        if processes > 1:
            yield from run_in_processes(victim, work, settings, names, processes)
            return
        if not work:
            return
        victim = victim.load()
    yield from run_here(victim, work, settings, names, at_once=at_once)


# ------------------------------------------------------------------------------------------------------ file


def _header(model: str, settings: Attack, samples: Sequence[Sample], names: Names) -> dict[str, Any]:
    """What a file of results belongs to: work with another header gives other results."""
    return {
        "schema": SCHEMA,
        "model": model,
        "settings": settings.model_dump(mode="json", exclude={"attacks", "systems", "samples"}),
        "samples": sha256_text("\n".join(sorted(f"{sample.id} {sha256_text(sample.func)}" for sample in samples)))[:16],
        "vocabulary": sha256_text(" ".join(names.vocabulary))[:16],
    }


class _Ledger:
    """JSON lines: a header, then a result a line, appended in any order; sorted once all are there."""

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path = path
        self.header = header
        self.has_header = False

    def read(self) -> dict[tuple[str, str], AttackResult]:
        """Return the results so far by sample and attack; a line that was cut off by a kill is removed.

        A new file begins with its first result: a model that cannot be loaded leaves none.
        """
        whole = self.path.read_bytes() if self.path.is_file() else b""
        whole = whole[: whole.rfind(b"\n") + 1]
        if not whole:
            self._require_own(self.path.read_bytes() if self.path.is_file() else b"")
            return {}
        lines = whole.splitlines()
        self._require_same(lines[0])
        write_bytes(self.path, whole)
        self.has_header = True
        results = [result_of(json.loads(line)) for line in lines[1:]]
        return {(result.id, result.attack): result for result in results}

    def _require_own(self, begun: bytes) -> None:
        """Refuse one line without an end, unless it is the beginning of our own."""
        if not _line(self.header).startswith(begun):
            raise SettingsError(f"{self.path} holds no results of attacks; choose another file, or remove it")

    def _require_same(self, line: bytes) -> None:
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if isinstance(found, dict):  # files of earlier versions do not tell their vocabulary
            found = {"vocabulary": self.header["vocabulary"], **found}
        if found != self.header:
            old = found if isinstance(found, dict) else {}
            changed = [name for name in self.header if old.get(name) != self.header[name]]
            raise SettingsError(
                f"{self.path} holds results of other work (its {', '.join(changed)} differ); "
                "choose another file, or remove it to start anew"
            )

    def append(self, result: AttackResult) -> None:
        if not self.has_header:
            write_bytes(self.path, _line(self.header))
            self.has_header = True
        with writing(self.path), self.path.open("ab") as stream:
            stream.write(_line(asdict(result)))

    def finish(self, results: Sequence[AttackResult]) -> None:
        """Put the results in the order of the work list: a file that does not tell how it came to be.

        Results of other attacks, asked for earlier, come last.
        """
        write_bytes(self.path, _line(self.header) + b"".join(_line(asdict(result)) for result in results))


def read_results(path: Path) -> list[AttackResult]:
    """Return the results in a file that `attack` wrote, in its order."""
    return [result_of(json.loads(line)) for line in path.read_bytes().splitlines()[1:]]


def result_of(fields: Mapping[str, Any]) -> AttackResult:
    """A result from its JSON object."""
    trace = tuple((queries, p) for queries, p in fields["trace"])
    return AttackResult(**{**fields, "trace": trace})


def _line(value: Any) -> bytes:
    # ASCII: a lone surrogate of the input is no UTF-8.
    return (json.dumps(value, allow_nan=False) + "\n").encode()
