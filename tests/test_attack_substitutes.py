"""ALERT's candidate names: equal to a slow reading of the method, legal, kept in a file, for any language model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from slow_variants import by_hooks
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

from moekd.attack import Substitutes, attack, substitutes
from moekd.attack.runner import Names
from moekd.attack.substitutes import Proposer, _combinations
from moekd.config import Attack
from moekd.errors import DataError, SettingsError
from moekd.records import Sample
from moekd.rewrite import Code, Template
from moekd.tokens import train_bpe

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
SETTINGS = Attack(attacks=("alert",), ranks=12, candidates=6, context=20, occurrences=2)


@pytest.fixture(scope="module")
def bpe(functions):
    return train_bpe([one.func for one in functions], vocabulary=700, max_length=120)


@pytest.fixture(scope="module")
def proposer(bpe) -> Proposer:
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=len(bpe), max_position_embeddings=122, pad_token_id=1, **SMALL)
    return Proposer(RobertaForMaskedLM(config).double(), bpe, SETTINGS)  # double: noise of batches breaks no ties


def slow_candidates(proposer: Proposer, text: str) -> dict[str, list[str]]:
    """The method step by step: the library's forward pass for each variant, nothing batched, nothing shared."""
    tokenizer, model, settings = proposer.tokenizer, proposer.model, proposer.settings
    code, template = Code.of(text), Template.of(text)
    names = {start: one.name for one in template.identifiers for start, _ in one.spans}
    ids, places = [], []
    for leaf in code.leaves:
        word = code.source[leaf.start : leaf.end].decode()
        pieces = tokenizer.encode(" " + word, add_special_tokens=False)
        if len(ids) + len(pieces) > proposer.max_length - 2:
            break
        if leaf.start in names:
            places.append((names[leaf.start], list(range(len(ids), len(ids) + len(pieces)))))
        ids += pieces

    def forward(row):
        with torch.inference_mode():
            return model(input_ids=torch.tensor([[0, *row, 2]]))

    logits = forward(ids).logits[0, 1:-1]
    found: dict[str, list[list[str]]] = {one.name: [] for one in template.identifiers}
    for name, place in places:
        if len(found[name]) == settings.occurrences:
            continue
        predicted = [logits[at].topk(settings.ranks).indices.tolist() for at in place]
        whole, at = [0, *ids, 2], slice(place[0] + 1, place[-1] + 2)
        left = max(0, min(at.start, (at.start + at.stop - settings.context) // 2))
        near = slice(left, max(at.stop, left + settings.context))
        variants = torch.tensor([whole[at], *zip(*predicted, strict=True)])
        original, *others = by_hooks(model.base_model, whole, at, variants, near)
        similarity = [float(torch.nn.functional.cosine_similarity(original, new, dim=-1).mean()) for new in others]
        best = sorted(range(settings.ranks), key=lambda rank: -similarity[rank])[: settings.candidates]
        kept = [[ranked[rank] for rank in best] for ranked in predicted]
        if len(place) == 1:
            rows = [(token,) for token in kept[0]]
        else:
            rows = _combinations([np.array(piece) for piece in kept[:12]])
            loss = {}
            for row in rows:
                logs = forward(row).logits[0, 1:-1].log_softmax(-1)
                loss[row] = -float(logs[range(len(row)), list(row)].mean())
            rows = sorted(rows, key=lambda row: loss[row])
        found[name].append([tokenizer.decode(list(row)).strip() for row in rows])
    merged = {}
    for name, lists in found.items():
        longest = max(map(len, lists), default=0)
        in_turn = [one[rank] for rank in range(longest) for one in lists if rank < len(one)]
        merged[name] = [new for new in dict.fromkeys(in_turn) if template.is_free(new)][: settings.candidates]
    return merged


def test_agrees_with_the_slow_reading(proposer, functions):
    """Batches, and rows that hold the near tokens alone, change no candidate and no order."""
    found = [proposer.propose(one.func) for one in functions[:12]]
    assert found == [slow_candidates(proposer, one.func) for one in functions[:12]]
    assert sum(len(names) for one in found for names in one.values()) > 50


def test_candidates_are_legal_free_and_few(proposer, functions):
    for one in functions[:30]:
        template = Template.of(one.func)
        found = proposer.propose(one.func)
        assert list(found) == [identifier.name for identifier in template.identifiers]
        for names in found.values():
            assert len(set(names)) == len(names) <= SETTINGS.candidates
            assert all(template.is_free(name) for name in names)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("int f(void) { return 0; }", {}),
        ("}} ( broken", {}),
        ("int f(void) { " + "g(); " * 200 + "int late = 1; return late; }", {"late": []}),  # beyond what is read
    ],
)
def test_functions_without_candidates(proposer, text, expected):
    assert proposer.propose(text) == expected


