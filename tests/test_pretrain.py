"""Pre-training: packed rows, masks, replaced tokens, n-gram models, and small runs that learn."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow.parquet import write_table
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from moekd import stages
from moekd.cli import app
from moekd.config import PretrainSettings
from moekd.data.text import normalise
from moekd.errors import DataError, SettingsError
from moekd.pretrain.architectures import draw_offsets, masked_token_logits, new_model, token_states
from moekd.pretrain.baselines import NGrams
from moekd.pretrain.objectives import (
    OBJECTIVES,
    Masking,
    as_ids,
    hide,
    sample,
)
from moekd.pretrain.rows import load_rows, pack, starts_word
from moekd.pretrain.training import rows_of_round, train
from moekd.steps import read_manifest
from moekd.tokens import SPECIALS

MASK = SPECIALS.index("<mask>")


def settings(folder: Path | str = "runs", **pretrain) -> PretrainSettings:
    return PretrainSettings.model_validate(
        {
            "name": "micro",
            "run": {"folder": str(folder), "threads": 1},
            "corpus": {"paths": [str(Path(folder).parent / "functions.parquet")], "held_out": 0.2, "workers": 1},
            "encoder": {
                "vocabulary": 400,
                "max_length": 64,
                "layers": 1,
                "hidden": 32,
                "heads": 2,
                "intermediate": 64,
            },
            "pretrain": {
                "row_length": 32,
                "tokens": 60_000,
                "round_tokens": 15_000,
                "generator_hidden": 16,
                "generator_heads": 2,
                "training": {"token_budget": 512, "learning_rate": 5e-3},
            }
            | pretrain,
        }
    )


@pytest.fixture(scope="module")
def rows(tmp_path_factory, functions):
    """A `pack` stage's folder of the embedded functions, and its settings."""
    folder = tmp_path_factory.mktemp("rows")
    texts = [normalise(sample.func) for sample in functions]
    held_out = [i % 10 == 0 for i in range(len(texts))]
    write_table(pa.table({"func": texts, "held_out": held_out}), folder / "functions.parquet")
    pack(settings(), {"corpus": folder}, folder)
    return folder


@pytest.fixture(scope="module")
def packed_tokenizer(rows):
    return PreTrainedTokenizerFast.from_pretrained(str(rows))


# ----------------------------------------------------------------------------------------------------- rows


def test_rows_are_the_functions_one_after_another(rows, functions, packed_tokenizer):
    """Nothing but the last part of a row is lost, and nothing is padding."""
    train, held_out = load_rows(rows, "train"), load_rows(rows, "held_out")
    assert train.dtype == np.uint16
    assert train.shape[1] == held_out.shape[1] == 32
    text = packed_tokenizer.decode(np.r_[train.ravel()])
    found = [part.strip() for part in text.replace("</s>", "").split("<s>") if part.strip()]
    wanted = {normalise(s.func) for i, s in enumerate(functions) if i % 10}
    assert len(found) == len([i for i in range(len(functions)) if i % 10])
    assert set(found[:-1]) <= wanted
    assert not (train == SPECIALS.index("<pad>")).any()


def test_too_small_a_corpus(tmp_path):
    func = "int f(int a) { return a + 1; }"
    write_table(pa.table({"func": [func, func], "held_out": [False, True]}), tmp_path / "functions.parquet")
    chosen = settings().model_copy(update={"encoder": settings().encoder.model_copy(update={"vocabulary": 300})})
    with pytest.raises(SettingsError, match=r"vocabulary is 300, but the corpus supports 2\d\d entries only"):
        pack(chosen, {"corpus": tmp_path}, tmp_path)


def test_less_than_a_batch(rows, tmp_path):
    chosen = settings(training={"token_budget": 10_000_000})
    message = r"too small: its train part makes \d+ rows of 32 tokens, wanted at least 312,500\. .*lower .*token_budget"
    with pytest.raises(DataError, match=message):
        pack(chosen, {"corpus": rows}, tmp_path)
    with pytest.raises(DataError, match=message):  # the rows may have been packed for another budget
        train(chosen, {"rows": rows}, tmp_path, seed=0)


def test_words_of_tokens(packed_tokenizer):
    """By hand: a leading blank starts a word, letters, digits and underscores continue one, operators do neither."""
    first, last = starts_word(packed_tokenizer)
    vocabulary = packed_tokenizer.get_vocab()
    after_blank = next(token for token in vocabulary if token[0] == "Ġ" and token[1:].isalpha())
    wanted = {"a": (1, 1), "_": (1, 1), "9": (1, 1), after_blank: (0, 1), "(": (0, 0), "Ġ": (0, 0), "<s>": (0, 0)}
    assert {token: (first[vocabulary[token]], last[vocabulary[token]]) for token in wanted} == wanted


