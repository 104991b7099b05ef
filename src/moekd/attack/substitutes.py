"""ALERT's candidate names: what a masked language model would write in an identifier's place, and means the same.

They depend on the function alone, never on the model under attack, so they are computed once and shared.

The steps are those of methods.md 7.2, for the first few occurrences of a name instead of all. The similarity of step 2,
60 readings of the whole function for each occurrence in the reference, is computed anew for the tokens near the place
only, while the others keep what the original gives them (variants.py); docs/method.md says how close that comes.
"""

from __future__ import annotations

import heapq
import json
from collections import deque
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from moekd import console, numerics
from moekd.attack.variants import variant_reader
from moekd.classifier import language_model_of, length_limit, why_not_loaded
from moekd.config import SUBSTITUTES_READ
from moekd.errors import DataError, MoekdError, SettingsError
from moekd.files import sha256_text, write_bytes, writing
from moekd.processes import end_now, process_pool, submit
from moekd.rewrite import Template

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from moekd.config import Attack
    from moekd.records import Sample

_MOST_PIECES = 12  # of a name of several sub-tokens: more are not predicted
_PER_PIECE = 4  # candidates of each
_COMBINATIONS = 24  # of them that are tried


@dataclass(frozen=True)
class _Place:
    """One occurrence of an identifier: its sub-tokens are ids[start:end]."""

    name: str
    start: int
    end: int