def test_combinations_by_hand():
    """Best ranks first: (0,0), then sum 1 in order, then sum 2; at most 24 of 4 ** n."""
    assert _combinations([np.array([1, 2]), np.array([5, 6])]) == [(1, 5), (1, 6), (2, 5), (2, 6)]
    assert len(_combinations([np.arange(6)] * 3)) == 24
    assert max(max(row) for row in _combinations([np.arange(6)] * 3)) <= 3


def test_a_language_model_of_another_kind(functions):
    """BERT with word pieces and specials of its own."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator([one.func for one in functions], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=100,
    )
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(vocab_size=len(fast), max_position_embeddings=100, **SMALL))
    found = Proposer(model, fast, SETTINGS).propose(functions[0].func)
    assert found
    assert any(found.values())


# ------------------------------------------------------------------------------------------------------ file


@pytest.fixture
def saved(proposer, bpe, tmp_path) -> Attack:
    proposer.model.save_pretrained(tmp_path / "lm")
    bpe.save_pretrained(tmp_path / "lm")
    return SETTINGS.model_copy(update={"masked_lm": str(tmp_path / "lm")})


def test_names_are_computed_once_and_kept(saved, proposer, functions, tmp_path, monkeypatch):
    """A second reader of the file loads no model; a line cut off by a kill is computed again."""
    path = tmp_path / "names.jsonl"
    samples = functions[:3]
    Substitutes(path, saved).compute(samples)
    content = path.read_bytes()
    assert len(content.splitlines()) == 4
    path.write_bytes(content[:-5])
    Substitutes(path, saved).compute(samples)
    assert path.read_bytes() == content
    monkeypatch.setattr(substitutes, "_propose", None)
    again = Substitutes(path, saved)
    assert [again(one) for one in samples] == [proposer.propose(one.func) for one in samples]


def test_processes_change_nothing(saved, functions, tmp_path):
    """The same bytes from two processes as from one."""
    files = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for processes, path in enumerate(files, start=1):
        Substitutes(path, saved).compute(functions[:16], processes)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_file_of_another_model_is_refused(saved, functions, tmp_path):
    path = tmp_path / "names.jsonl"
    Substitutes(path, saved).compute(functions[:1])
    with pytest.raises(DataError, match="another model or other settings"):
        Substitutes(path, saved.model_copy(update={"ranks": 3}))
    Substitutes(path, saved.model_copy(update={"budget": 3}))  # no matter for the names


def test_no_language_model():
    with pytest.raises(SettingsError, match="'nowhere' could not be loaded"):
        Proposer.from_pretrained(SETTINGS.model_copy(update={"masked_lm": "nowhere"}))


def test_alert_end_to_end(saved, functions, tmp_path):
    """From a folder of a language model to results; every success uses proposed names."""
    names = Substitutes(tmp_path / "names.jsonl", saved)

    def victim(texts):
        return np.array([0.4 if len(text) % 3 else 0.9 for text in texts])

    samples = [Sample(one.id, one.func, int(len(one.func) % 3 == 0), "toy") for one in functions[:6]]
    results = attack(victim, samples, saved, Names((), names), path=tmp_path / "a.jsonl")
    fooled = [one for one in results if one.outcome == "fooled"]
    assert fooled
    for one in fooled:
        own = names(next(sample for sample in samples if sample.id == one.id))
        assert all(new in own[old] for old, new in one.renames.items())
    assert json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])["schema"] == 1
