"""Many attacks at once on one model: their questions are answered together, their results are kept as they come.

The result of a sample depends on the sample, the attack, the settings and the model alone: each has a generator of its
own, seeded from its id. Neither the order of samples nor how many run at once changes anything, so a killed run
continues with what is missing and ends with the same file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moekd import console, numerics
from moekd.attack import recipes
from moekd.attack.search import Asking, Recipe, UnusableAnswerError, attack_sample
from moekd.attack.victims import HasSessions, Victim, answers_of
from moekd.errors import SettingsError
from moekd.files import sha256_text, write_bytes, writing
from moekd.records import AttackResult

if TYPE_CHECKING:
    from moekd.config import Attack, AttackName
    from moekd.records import Sample

SCHEMA = 1


def no_substitutes(sample: Sample) -> dict[str, list[str]]:
    """No candidates for any function: where ALERT is not asked for."""
    return {}


@dataclass(frozen=True)
class Names:
    """Where attacks take new names from.

    Attributes:
        vocabulary: what MHM and WIR-Random draw from, most frequent first.
        substitutes: ALERT's candidates of a function, identifier -> names, best first.
    """

    vocabulary: Sequence[str] = ()
    substitutes: Callable[[Sample], Mapping[str, Sequence[str]]] = no_substitutes


@dataclass
class _Running:
    """An attack that waits for answers."""

    number: int  # in the work list
    attack: Asking[AttackResult]
    victim: Victim  # of this attack alone, or of all
    asked: list[str]


def attack(
    victim: Victim,
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
        victim: texts -> probabilities.
        path: JSON lines file that results are appended to; finished ones in it are not computed again.
        model: what the victim is called in that file; a file of another model is refused.
        at_once: attacks that run side by side; a plain callable is asked for the texts of all of them in one call.
        workers: threads that ask a model of ours, an attack each. Give each one core (torch.set_num_threads(1)): small
            models gain more from a second function than from a second thread inside one product.
    Raises:
        SettingsError: `path` holds results of another model, other settings or other samples.
    """
    work = [(sample, name) for sample in samples for name in settings.attacks]
    done: dict[int, AttackResult] = {}
    ledger = None
    known: dict[tuple[str, str], AttackResult] = {}
    if path is not None:
        ledger = _Ledger(path, _header(model, settings, samples))
        known = ledger.read()
        done = {
            number: known[sample.id, name] for number, (sample, name) in enumerate(work) if (sample.id, name) in known
        }
    missing = [number for number in range(len(work)) if number not in done]
    with console.bar(len(work), f"attacks on {model}" if model else "attacks") as advance:
        advance(len(done))
        started = (_start(victim, work[number], number, settings, names) for number in missing)
        with ThreadPoolExecutor(workers) as pool:
            for number, result in _run(started, at_once, pool):
                done[number] = result
                if ledger is not None:
                    ledger.append(result)
                advance(1)
    results = [done[number] for number in range(len(work))]
    if ledger is not None:
        wanted = set(settings.attacks)
        ledger.finish([*results, *(one for one in known.values() if one.attack not in wanted)])
    return results


def _start(
    victim: Victim, work: tuple[Sample, AttackName], number: int, settings: Attack, names: Names
) -> tuple[int, Asking[AttackResult], Victim]:
    sample, name = work
    recipe = recipe_of(name, sample, settings, names)
    coroutine = attack_sample(sample, name, recipe, budget=settings.budget, minimal=settings.minimal)
    return number, coroutine, victim.session(sample.func) if isinstance(victim, HasSessions) else victim


def recipe_of(name: AttackName, sample: Sample, settings: Attack, names: Names) -> Recipe:
    """Return the attack of that name on a sample, with its candidates and its own generator bound."""
    rng = numerics.generator(settings.seed, name, sample.id)
    if name == "alert":
        return lambda search: recipes.alert(search, names.substitutes(sample), rng, settings)
    if name == "mhm":
        return lambda search: recipes.mhm(search, names.vocabulary, rng, settings)
    return lambda search: recipes.wir_random(search, names.vocabulary, rng, settings)