def test_every_row_once_a_pass():
    """Rounds of 7 of 10 rows: after ten rounds each row was drawn seven times, and no pass repeats one."""
    drawn = np.concatenate([rows_of_round(10, 7, index, seed=3) for index in range(10)])
    for start in range(0, 70, 10):
        assert sorted(drawn[start : start + 10]) == list(range(10))
    assert not np.array_equal(drawn[:10], drawn[10:20])


# --------------------------------------------------------------------------------------------------- masking


def test_share_of_masked_tokens():
    torch.manual_seed(0)
    ids = torch.randint(0, 400, (200, 100))
    chosen = Masking(0.15, None, None).draw(ids)
    assert not chosen[ids < len(SPECIALS)].any()
    assert float(chosen[ids >= len(SPECIALS)].float().mean()) == pytest.approx(0.15, abs=0.01)


@given(st.lists(st.integers(0, 11), min_size=8, max_size=8), st.integers(0, 100))
def test_whole_identifiers(row, seed):
    """All tokens of an identifier are chosen or none. Ids 5 to 7 continue one, 8 starts one, 9 to 11 are operators."""
    continues = torch.tensor([False] * 5 + [True] * 3 + [False] * 4)
    ends_open = torch.tensor([False] * 5 + [True] * 4 + [False] * 3)
    torch.manual_seed(seed)
    ids = torch.tensor([row, row])
    chosen = Masking(0.5, continues, ends_open).draw(ids)
    for line in range(2):
        for place in range(1, 8):
            if continues[row[place]] and ends_open[row[place - 1]]:
                assert chosen[line, place] == chosen[line, place - 1]


def test_words_are_drawn_by_themselves():
    """Whole identifiers, not whole lines: 1,000 words of two tokens each, a third of which is chosen."""
    continues, ends_open = torch.zeros(12, dtype=torch.bool), torch.zeros(12, dtype=torch.bool)
    continues[7], ends_open[8] = True, True
    torch.manual_seed(0)
    chosen = Masking(1 / 3, continues, ends_open).draw(torch.tensor([[8, 7] * 50] * 20))
    assert torch.equal(chosen[:, ::2], chosen[:, 1::2])
    assert float(chosen.float().mean()) == pytest.approx(1 / 3, abs=0.05)


def test_masks_are_drawn_anew(packed_tokenizer, rows, tmp_path):
    """A row that is met again has other tokens to predict: by step, so that a resumed run draws the same."""
    chosen = settings(training={"token_budget": 64}, round_tokens=500, tokens=1000)
    drawn: list[torch.Tensor] = []
    two = tmp_path / "rows"
    two.mkdir()
    packed_tokenizer.save_pretrained(str(two))
    for part in ("train", "held_out"):
        np.save(two / f"{part}.npy", load_rows(rows, part)[:2])
    draw = Masking.draw

    def recorded(self, ids):
        mask = draw(self, ids)
        if torch.is_grad_enabled():  # training, not measuring
            drawn.append(mask[ids[:, 0].argsort()])
        return mask

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Masking, "draw", recorded)
        train(chosen, {"rows": two}, tmp_path, seed=0)
    assert len(drawn) >= 14  # both rows in each step
    assert len({mask.numpy().tobytes() for mask in drawn}) == len(drawn)


def test_drawn_tensors_lie_where_the_ids_do():
    """On a GPU what is drawn must lie there; the meta device stands in for one."""
    ids = torch.zeros((4, 8), dtype=torch.int64, device="meta")
    chosen = Masking(0.15, None, None).draw(ids)
    hidden = hide(ids, chosen, vocabulary=400)
    roberta = SimpleNamespace(config=SimpleNamespace(model_type="roberta", pad_token_id=1))
    places = token_states(roberta, hidden, draw_offsets(4, 8, 12))
    assert {tensor.device.type for tensor in (chosen, hidden, *places.values())} == {"meta"}


def test_what_becomes_of_chosen_tokens():
    """80 % masks, 10 % others, 10 % unchanged; tokens that were not chosen stay."""
    torch.manual_seed(0)
    ids = torch.full((100, 1000), 7)
    chosen = torch.rand(ids.shape) < 0.5
    hidden = hide(ids, chosen, vocabulary=50_000)
    assert bool((hidden[~chosen] == 7).all())
    inside = hidden[chosen]
    assert float((inside == MASK).float().mean()) == pytest.approx(0.8, abs=0.01)
    assert float((inside == 7).float().mean()) == pytest.approx(0.1, abs=0.01)


