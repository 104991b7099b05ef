"""The embedded data set: C functions of our own, made by seed, in which the weakness can be learned.

Each function is a scene of `templates.SCENES` with harmless code around it. Whether it is vulnerable is decided by
order and place (a check before or after the access, a step inside or outside of a lock), less often by which tokens
occur: a bag of tokens is to learn little from it, a model that reads in order most of it.
"""

from __future__ import annotations

import datetime
import hashlib
import random
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from moekd.data import templates
from moekd.data.templates import REJECT, Block, Bracketed, Guarded, Node, Ordered, Scene
from moekd.records import Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Nodes = tuple[Node, ...]

_ROLE = re.compile(r"\{([a-zA-Z]+)(\d*)\}")
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
_DECLARED = frozenset(_IDENTIFIER.findall(templates.PRELUDE))


@dataclass(frozen=True)
class Twins:
    """Two functions that differ only in what makes one of them safe."""

    cwe: str | None
    mechanism: str  # how they differ
    safe: str
    vulnerable: str


def generate(count: int, seed: int) -> list[Sample]:
    """Return `count` functions, half of them vulnerable, the ten groups in equal shares.

    Equal arguments give equal functions; a shorter result is no beginning of a longer one. A function's twin is left
    out, so that few functions are near-duplicates. Projects, commits and dates are made up; in each project, commit
    and group as many functions are vulnerable as not.
    """
    rng = random.Random(f"embedded {count} {seed}")
    groups = tuple(templates.SCENES)
    projects = [n % len(templates.PROJECTS) for n in range((count + 1) // 2)]
    rng.shuffle(projects)
    samples = []
    for n in range(count):
        twins = draw_twins(rng, rng.choice(templates.SCENES[groups[n // 2 % len(groups)]]))
        samples.append(_sample(n, n % 2, twins, projects[n // 2], f"{count} {seed} {n // 2}"))
    rng.shuffle(samples)
    return samples


def fingerprint() -> str:
    """Return the digest of a small sample, which changes whenever the generator's output does."""
    return hashlib.sha256("".join(sample.func for sample in generate(200, 0)).encode()).hexdigest()


def draw_twins(rng: random.Random, scene: Scene) -> Twins:
    """Write one scene in both variants, with the same names, filler and layout."""
    fillers = _Fillers(rng)
    padding = _Padding.draw(rng, fillers)
    mechanism, safe, vulnerable = _cores(rng, scene, fillers, padding.between)
    frame = _Frame.draw(rng, scene, fillers, padding, gives_up=REJECT in _flat(safe))
    names = _Names(rng)
    layout = _Layout.draw(rng)
    texts = [layout.write(names, frame, core) for core in (safe, vulnerable)]
    return Twins(scene.cwe, mechanism, *texts)


def _sample(n: int, label: int, twins: Twins, project: int, commit: str) -> Sample:
    digest = hashlib.sha256(commit.encode()).digest()
    first_day = datetime.date(2008, 1, 1).toordinal()
    return Sample(
        id=f"embedded:{n}",
        func=twins.vulnerable if label else twins.safe,
        label=label,
        dataset="embedded",
        kind="vulnerable" if label else "unchanged",
        cwe=twins.cwe,
        project=templates.PROJECTS[project],
        family=templates.FAMILIES[project % len(templates.FAMILIES)],
        commit=digest[:20].hex(),
        date=datetime.date.fromordinal(first_day + int.from_bytes(digest[-4:]) % 4700).isoformat(),
    )


class _Fillers:
    """Draws harmless code; each draw has roles of its own."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._drawn = 0

    def note(self) -> str:
        return self._own(self._rng.choice(templates.NOTES))

    def aside(self) -> str:
        return self._own(self._rng.choice(templates.ASIDES))

    def perhaps(self) -> Nodes:
        """Now and then one harmless line."""
        return (self.note(),) if self._rng.random() < 0.25 else ()

    def some(self, count: int) -> tuple[tuple[str, ...], list[Nodes]]:
        """Return declarations and `count` groups of statements."""
        declarations: list[str] = []
        bodies = []
        for _ in range(count):
            needs, lines = self._rng.choice(templates.FILLERS)
            mark = self._mark()
            declarations += [_marked(line, mark) for line in needs]
            bodies.append(tuple(_each_line(lines, partial(_marked, mark=mark))))
        return tuple(declarations), bodies

    def _own(self, line: str) -> str:
        return _marked(line, self._mark())

    def _mark(self) -> str:
        self._drawn += 1
        return str(100 + self._drawn)


def _marked(line: str, mark: str) -> str:
    return _ROLE.sub(lambda role: f"{{{role[1]}{mark}}}", line)


def _flat(nodes: Iterable[Node]) -> list[str]:
    return [line for node in nodes for line in ([node.head, *_flat(node.body)] if isinstance(node, Block) else [node])]


def _each_line(nodes: Iterable[Node], change: Callable[[str], str]) -> Nodes:
    return tuple(
        Block(change(node.head), _each_line(node.body, change)) if isinstance(node, Block) else change(node)
        for node in nodes
    )


@dataclass(frozen=True)
class _Padding:
    """Harmless statements of one function, most of them between the two decisive ones.

    The distance makes order visible: where the decisive statements stand next to each other, a small encoder learns
    the names by heart before it learns the order.
    """

    declarations: tuple[str, ...]
    before: Nodes
    between: Nodes
    after: Nodes

    @classmethod
    def draw(cls, rng: random.Random, fillers: _Fillers) -> _Padding:
        count = int(rng.expovariate(1.0)) + (rng.randint(4, 14) if rng.random() < 0.05 else 0)
        declarations, bodies = fillers.some(count)
        places: tuple[list[Node], list[Node], list[Node]] = ([], [fillers.note()], [])
        for body in [*bodies, fillers.perhaps(), fillers.perhaps()]:
            rng.choices(places, (0.1, 0.8, 0.1))[0].extend(body)
        if rng.random() < 0.5:
            places[2].append(fillers.note())
        return cls(declarations, *(tuple(place) for place in places))


def _cores(rng: random.Random, scene: Scene, fillers: _Fillers, between: Nodes) -> tuple[str, Nodes, Nodes]:
    """Return how the twins differ, and the decisive statements of the safe and of the vulnerable one."""
    if isinstance(scene, Ordered):
        safe = (scene.first, *between, scene.second)
        if scene.needed and rng.random() < 0.15:
            return "absent", safe, (fillers.note(), *between, scene.second)
        return "swapped", safe, (scene.second, *between, scene.first)
    if isinstance(scene, Bracketed):
        note = fillers.note()
        inside = (note, *between, scene.enter, scene.step, scene.leave)
        outside = (scene.step, *between, scene.enter, note, scene.leave)
        return ("bracket", inside, outside) if scene.inside else ("bracket", outside, inside)
    assert isinstance(scene, Guarded)
    ways = [way for way in _MECHANISMS if way != "slack" or scene.slack]
    way = rng.choices(ways, [_WEIGHTS[w] for w in ways])[0]
    check = Block(f"if ({scene.bad})", (*fillers.perhaps(), REJECT))
    safe = (check, *between, scene.sink)
    return way, safe, _MECHANISMS[way](scene, check, fillers, between)


def _late(scene: Guarded, check: Block, fillers: _Fillers, between: Nodes) -> Nodes:
    """The check comes after the access."""
    return (scene.sink, *between, check)


def _toothless(scene: Guarded, check: Block, fillers: _Fillers, between: Nodes) -> Nodes:
    """The check only takes a note."""
    return (Block(check.head, (*check.body[:-1], fillers.note())), *between, scene.sink)


def _missing(scene: Guarded, check: Block, fillers: _Fillers, between: Nodes) -> Nodes:
    """Something else is looked at, and nothing checked."""
    aside = Block(f"if ({fillers.aside()})", (*check.body[:-1], fillers.note()))
    return (aside, *between, scene.sink)


def _slack(scene: Guarded, check: Block, fillers: _Fillers, between: Nodes) -> Nodes:
    """The check lets dangerous values pass."""
    return (Block(f"if ({scene.slack})", check.body), *between, scene.sink)


_MECHANISMS = {"late": _late, "toothless": _toothless, "missing": _missing, "slack": _slack}
_WEIGHTS = {"late": 0.6, "toothless": 0.17, "missing": 0.18, "slack": 0.05}


@dataclass(frozen=True)
class _Frame:
    """All of a function but its decisive statements."""

    params: str
    before: Nodes
    after: Nodes
    declarations: tuple[str, ...]
    answer: tuple[str, str, str]  # type, giving up, last statement
    jump: bool  # give up through a label at the end

    @classmethod
    def draw(cls, rng: random.Random, scene: Scene, fillers: _Fillers, padding: _Padding, *, gives_up: bool) -> _Frame:
        declarations = (*scene.locals, *padding.declarations)
        before = (*scene.setup, *padding.before)
        if not (declarations or before):
            before = (fillers.note(),)  # else the token after the opening brace would tell which step is first
        answer = rng.choice(templates.ANSWERS)
        return cls(
            params=scene.params,
            before=before,
            after=(*scene.tail, *padding.after),
            declarations=declarations,
            answer=answer,
            jump=gives_up and answer[0] != "void" and rng.random() < 0.3,
        )


class _Names:
    """Gives each role its identifier or literal, in one style a function."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._style = rng.choices(("snake", "camel", "bare"), (0.45, 0.25, 0.3))[0]
        self._of: dict[str, str] = {}

    def fill(self, line: str) -> str:
        return _ROLE.sub(lambda match: self._name(match[1], match[2]), line)

    def _name(self, role: str, digits: str) -> str:
        key = role + digits
        if key not in self._of:
            literal = _LITERALS.get(role)
            self._of[key] = literal(self._rng) if literal else self._identifier(role)
        return self._of[key]

    def _identifier(self, role: str) -> str:
        if role == "self":
            return self._join(self._rng.choice(templates.VERBS), self._rng.choice(templates.NOUNS))
        words = templates.ROLES.get(role, (role,))
        taken = _DECLARED | set(self._of.values())
        name = self._rng.choice(words)
        if self._style != "bare" and self._rng.random() < 0.25:
            name = self._join(self._rng.choice(templates.NOUNS), name)
        while name in taken:
            name = self._join(self._rng.choice(templates.NOUNS), self._rng.choice(words))
        return name

    def _join(self, *words: str) -> str:
        if self._style == "camel":
            return words[0] + "".join(word.capitalize() for word in words[1:])
        return "_".join(words)


def _text(rng: random.Random) -> str:
    return f'"{rng.choice(templates.NOUNS)}"'


_LITERALS: dict[str, Callable[[random.Random], str]] = {
    "num": lambda rng: rng.choice(("1", "2", "3", "4", "5", "7", "8", "10", "16", "20")),
    "size": lambda rng: rng.choice(("32", "64", "128", "256", "512")),
    "text": _text,
    "command": lambda rng: f'"{rng.choice(templates.COMMANDS)}"',
    "select": lambda rng: f'"{rng.choice(templates.SELECTS)}"',
    "kind": lambda rng: rng.choice(templates.KINDS),
    "MAX": lambda rng: rng.choice(templates.ROLES["MAX"]),
}


@dataclass(frozen=True)
class _Layout:
    """Where white space and braces go."""

    indent: str
    brace: str  # before a function's opening brace
    bare: bool  # leave out the braces around one line

    @classmethod
    def draw(cls, rng: random.Random) -> _Layout:
        return cls(rng.choice(("    ", "\t", "  ")), rng.choice((" ", "\n")), rng.random() < 0.5)

    def write(self, names: _Names, frame: _Frame, core: Nodes) -> str:
        kind, fail, done = frame.answer
        reject = "goto fail;" if frame.jump else fail
        lines = [f"{kind} {{self}}({frame.params}){self.brace}{'{'}"]
        lines += [self.indent + line for line in frame.declarations]
        lines += self._block((*frame.before, *core, *frame.after), reject, 1)
        lines += [self.indent + done] if done else []
        lines += ["fail:", self.indent + fail] if frame.jump else []
        return names.fill("\n".join([*lines, "}"]))

    def _block(self, nodes: Nodes, reject: str, depth: int) -> list[str]:
        lines: list[str] = []
        for node in nodes:
            if isinstance(node, str):
                lines.append(self.indent * depth + node.replace(REJECT, reject))
                continue
            braces = not (self.bare and len(node.body) == 1)
            lines.append(self.indent * depth + node.head + (" {" if braces else ""))
            lines += self._block(node.body, reject, depth + 1)
            lines += [self.indent * depth + "}"] if braces else []
        return lines