def _run(
    attacks: Iterator[tuple[int, Asking[AttackResult], Victim]], at_once: int, pool: ThreadPoolExecutor
) -> Iterator[tuple[int, AttackResult]]:
    """Yield results as they come; a place that becomes free is taken by the next attack."""
    running: list[_Running] = []
    while True:
        while len(running) < at_once and (entry := next(attacks, None)) is not None:
            number, coroutine, victim = entry
            answered = _advance(coroutine, None)
            if isinstance(answered, AttackResult):
                yield number, answered
            else:
                running.append(_Running(number, coroutine, victim, answered))
        if not running:
            return
        answers = _answer_all(running, pool)
        waiting = []
        for one in running:
            answered = _advance(one.attack, answers[one.number])
            if isinstance(answered, AttackResult):
                yield one.number, answered
            else:
                one.asked = answered
                waiting.append(one)
        running = waiting


def _answer_all(running: Sequence[_Running], pool: ThreadPoolExecutor) -> dict[int, list[float] | UnusableAnswerError]:
    """Answer the questions of all attacks by their numbers, those to the same victim in one call."""
    by_victim: dict[int, list[_Running]] = {}
    for one in running:
        by_victim.setdefault(id(one.victim), []).append(one)
    answered = pool.map(_answer, by_victim.values())
    return {number: answers for group in answered for number, answers in group.items()}


def _answer(group: Sequence[_Running]) -> dict[int, list[float] | UnusableAnswerError]:
    """Answer in one call; if that fails, each question alone, so that one attack cannot spoil the others."""
    distinct = list(dict.fromkeys(text for one in group for text in one.asked))
    try:
        known = dict(zip(distinct, answers_of(group[0].victim, distinct), strict=True))
    except UnusableAnswerError:
        return {one.number: _answer_alone(one) for one in group}
    return {one.number: [known[text] for text in one.asked] for one in group}


def _answer_alone(one: _Running) -> list[float] | UnusableAnswerError:
    try:
        return answers_of(one.victim, one.asked)
    except UnusableAnswerError as error:
        return error


def _advance(
    coroutine: Asking[AttackResult], answers: list[float] | UnusableAnswerError | None
) -> list[str] | AttackResult:
    """Send answers and return the next question, or the result."""
    try:
        if isinstance(answers, UnusableAnswerError):
            return coroutine.throw(answers)
        return coroutine.send(answers) if answers is not None else next(coroutine)
    except StopIteration as end:
        return end.value


# ------------------------------------------------------------------------------------------------------ file


def _header(model: str, settings: Attack, samples: Sequence[Sample]) -> dict[str, Any]:
    """What a file of results belongs to: work with another header gives other results."""
    return {
        "schema": SCHEMA,
        "model": model,
        "settings": settings.model_dump(mode="json", exclude={"attacks", "systems", "samples"}),
        "samples": sha256_text("\n".join(sorted(f"{sample.id} {sha256_text(sample.func)}" for sample in samples)))[:16],
    }


class _Ledger:
    """JSON lines: a header, then a result a line, appended in any order; sorted once all are there."""

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path = path
        self.header = header

    def read(self) -> dict[tuple[str, str], AttackResult]:
        """Return the results so far by sample and attack; start the file if there is none.

        A line that was cut off by a kill is removed.
        """
        whole = self.path.read_bytes() if self.path.is_file() else b""
        whole = whole[: whole.rfind(b"\n") + 1]
        if not whole:
            write_bytes(self.path, _line(self.header))
            return {}
        lines = whole.splitlines()
        self._require_same(lines[0])
        write_bytes(self.path, whole)
        results = [result_of(json.loads(line)) for line in lines[1:]]
        return {(result.id, result.attack): result for result in results}

    def _require_same(self, line: bytes) -> None:
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if found != self.header:
            old = found if isinstance(found, dict) else {}
            changed = [name for name in self.header if old.get(name) != self.header[name]]
            raise SettingsError(
                f"{self.path} holds results of other work (its {', '.join(changed)} differ); "
                "choose another file, or remove it to start anew"
            )

    def append(self, result: AttackResult) -> None:
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