def test_offsets_of_learned_positions():
    """Half of the rows start at the first position, the others anywhere they fit, and all positions are used."""
    torch.manual_seed(0)
    found = draw_offsets(4000, 8, 12)
    assert set(found.tolist()) == {0, 1, 2, 3, 4}
    assert float((found == 0).float().mean()) == pytest.approx(0.5 + 0.5 / 5, abs=0.03)


def test_samples_follow_the_distribution():
    torch.manual_seed(0)
    logits = torch.tensor([0.5, 0.3, 0.2, 0.0]).log().expand(20_000, 4)
    counts = torch.bincount(sample(logits), minlength=4) / 20_000
    assert counts.tolist() == pytest.approx([0.5, 0.3, 0.2, 0.0], abs=0.015)


@pytest.mark.parametrize("architecture", ["roberta", "modernbert"])
def test_only_masked_logits_are_the_same_logits(architecture, packed_tokenizer, rows):
    """Leaving out the output layer of the other tokens changes nothing, whatever the architecture."""
    model = language_model(settings(architecture=architecture), packed_tokenizer).eval()
    ids = as_ids(load_rows(rows, "train")[:4])
    chosen = Masking(0.3, None, None).draw(ids)
    with torch.inference_mode():
        every = model(input_ids=ids).logits
        some = masked_token_logits(model, token_states(model, ids, torch.zeros(4, dtype=torch.int64)), chosen)
        torch.testing.assert_close(some, every[chosen])


def language_model(chosen: PretrainSettings, tokenizer, hidden: int = 32):
    from transformers import AutoModelForMaskedLM

    sizes = {"layers": 1, "hidden": hidden, "heads": 2, "intermediate": 2 * hidden}
    return new_model(AutoModelForMaskedLM, chosen, tokenizer, sizes)


def test_right_guesses_are_no_replacements(packed_tokenizer, rows, monkeypatch):
    """A generator that always guesses the true token leaves nothing to detect."""
    objective = OBJECTIVES["replaced-tokens"](settings(objective="replaced-tokens"), packed_tokenizer)
    model = objective.build()
    ids = as_ids(load_rows(rows, "train")[:4])
    answers: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(Masking, "draw", lambda self, ids: answers.setdefault("chosen", ids >= 50))
    monkeypatch.setattr("moekd.pretrain.objectives.sample", lambda logits: ids[answers["chosen"]])
    _, targets, detected, replaced = objective.forward(model, ids)
    assert len(targets) == int((ids >= 50).sum())
    assert len(detected) == int((ids >= len(SPECIALS)).sum())
    assert float(replaced.sum()) == 0.0


# --------------------------------------------------------------------------------------------------- n-grams


def test_trigram_by_hand():
    """After (7, 8) comes 9 twice and 6 once; an unseen context falls back to the most frequent token, 7."""
    model = NGrams.count(np.array([[7, 8, 9, 7, 8, 9, 7, 8, 6]], dtype=np.uint16), (-2, -1))
    guesses = model.guess(np.array([[7, 8, 5, 5, 5]]))
    assert guesses.tolist() == [[7, 7, 9, 7, 7]]


@given(st.lists(st.lists(st.integers(0, 5), min_size=6, max_size=6), min_size=1, max_size=5))
def test_ngrams_against_counting(lists):
    """As a slow count with dictionaries says, for each context that the issue's tables use."""
    rows = np.array(lists, dtype=np.uint16)
    for offsets in NGrams.CONTEXTS.values():
        counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        before, after = max(0, *[-o for o in offsets], 0), max(0, *offsets, 0)
        for row in lists:
            for place in range(before, 6 - after):
                counts[tuple(row[place + o] for o in offsets)][row[place]] += 1
        everything = Counter(value for row in lists for value in row)
        fallback = min(everything, key=lambda value: (-everything[value], value))
        guesses = NGrams.count(rows, offsets).guess(rows)
        for row, guessed in zip(lists, guesses, strict=True):
            for place in range(6):
                whole = before <= place < 6 - after
                seen = counts[tuple(row[place + o] for o in offsets)] if whole else Counter({fallback: 1})
                assert guessed[place] == min(seen, key=lambda value: (-seen[value], value))


# ------------------------------------------------------------------------------------------------------ runs


RUNS = [("masked-tokens", "modernbert"), ("masked-tokens", "roberta"), ("replaced-tokens", "modernbert")]