class Proposer:
    """A masked language model that proposes names.

    Attributes:
        model, tokenizer: of Hugging Face; the tokenizer is a fast one.
        settings: candidates, ranks, occurrences and context are read.
    """

    def __init__(self, model: Any, tokenizer: Any, settings: Attack) -> None:
        self.model = model.to(numerics.device()).eval()
        self.reader = variant_reader(self.model.base_model)
        self.tokenizer = tokenizer
        self.settings = settings
        self.max_length = length_limit(model.config, tokenizer)

    @classmethod
    def from_pretrained(cls, settings: Attack) -> Proposer:
        """Load `settings.masked_lm`: one that the package ships, a folder or a hub name.

        Raises:
            SettingsError: it is no masked language model with a fast tokenizer.
        """
        import torch
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        name, revision = language_model_of(settings.masked_lm), settings.masked_lm_revision
        try:
            model = AutoModelForMaskedLM.from_pretrained(name, revision=revision, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"attack.masked_lm = {settings.masked_lm!r} could not be loaded: {why_not_loaded(name, error)} "
                "Give the folder of a masked language model, or a hub name reachable from here."
            ) from error
        return cls(model, tokenizer, settings)

    def propose(self, text: str) -> dict[str, list[str]]:
        """Return candidate names of each identifier of a function, best first, at most `settings.candidates`.

        Candidates are legal and occur nowhere in the function. An identifier has none if it lies beyond what the model
        can read.
        """
        template = Template.of(text)
        if not template.identifiers:
            return {}
        ids, places = self._encoded(template)
        if not places:
            return {one.name: [] for one in template.identifiers}
        predicted = self._predicted(ids, places)
        kept = self._similar(ids, places, predicted)
        by_place = self._names(places, predicted, kept)
        found: dict[str, list[str]] = {}
        for one in template.identifiers:
            lists = [names for place, names in zip(places, by_place, strict=True) if place.name == one.name]
            free = (name for name in _in_turn(lists) if template.is_free(name))
            found[one.name] = list(islice(free, self.settings.candidates))
        return found

    def _encoded(self, template: Template) -> tuple[list[int], list[_Place]]:
        """Token ids of the function's code tokens, each encoded as a word of its own, and where identifiers lie."""
        code = template.code
        owner = {start: one.name for one in template.identifiers for start, _ in one.spans}
        room = self.max_length - 2
        ids: list[int] = []
        places: list[_Place] = []
        known: dict[str, list[int]] = {}
        seen: dict[str, int] = {}
        for leaf in code.leaves:
            if leaf.kind == "comment" or leaf.end == leaf.start:
                continue
            word = code.slice(leaf).decode("utf-8", "replace")
            if word not in known:
                known[word] = self.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
            if len(ids) + len(known[word]) > room:
                break
            name = owner.get(leaf.start)
            if name is not None and known[word] and seen.get(name, 0) < self.settings.occurrences:
                seen[name] = seen.get(name, 0) + 1
                places.append(_Place(name, len(ids), len(ids) + len(known[word])))
            ids += known[word]
        return ids, places

    def _predicted(self, ids: list[int], places: Sequence[_Place]) -> dict[int, np.ndarray]:
        """Step 1: the best `ranks` predictions at each sub-token of an identifier, from the unmasked text."""
        import torch

        positions = sorted({at for place in places for at in range(place.start, place.end)})
        row = torch.tensor([self._with_specials(ids)], device=numerics.device())
        with torch.inference_mode():
            logits = self.model(input_ids=row).logits[0]  # (tokens, vocabulary)
            ranks = min(self.settings.ranks, logits.shape[-1])
            best = logits[[at + 1 for at in positions]].topk(ranks).indices.cpu().numpy()
        return dict(zip(positions, best, strict=True))

    def _with_specials(self, ids: list[int]) -> list[int]:
        return [self._special("cls_token_id", "bos_token_id"), *ids, self._special("sep_token_id", "eos_token_id")]

    def _special(self, *names: str) -> int:
        found = [value for name in names if (value := getattr(self.tokenizer, name)) is not None]
        return int(found[0])

    def _similar(
        self, ids: list[int], places: Sequence[_Place], predicted: Mapping[int, np.ndarray]
    ) -> list[np.ndarray]:
        """Step 2: for each place the ranks by falling similarity of the embeddings that the replaced text gives it."""
        import torch

        original = self.reader.original(self._with_specials(ids))
        kept = []
        for place in places:
            at = slice(place.start + 1, place.end + 1)
            replaced = np.stack([predicted[at] for at in range(place.start, place.end)], axis=1)  # (ranks, sub-tokens)
            rows = torch.from_numpy(replaced).to(original.ids)
            new = self.reader.embeddings(original, at, rows, near=self.settings.context)
            cosine = torch.nn.functional.cosine_similarity(original.states[at].double(), new.double(), dim=-1)
            similarity = cosine.mean(dim=1).cpu().numpy()  # (ranks,)
            kept.append(np.argsort(-similarity, kind="stable")[: self.settings.candidates])
        return kept

    def _names(
        self, places: Sequence[_Place], predicted: Mapping[int, np.ndarray], kept: Sequence[np.ndarray]
    ) -> list[list[str]]:
        """Step 3: names of each place from the ranks that were kept, best first."""
        combined = [
            [(int(token),) for token in predicted[place.start][ranks]]
            if place.end - place.start == 1
            else _combinations([predicted[at][ranks] for at in range(place.start, place.end)][:_MOST_PIECES])
            for place, ranks in zip(places, kept, strict=True)
        ]
        several = list(dict.fromkeys(row for rows in combined for row in rows if len(row) > 1))
        perplexity = dict(zip(several, self._perplexities(several), strict=True))
        decoded = []
        for rows in combined:
            ordered = sorted(rows, key=lambda row: perplexity.get(row, 0.0))  # stable: single tokens keep their order
            decoded.append([self.tokenizer.decode(list(row)).strip() for row in ordered])
        return decoded

    def _perplexities(self, rows: Sequence[tuple[int, ...]]) -> list[float]:
        """Mean negative log-likelihood of each combination alone, unmasked; orders as the perplexity does."""
        import torch

        found = [0.0] * len(rows)
        for length in {len(row) for row in rows}:
            same = [number for number, row in enumerate(rows) if len(row) == length]
            for start in range(0, len(same), at_once := max(1, numerics.tokens_at_once() // (length + 2))):
                batch = same[start : start + at_once]
                texts = [self._with_specials(list(rows[number])) for number in batch]
                ids = torch.tensor(texts, device=numerics.device())
                with torch.inference_mode():
                    logits = self.model(input_ids=ids).logits[:, 1:-1]  # (batch, sub-tokens, vocabulary)
                    logs = logits.gather(2, ids[:, 1:-1, None])[..., 0] - logits.logsumexp(dim=2)
                for number, mean in zip(batch, logs.double().mean(dim=1).tolist(), strict=True):
                    found[number] = -mean
        return found


def _combinations(pieces: Sequence[np.ndarray]) -> list[tuple[int, ...]]:
    """The first `_COMBINATIONS` choices of one candidate a piece, by the sum of the candidates' ranks."""
    pieces = [piece[:_PER_PIECE] for piece in pieces]
    start = (0,) * len(pieces)
    queue, seen = [(0, start)], {start}
    found: list[tuple[int, ...]] = []
    while queue and len(found) < _COMBINATIONS:
        total, ranks = heapq.heappop(queue)
        found.append(tuple(int(piece[rank]) for piece, rank in zip(pieces, ranks, strict=True)))
        for index, rank in enumerate(ranks):
            following = (*ranks[:index], rank + 1, *ranks[index + 1 :])
            if rank + 1 < len(pieces[index]) and following not in seen:
                seen.add(following)
                heapq.heappush(queue, (total + 1, following))
    return found


def _in_turn(lists: Sequence[Sequence[str]]) -> Iterator[str]:
    """The first of each list, then the second of each, and so on; each name once."""
    seen = set()
    for rank in range(max(map(len, lists), default=0)):
        for names in lists:
            if rank < len(names) and names[rank] not in seen:
                seen.add(names[rank])
                yield names[rank]


# ------------------------------------------------------------------------------------------------------ file

SCHEMA = 2  # 1: similarity in windows of the text
_WORTH_A_PROCESS = 8  # functions of a second or two each: a process starts and loads the model in some seconds
_IN_FLIGHT = 2  # functions for each process: the next one is there when one ends


class Substitutes:
    """Candidate names of many functions in a JSON lines file, computed when they are first asked for.

    The first line names the model and the settings; a file of others is refused.
    """

    def __init__(self, path: Path, settings: Attack) -> None:
        self.path = path
        self.settings = settings
        self._known = self._read()

    def __call__(self, sample: Sample) -> Mapping[str, list[str]]:
        self.compute([sample])
        return self._known[_key(sample.func)]

    def compute(self, samples: Iterable[Sample], processes: int = 1) -> None:
        """Compute and keep the names of all samples, in several processes of one thread each where asked for.

        Raises:
            MoekdError: a process died. The names so far are kept.
        """
        texts = {_key(sample.func): sample.func for sample in samples}
        missing = {key: text for key, text in texts.items() if key not in self._known}
        if not missing:
            return
        with (
            console.bar(len(texts), "substitutes") as advance,
            closing(_proposed(self.settings, list(missing.values()), processes)) as found,
        ):
            advance(len(texts) - len(missing))
            for key, names in zip(missing, found, strict=True):
                self._known[key] = names
                with writing(self.path), self.path.open("ab") as stream:
                    stream.write(_line({"function": key, "names": names}))
                advance(1)

    def _read(self) -> dict[str, dict[str, list[str]]]:
        header = _header(self.settings)
        whole = self.path.read_bytes() if self.path.is_file() else b""
        whole = whole[: whole.rfind(b"\n") + 1]  # without what a kill cut off
        if not whole:
            write_bytes(self.path, _line(header))
            return {}
        first, *rest = whole.splitlines()
        if json.loads(first) != header:
            raise DataError(f"{self.path} holds names of another model or other settings; remove it to start anew")
        write_bytes(self.path, whole)
        return {entry["function"]: entry["names"] for entry in map(json.loads, rest)}


def shared_file(folder: Path, settings: Attack) -> Path:
    """A file in `folder` for the candidates under these settings, to be shared by attacks on any model."""
    return folder / f"substitutes-{sha256_text(json.dumps(_header(settings), sort_keys=True))[:8]}.jsonl"


def _header(settings: Attack) -> dict[str, Any]:
    return {"schema": SCHEMA, **settings.model_dump(mode="json", include=set(SUBSTITUTES_READ))}


def _key(text: str) -> str:
    return sha256_text(text)[:16]


def _line(value: Any) -> bytes:
    return (json.dumps(value) + "\n").encode()


# -------------------------------------------------------------------------------------------------- processes


def _proposed(settings: Attack, texts: Sequence[str], processes: int) -> Generator[dict[str, list[str]]]:
    """Yield the names of each text in order, which are the same in any number of processes."""
    processes = min(processes, len(texts) // _WORTH_A_PROCESS)
    if processes > 1:
        yield from _in_processes(settings, texts, processes)
        return
    for text in texts:
        yield _propose(settings, text)


def _in_processes(settings: Attack, texts: Sequence[str], processes: int) -> Iterator[dict[str, list[str]]]:
    waiting = iter(texts)
    running: deque[Future[dict[str, list[str]]]] = deque()
    pool = process_pool(processes, numerics.configure, 1)
    try:
        while True:
            for text in islice(waiting, processes * _IN_FLIGHT - len(running)):
                running.append(submit(pool, _propose, settings, text))
            if not running:
                pool.shutdown()
                return
            yield running.popleft().result()
    except BrokenProcessPool as error:
        raise MoekdError(
            "a process that looked for ALERT's names died, most often for lack of memory; finished functions are kept, "
            "and the same command continues from there"
        ) from error
    finally:
        end_now(pool)


def _propose(settings: Attack, text: str) -> dict[str, list[str]]:
    return _proposer(settings).propose(text)


@cache
def _proposer(settings: Attack) -> Proposer:
    return Proposer.from_pretrained(settings)
