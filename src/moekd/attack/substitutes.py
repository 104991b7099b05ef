"""ALERT's candidate names: what a masked language model would write in an identifier's place, and means the same.

They depend on the function alone, never on the model under attack, so they are computed once and shared.

The steps are those of methods.md 7.2. For speed, the similarity of step 2 is computed in a window of tokens around the
place instead of the whole function, and for the first few occurrences of a name instead of all; and by the encoder
alone, since the language model's head, the widest product of all, adds nothing to an embedding.
"""

from __future__ import annotations

import heapq
import json
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from moekd import console, numerics
from moekd.classifier import language_model_of, length_limit, model_inputs
from moekd.errors import DataError, SettingsError
from moekd.files import sha256_text, write_bytes, writing
from moekd.rewrite import Template
from moekd.tokens import Tokens, token_batches

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
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
                f"attack.masked_lm = {settings.masked_lm!r} could not be loaded: {str(error).splitlines()[0]} "
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
        rows: list[list[int]] = []
        inside: list[tuple[int, int]] = []  # of each row, where the place's sub-tokens are
        for place in places:
            left = max(0, (place.start + place.end - self.settings.context) // 2)
            right = min(len(ids), left + max(self.settings.context, place.end - left))
            window = ids[left:right]
            start, end = place.start - left, place.end - left
            ranks = len(predicted[place.start])
            for rank in range(-1, ranks):
                changed = list(window)
                if rank >= 0:
                    changed[start:end] = [int(predicted[at][rank]) for at in range(place.start, place.end)]
                rows.append(self._with_specials(changed))
                inside.append((start + 1, end + 1))
        embedded = self._embedded(rows, inside)
        kept, at = [], 0
        for place in places:
            ranks = len(predicted[place.start])
            original, *others = embedded[at : at + ranks + 1]
            similarity = np.array([_mean_cosine(original, other) for other in others])
            kept.append(np.argsort(-similarity, kind="stable")[: self.settings.candidates])
            at += ranks + 1
        return kept

    def _embedded(self, rows: Sequence[list[int]], inside: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """Contextual embeddings of a part of each row, (part, hidden) each; equal rows and parts are read once."""
        distinct = list(dict.fromkeys((tuple(row), part) for row, part in zip(rows, inside, strict=True)))
        found: dict[tuple[tuple[int, ...], tuple[int, int]], np.ndarray] = {}
        for batch, output in self._batches(self.model.base_model, [row for row, _ in distinct]):
            hidden = output.hidden_states[-1]  # (batch, tokens, hidden)
            for number, states in zip(batch, hidden, strict=True):
                start, end = distinct[number][1]
                found[distinct[number]] = states[start:end].double().cpu().numpy()
        return [found[tuple(row), part] for row, part in zip(rows, inside, strict=True)]

    def _batches(self, model: Any, rows: Sequence[Sequence[int]]) -> Iterator[tuple[np.ndarray, Any]]:
        """The output of a model, with hidden states, for batches of rows of similar length."""
        import torch

        tokens = Tokens.of(rows)
        budget = numerics.tokens_at_once()
        for batch in token_batches(tokens.lengths, budget=budget, limit=budget):
            inputs = model_inputs(tokens, batch, self.tokenizer.pad_token_id)
            with torch.inference_mode():
                yield batch, model(**inputs, output_hidden_states=True)

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
        if not rows:
            return found
        for batch, output in self._batches(self.model, [self._with_specials(list(row)) for row in rows]):
            for number, logits in zip(batch, output.logits, strict=True):
                row = rows[number]
                logs = torch.log_softmax(logits[1 : len(row) + 1].double(), dim=-1)
                found[number] = -float(logs[range(len(row)), list(row)].mean())
        return found


def _mean_cosine(first: np.ndarray, second: np.ndarray) -> float:
    """Mean over rows of the cosine between two arrays, (rows, hidden)."""
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(((first * second).sum(axis=1) / np.maximum(norms, 1e-12)).mean())


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


class Substitutes:
    """Candidate names of many functions in a JSON lines file, computed when they are first asked for.

    The first line names the model and the settings; a file of others is refused.
    """

    def __init__(self, path: Path, settings: Attack) -> None:
        self.path = path
        self.settings = settings
        self._proposer: Proposer | None = None
        self._known = self._read()

    def __call__(self, sample: Sample) -> Mapping[str, list[str]]:
        key = sha256_text(sample.func)[:16]
        if key not in self._known:
            self._proposer = self._proposer or Proposer.from_pretrained(self.settings)
            self._known[key] = self._proposer.propose(sample.func)
            with writing(self.path), self.path.open("ab") as stream:
                stream.write(_line({"function": key, "names": self._known[key]}))
        return self._known[key]

    def compute(self, samples: Iterable[Sample]) -> None:
        """Compute and keep the names of all samples."""
        wanted = list(samples)
        with console.bar(len(wanted), "substitutes") as advance:
            for sample in wanted:
                self(sample)
                advance(1)

    def _read(self) -> dict[str, dict[str, list[str]]]:
        header = self.settings.model_dump(mode="json", include=_READ)
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


#: Settings that the candidates depend on.
_READ = {"masked_lm", "masked_lm_revision", "candidates", "ranks", "occurrences", "context"}


def shared_file(folder: Path, settings: Attack) -> Path:
    """A file in `folder` for the candidates under these settings, to be shared by attacks on any model."""
    settings_read = json.dumps(settings.model_dump(mode="json", include=_READ), sort_keys=True)
    return folder / f"substitutes-{sha256_text(settings_read)[:8]}.jsonl"


def _line(value: Any) -> bytes:
    return (json.dumps(value) + "\n").encode()