@pytest.fixture(scope="module", params=RUNS, ids="-".join)
def finished(request, tmp_path_factory, functions):
    folder = tmp_path_factory.mktemp("run")
    write_table(pa.table({"func": [sample.func for sample in functions]}), folder / "functions.parquet")
    chosen = settings(
        folder / "runs", objective=request.param[0], architecture=request.param[1], whole_identifiers=True
    )
    return chosen, stages.pretrain(chosen)


def test_it_learns_and_is_measured(finished):
    """It learns, and the facts hold the language model's figures beside the n-gram models'.

    The loss of replaced tokens need not fall: a better generator makes the detector's task harder.
    """
    chosen, folder = finished
    facts = read_manifest(folder)["facts"]
    losses = facts["history"]["losses"]
    if chosen.pretrain.objective == "masked-tokens":
        assert losses[-1] < losses[0]
    else:
        assert facts["held_out"]["detection_auroc"] > 0.53  # chance is 0.5 with a standard error of about 0.01
    assert {"masked_accuracy_model", "masked_accuracy_unigram", "masked_accuracy_trigram"} <= set(facts["held_out"])
    assert ("detection_auroc" in facts["held_out"]) == (chosen.pretrain.objective == "replaced-tokens")


def test_the_encoder_loads_by_the_auto_classes(finished):
    """`model/` starts a classifier, with every weight of the encoder; the language model fills masks."""
    from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

    _, folder = finished
    tokenizer = AutoTokenizer.from_pretrained(str(folder / "model"))
    model, loaded = AutoModelForSequenceClassification.from_pretrained(str(folder / "model"), output_loading_info=True)
    assert all(name.startswith(("classifier.", "head.")) for name in loaded["missing_keys"])
    assert model(**tokenizer("int f(void) { return 0; }", return_tensors="pt")).logits.shape == (1, 2)
    language_model = folder / "model" / "language-model"
    place = str(language_model if language_model.exists() else folder / "model")
    filler, loaded = AutoModelForMaskedLM.from_pretrained(place, output_loading_info=True)
    assert not loaded["missing_keys"]
    assert filler.config.vocab_size == len(tokenizer)


def test_the_command(tmp_path, functions):
    """It shows loss and speed while it works, then speed, measures and the folder; again, as JSON."""
    write_table(pa.table({"func": [sample.func for sample in functions]}), tmp_path / "functions.parquet")
    config = tmp_path / "micro.toml"
    config.write_text(
        f'name = "micro"\nrun = {{ folder = "{tmp_path}/runs", threads = 1 }}\n'
        f'corpus = {{ paths = ["{tmp_path}/functions.parquet"], held_out = 0.2, workers = 1 }}\n'
        "encoder = { vocabulary = 400, max_length = 64, layers = 1, hidden = 32, heads = 2, intermediate = 64 }\n"
        "pretrain = { row_length = 32, tokens = 4_000, round_tokens = 2_000, training = { token_budget = 512 } }\n"
    )
    done = CliRunner().invoke(app, ["pretrain", str(config)])
    assert done.exit_code == 0, done.stderr
    assert re.search(r"0\.0 million tokens, [\d,]+ a second: loss \d\.\d{3}, held out \d\.\d{3}", done.stderr)
    assert "reused" not in done.stderr
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"[\d,]+ tokens/s", lines[0])
    assert re.fullmatch(r"held-out masked tokens: [\d,]+", lines[1])
    assert (Path(lines[-1]) / "model.safetensors").is_file()
    again = CliRunner().invoke(app, ["pretrain", str(config), "--json", "--quiet"])
    assert json.loads(again.stdout)["folder"] == lines[-1]


def test_going_on_from_an_encoder(finished, tmp_path):
    """A second run that starts from the first one's folder starts where that ended, with its tokenizer."""
    chosen, folder = finished
    encoder = chosen.encoder.model_copy(update={"name": str(folder / "model")})
    again = chosen.model_copy(update={"encoder": encoder})
    losses = read_manifest(stages.pretrain(again))["facts"]["history"]["losses"]
    assert losses[0] < read_manifest(folder)["facts"]["history"]["losses"][0]
    other = "masked-tokens" if chosen.pretrain.objective == "replaced-tokens" else "replaced-tokens"
    wrong = again.model_copy(update={"pretrain": chosen.pretrain.model_copy(update={"objective": other})})
    with pytest.raises(SettingsError, match=r"encoder\.name = "):
        stages.pretrain(wrong)
    for name, value, has in (("hidden", 64, 32), ("max_length", 512, 64), ("vocabulary", 500, 400)):
        wrong = again.model_copy(update={"encoder": encoder.model_copy(update={name: value})})
        with pytest.raises(SettingsError, match=rf"encoder\.{name} is {value}, but .* set encoder\.{name} to {has}\b"):
            stages.pretrain(wrong)


def test_a_masked_language_model_has_no_generator(packed_tokenizer):
    """Replaced tokens go on with both models; of one alone the message says which is missing."""
    chosen = settings(objective="replaced-tokens")
    chosen = chosen.model_copy(update={"encoder": chosen.encoder.model_copy(update={"name": "moekd-mini-student"})})
    with pytest.raises(SettingsError, match="moekd-mini-student has no generator"):
        OBJECTIVES["replaced-tokens"](chosen, packed_tokenizer).build()


def test_an_encoder_with_other_special_tokens(tokenizer, rows, tmp_path):
    """Masks are known by their id: an encoder whose `<mask>` has another one would be trained on full stops."""
    other = json.loads(tokenizer.backend_tokenizer.to_str())
    other["added_tokens"] = [one for one in other["added_tokens"] if one["content"] != "<mask>"]
    other["model"]["vocab"] = {name if name != "<mask>" else ".x": i for name, i in other["model"]["vocab"].items()}
    named = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(other)), unk_token="<unk>", mask_token="<mask>"
    )
    named.save_pretrained(str(tmp_path / "named"))
    language_model(settings(), tokenizer).config.save_pretrained(str(tmp_path / "named"))
    chosen = settings()
    chosen = chosen.model_copy(update={"encoder": chosen.encoder.model_copy(update={"name": str(tmp_path / "named")})})
    with pytest.raises(SettingsError, match=r"its tokenizer has the ids \[0, 1, 2, 3, 400\] for <s> .*, wanted 0 to 4"):
        pack(chosen, {"corpus": rows}, tmp_path)


def test_a_second_run_is_reused(finished):
    chosen, folder = finished
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert stages.pretrain(chosen) == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == before


def test_a_checkpoint_of_another_shape(finished, tmp_path):
    """A foreign checkpoint in the folder is named, not half loaded."""
    from moekd.config import Training
    from moekd.training import History, _checkpoint, _Position, _restore, make_optimizer

    chosen, folder = finished
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder / "model"))
    small, large = (language_model(chosen, tokenizer, hidden) for hidden in (16, 32))
    optimizer = make_optimizer(small, Training())
    sum(p.sum() for p in small.parameters()).backward()
    optimizer.step()
    _checkpoint(small, optimizer, _Position(), History(), tmp_path)
    with pytest.raises(DataError, match=r"checkpoint .* is of another model"):
        _restore(large, make_optimizer(large, Training()), tmp_path)


def test_rows_longer_than_the_encoder_reads():
    with pytest.raises(ValueError, match=r"pretrain\.row_length \(128\) must be at most encoder\.max_length \(64\)"):
        settings(row_length=128)


_TWO = """
import sys, numpy as np, torch
from pathlib import Path
from safetensors.torch import save_file
from moekd import numerics
from moekd.config import Training
from moekd.tokens import Tokens
from moekd.training import Task, fit
numerics.configure(1)
torch.manual_seed(0)
model = torch.nn.Linear(12, 2)
ids = np.random.default_rng(0).integers(5, 300, (24, 12))
x, y = torch.from_numpy(ids).float() / 300, torch.from_numpy(ids[:, 1] % 2)
task = Task("toy", Tokens.of(ids), lambda epoch: np.arange(24),
            lambda logits, rows: torch.nn.functional.cross_entropy(logits, y[torch.from_numpy(rows)]), None,
            lambda model, rows: model(x[torch.from_numpy(rows)]))
history = fit(model, task, Training(epochs=3, learning_rate=1e-2, token_budget=72, bf16=False), pad_id=1, seed=0,
              folder=Path(sys.argv[1]))
if numerics.rank_and_processes()[0] == 0:
    save_file(dict(model.state_dict()), sys.argv[2])
    print(*history.losses)
"""


def test_two_processes_train_like_one(tmp_path):
    """The mean of two halves of a batch is the batch: weights and losses agree to rounding."""
    from safetensors.torch import load_file

    (tmp_path / "two.py").write_text(_TWO)
    weights, losses = [], []
    for count in (1, 2):
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc_per_node",
            str(count),
            str(tmp_path / "two.py"),
        ]
        out = tmp_path / f"{count}.safetensors"
        done = subprocess.run(
            [*command, str(tmp_path / str(count)), str(out)], capture_output=True, text=True, check=True
        )
        weights.append(load_file(out))
        losses.append([float(word) for word in done.stdout.split()[-3:]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-5, atol=1e-6)
