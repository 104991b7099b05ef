"""Attacks: what they find, what they may not do, and that nothing but sample, settings and model decides it."""

from __future__ import annotations

import json
import multiprocessing
import random
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from moekd.attack import (
    ClassifierVictim,
    Names,
    SavedVictim,
    ScorerVictim,
    attack,
    frequent_names,
    load_victim,
    read_results,
    runner,
)
from moekd.attack.search import Search, attack_sample
from moekd.attack.victims import MixtureVictim, p_vulnerable
from moekd.classifier import Classifier, modernbert
from moekd.config import Attack
from moekd.data.leaks import BagOfTokens
from moekd.data.text import tokens
from moekd.errors import MoekdError, SettingsError
from moekd.mixture import Mixture
from moekd.records import Sample
from moekd.rewrite import Template, fault_of_renaming

VOCABULARY = tuple(f"zz{n}" for n in range(40))
FUNCTION = "int f(int first, int second) { int third = first + second; return third * first; }"


def sample(text: str = FUNCTION, label: int = 1, name: str = "a") -> Sample:
    return Sample(name, text, label, "toy")


class Victim:
    """Answers by a rule on a text's tokens, and remembers every text it was asked for."""

    def __init__(self, rule) -> None:
        self.rule = rule
        self.asked: list[str] = []

    def __call__(self, texts):
        self.asked += texts
        return np.array([self.rule(tokens(text)) for text in texts])


def run(victim, samples=None, names=None, at_once=16, **settings):
    settings = {"attacks": ("wir-random",), "candidates": 5, "iterations": 20} | settings
    names = names or Names(VOCABULARY)
    return attack(victim, samples or [sample()], Attack(**settings), names, at_once=at_once)


def substitutes(**names) -> Names:
    return Names(VOCABULARY, lambda sample: names)


# -------------------------------------------------------------------------------------------------- recipes


def test_alert_greedy_by_hand():
    """`second` matters most, so it goes first; one substitute lowers p, and with it one of `first` flips the answer.

    Asked: the original; 3 + 2 + 2 occurrences replaced; 2 substitutes of `second`; 2 of `first`.
    """

    def rule(words):
        p = 0.9 - 0.15 * (words.count("second") == 1) - 0.1 * (words.count("first") == 2)
        return p - 0.35 * ("low" in words) - 0.3 * ("low" in words and "flip" in words)

    victim = Victim(rule)
    names = substitutes(first=["dull", "flip"], second=["plain", "low"], third=["other"])
    (result,) = run(victim, names=names, attacks=("alert",))
    assert result.outcome == "fooled"
    assert result.renames == {"second": "low", "first": "flip"}
    assert result.text == "int f(int flip, int low) { int third = flip + low; return third * flip; }"
    assert result.queries == len(victim.asked) == 1 + 7 + 2 + 2
    assert result.p_original == 0.9
    assert [p for _, p in result.trace] == pytest.approx([0.9, 0.55, 0.25])
    assert result.trace[-1][0] == result.queries


def test_importance_is_the_summed_drop_of_probes():
    """`first` occurs three times and drops 0.1 each time; `second` drops 0.2 once and rises 0.1 once."""

    def rule(words):
        values = 0.5 + 0.1 * words.count("first")
        return values + (0.15 if words.count("second") == 2 else 0.0)

    search = Search(Template.of(FUNCTION), 1, 100)
    search.p_original = rule(tokens(FUNCTION))
    asking = search.importance()
    texts = next(asking)
    assert len(texts) == 7
    assert all(text.count("<unk>") == 1 for text in texts)
    with pytest.raises(StopIteration) as end:
        asking.send([rule(tokens(text)) for text in texts])
    assert end.value.value == ["first", "second", "third"]  # 3 x 0.1, 2 x 0.15, 0


def test_genetic_stage_finds_what_greedy_cannot():
    """Greedy takes the best first step, `bait`, from which no way leads on; a worse one, `left`, goes with `right`."""

    def rule(words):
        a, b = "left" in words, "right" in words
        return 0.2 if a and b else 0.8 - 0.02 * (a + b) - 0.05 * (("bait" in words) + ("lure" in words))

    names = substitutes(first=["left", "bait"], second=["right", "lure"], third=[])
    victim = Victim(rule)
    assert run(victim, names=names, attacks=("alert",), genetic=False)[0].outcome == "withstood"
    (result,) = run(victim, names=names, attacks=("alert",))
    assert result.outcome == "fooled"
    assert result.renames == {"first": "left", "second": "right"}


def test_mhm_rules():
    """Where every rename raises p, hill climbing never leaves the original; Metropolis accepts some and moves on."""

    def renamed(words):
        return len({"first", "second", "third"} - set(words))

    seen = {}
    for rule in ("metropolis", "hill-climbing"):
        victim = Victim(lambda words: 0.6 + 0.01 * renamed(words))
        run(victim, attacks=("mhm",), mhm_rule=rule)
        seen[rule] = max(renamed(tokens(text)) for text in victim.asked)
    assert seen == {"metropolis": 3, "hill-climbing": 1}


def test_mhm_accepts_by_the_ratio():
    """A first rename takes p from 0.51 to 0.755 and is accepted in half of all chains: 0.245 / 0.49.

    A second step shows it: in half of the chains it renames the other variable, beside the first only if accepted.
    """
    twice = 0
    for n in range(400):
        victim = Victim(lambda words: 0.51 if {"a", "b"} <= set(words) else 0.755)
        text = "int f(int a, int b) { return a + b; }"
        run(victim, [sample(text, name=str(n))], attacks=("mhm",), iterations=2, candidates=1)
        twice += any(not {"a", "b"} & set(tokens(text)) for text in victim.asked)
    assert 70 <= twice <= 130  # 100 expected, standard deviation 8.7


def test_wir_random_uses_free_names_of_the_vocabulary():
    """A vocabulary of taken and illegal names but one: only that one is ever tried."""
    victim = Victim(lambda words: 0.9)
    names = Names(("first", "third", "f", "while", "malloc", "MAX", "fine"))
    run(victim, names=names, candidates=30)
    renamed = {word for text in victim.asked for word in tokens(text)} - set(tokens(FUNCTION))
    assert renamed == {"fine", "unk", "<", ">"}


@pytest.mark.parametrize("name", ["alert", "mhm", "wir-random"])
@pytest.mark.parametrize("label", [0, 1])
def test_every_success_is_a_valid_renaming(name, label, functions):
    """On a model that dislikes certain names: what is called fooled flips the answer and passes the check."""

    def rule(words):
        odd = sum(word[:2] == "zz" and int(word[2:]) % 7 == 0 for word in words)
        return 0.9 - 0.3 * min(odd, 3) if label else 0.1 + 0.3 * min(odd, 3)

    samples = [replace(one, label=label) for one in functions[:20]]
    every = Names(VOCABULARY, lambda sample: {one.name: VOCABULARY for one in Template.of(sample.func).identifiers})
    results = run(Victim(rule), samples, names=every, attacks=(name,), candidates=40)
    fooled = [(one, sample) for one, sample in zip(results, samples, strict=True) if one.outcome == "fooled"]
    assert len(fooled) >= 10
    for result, original in fooled:
        template = Template.of(original.func)
        assert result.text == template.render(result.renames)
        assert fault_of_renaming(template, result.renames) is None
        assert (rule(tokens(result.text)) > 0.5) != bool(label)


def test_probes_never_count_as_success():
    """A text with `<unk>` in it is no code, however it is answered."""
    victim = Victim(lambda words: 0.1 if "unk" in words else 0.9)
    (result,) = run(victim)
    assert result.outcome == "withstood"


# ------------------------------------------------------------------------------------------------- outcomes


@pytest.mark.parametrize(
    ("text", "label", "settings", "outcome", "reason"),
    [
        (FUNCTION, 0, {}, "already wrong", ""),
        ("int f(void) { return g(); }", 1, {}, "no identifiers", ""),
        ("}}} not code ((", 1, {}, "not attacked", "does not parse"),
        ("", 1, {}, "not attacked", "does not parse"),
        (FUNCTION, 1, {"budget": 0}, "not attacked", "budget of 0"),
        (FUNCTION, 1, {"budget": 1}, "withstood", "budget spent"),
        (FUNCTION, 1, {"budget": 8}, "withstood", "budget spent"),
        (FUNCTION, 1, {"attacks": ("alert",)}, "withstood", "no candidate names"),
        (FUNCTION, 1, {}, "withstood", ""),
        ("int f(int größe) { int 长 = größe; return 长; }", 1, {}, "withstood", ""),
        ("int f(int a) { static DEFINE_MUTEX(a_lock); LIST_HEAD(a_list); return a; }", 1, {}, "withstood", ""),
    ],
)
def test_outcomes(text, label, settings, outcome, reason):
    """Bad input of any kind has a stated outcome; the queries never go beyond the budget."""
    victim = Victim(lambda words: 0.9)
    (result,) = run(victim, [sample(text, label)], **settings)
    assert (result.outcome, result.reason) == (outcome, reason)
    assert result.queries == len(set(victim.asked)) == len(victim.asked) <= settings.get("budget", 2000)
    assert (result.p_original is None) == (settings.get("budget") == 0)


def test_empty_vocabulary_and_substitutes():
    """Nothing to try is no success and no crash."""
    for name in ("alert", "mhm", "wir-random"):
        (result,) = run(Victim(lambda words: 0.9), names=Names(), attacks=(name,))
        assert (result.outcome, result.reason, result.queries) == ("withstood", "no candidate names", 1)


def test_ten_thousand_lines_within_the_budget():
    """A function of 10,000 lines ends with its budget, in seconds."""
    body = "".join(f"first = first + g({n}, second);\n" for n in range(10_000))
    long = sample(f"int f(int first, int second) {{\n{body}}}")
    (result,) = run(lambda texts: np.full(len(texts), 0.9), [long], budget=100)
    assert (result.outcome, result.reason, result.queries) == ("withstood", "budget spent", 100)


BAD = {
    "NaN": lambda texts: np.full(len(texts), np.nan),
    "above 1": lambda texts: np.full(len(texts), 1.5),
    "a row too few": lambda texts: np.full(len(texts) - 1, 0.9),
    "three classes": lambda texts: np.full((len(texts), 3), 1 / 3),
    "a number": lambda texts: 0.9,
    "nothing": lambda texts: None,
    "words": lambda texts: ["vulnerable"] * len(texts),
    "rows of other lengths": lambda texts: [[0.9], *[[0.1, 0.9]] * len(texts)],
}


@pytest.mark.parametrize("kind", BAD)
def test_unusable_answers_end_that_sample_only(kind):
    """The model fails on texts that hold `bad`; other samples of the same batches end as ever."""

    def victim(texts):
        if any("bad" in text for text in texts):
            return BAD[kind](texts)
        return np.full((len(texts), 2), [0.1, 0.9])

    texts = [FUNCTION, FUNCTION.replace("f(", "bad("), FUNCTION.replace("f(", "g(")]
    results = run(victim, [sample(text, name=str(n)) for n, text in enumerate(texts)])
    assert [one.outcome for one in results] == ["withstood", "not attacked", "withstood"]
    assert results[1].reason.startswith("the model gave ")
    assert results[1].p_original is None
    assert asdict(results[0]) == asdict(run(victim, [sample(FUNCTION, name="0")])[0])


def test_unusable_answers_in_the_middle():
    """A model that breaks down on a variant: not attacked, and the original's answer is kept."""
    victim = Victim(lambda words: float("nan") if "unk" in words else 0.9)
    (result,) = run(victim)
    assert (result.outcome, result.p_original, result.queries) == ("not attacked", 0.9, 1)


@pytest.mark.parametrize(("p", "label", "wrong"), [(0.5, 1, True), (0.5, 0, False), (0.51, 1, False), (0.51, 0, True)])
def test_a_tie_means_not_vulnerable(p, label, wrong):
    """As in every other measure: p = 1/2 raises no alarm."""
    (result,) = run(Victim(lambda words: p), [sample(label=label)])
    assert (result.outcome == "already wrong") == wrong


# ------------------------------------------------------------------------------------------------- minimal


def test_fewest_renames():
    """Greedy renamed three variables on the way; two of them are enough, and no one alone is."""

    def rule(words):
        gone = [name not in words for name in ("first", "second", "third")]
        return 0.9 - 0.25 * gone[0] - 0.05 * gone[1] - 0.2 * gone[2]

    names = substitutes(first=["one"], second=["two"], third=["three"])
    ordered = Victim(lambda words: rule(words) - 0.5 * ("unk" in words and "second" not in words))
    (result,) = run(ordered, names=names, attacks=("alert",), genetic=False, minimal=True)
    assert result.outcome == "fooled"
    assert result.minimal == {"first": "one", "third": "three"}
    assert result.queries + result.minimal_queries == len(ordered.asked)


def test_fewest_of_many_renames():
    """Beyond six renames: one is dropped at a time until each is needed."""
    names = [f"v{n}" for n in range(9)]
    text = f"int f({', '.join(f'int {name}' for name in names)}) {{ return 0; }}"
    victim = Victim(lambda words: 0.9 if "v2" in words or "v5" in words else 0.1)
    found = {name: f"{name}x" for name in names}

    def recipe(search):
        yield from search.try_all([found])

    asking = attack_sample(sample(text), "toy", recipe, budget=10, minimal=True)
    answers = None
    try:
        while True:
            answers = victim(asking.send(answers)).tolist()
    except StopIteration as end:
        result = end.value
    assert result.minimal == {"v2": "v2x", "v5": "v5x"}
    assert result.queries == 2


# --------------------------------------------------------------------------------------- independence, resume


def undecided(model, tokenizer, functions) -> Classifier:
    """A model of random weights made undecided between the classes on these functions, so that renaming moves it."""
    found = Classifier(model.eval(), tokenizer, 64)
    margins = np.diff(found.logits([one.func for one in functions[:40]]), axis=1)
    last = getattr(model.classifier, "out_proj", model.classifier)
    with torch.no_grad():
        last.bias[1] -= float(np.median(margins))
        last.weight.mul_(50)
        last.bias.mul_(50)
    return found


@pytest.fixture
def classifier(make_model, tokenizer, functions) -> Classifier:
    return undecided(make_model(), tokenizer, functions)


def rightly_labelled(classifier, functions) -> list[Sample]:
    """The functions with the classifier's own answers for labels, so that each one is attacked."""
    answers = classifier.logits([one.func for one in functions]).argmax(axis=1)
    return [replace(one, label=int(answer)) for one, answer in zip(functions, answers, strict=True)]


def attacked(classifier, functions, path=None, at_once=16, samples=None, victim=None, workers=1):
    """Three attacks on twelve functions; `victim` may be where the classifier is saved, for worker processes."""
    chosen = samples or rightly_labelled(classifier, functions[:12])
    names = Names(VOCABULARY, lambda one: {i.name: VOCABULARY[:8] for i in Template.of(one.func).identifiers})
    settings = Attack(attacks=("alert", "mhm", "wir-random"), candidates=8, iterations=5, generations=1, children=8)
    victim = victim or ClassifierVictim(classifier)
    return attack(victim, chosen, settings, names, path=path, at_once=at_once, model="m", workers=workers)


def test_order_and_batches_change_nothing(classifier, functions):
    """All samples at once, one at a time, in reverse: the same results to the last digit."""
    together = attacked(classifier, functions)
    assert {one.outcome for one in together} >= {"fooled", "withstood"}
    assert attacked(classifier, functions, at_once=1) == together
    samples = rightly_labelled(classifier, functions[:12])
    by_sample = {(one.id, one.attack): one for one in attacked(classifier, functions, samples=samples[::-1], at_once=5)}
    assert [by_sample[one.id, one.attack] for one in together] == together


def test_killed_runs_continue_to_the_same_file(classifier, functions, tmp_path):
    """Cut after any number of bytes, the file ends equal to that of an undisturbed run."""
    whole = tmp_path / "whole.jsonl"
    results = attacked(classifier, functions, whole)
    content = whole.read_bytes()
    assert read_results(whole) == results
    for cut in (0, 10, len(content) // 3, len(content) // 2, len(content) - 1):
        path = tmp_path / f"cut{cut}.jsonl"
        path.write_bytes(content[:cut])
        assert attacked(classifier, functions, path) == results
        assert path.read_bytes() == content


def test_processes_find_what_one_finds(classifier, functions, tmp_path):
    """A saved model attacked by two processes, samples in reverse: each result to the last digit, and the same file."""
    classifier.save_pretrained(tmp_path / "model")
    saved = SavedVictim(tmp_path / "model")
    alone = attacked(classifier, functions, tmp_path / "alone.jsonl")
    assert attacked(classifier, functions, tmp_path / "both.jsonl", victim=saved, workers=2) == alone
    assert (tmp_path / "both.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
    backwards = rightly_labelled(classifier, functions[:12])[::-1]
    results = attacked(classifier, functions, samples=backwards, victim=saved, workers=2)
    assert sorted(map(asdict_text, results)) == sorted(map(asdict_text, alone))


def asdict_text(result) -> str:
    return json.dumps(asdict(result))


def test_a_process_that_dies_loses_nothing_that_was_found(classifier, functions, tmp_path, monkeypatch):
    """One is killed when the first result is in: a clear error; the same call goes on, and ends with the same file."""
    classifier.save_pretrained(tmp_path / "model")
    saved, path = SavedVictim(tmp_path / "model"), tmp_path / "a.jsonl"
    append = runner._Ledger.append

    def append_and_kill(self, result):
        append(self, result)
        multiprocessing.active_children()[0].kill()

    with monkeypatch.context() as patched:
        patched.setattr(runner._Ledger, "append", append_and_kill)
        with pytest.raises(MoekdError, match=r"a process that attacked .* died.* the same command continues"):
            attacked(classifier, functions, path, victim=saved, workers=2)
    recorded = path.read_bytes()
    assert 1 <= len(read_results(path)) < 36
    results = attacked(classifier, functions, path)
    assert path.read_bytes().startswith(recorded.splitlines(keepends=True)[0])
    assert results == attacked(classifier, functions)


def test_no_process_where_it_would_not_pay_or_not_do(classifier, functions, tmp_path, monkeypatch):
    """A callable, which may hold what no other process has, and a handful of attacks are answered in this process."""

    def never(*arguments):
        raise AssertionError("processes were started")

    monkeypatch.setattr(runner, "run_in_processes", never)
    classifier.save_pretrained(tmp_path / "model")
    few = rightly_labelled(classifier, functions[:5])
    assert len(attacked(classifier, functions, samples=few, victim=SavedVictim(tmp_path / "model"), workers=2)) == 15
    assert len(attacked(classifier, functions, victim=lambda texts: [0.9] * len(texts), workers=2)) == 36


def test_a_model_that_no_process_can_load(classifier, functions, tmp_path):
    """The error of loading it, as in one process, and no file begun for it."""
    with pytest.raises(SettingsError, match="could not be loaded"):
        attacked(classifier, functions, tmp_path / "a.jsonl", victim=SavedVictim(tmp_path / "none"), workers=2)
    assert not (tmp_path / "a.jsonl").exists()


RUN = """
import sys, time, zlib
from pathlib import Path
from moekd.attack import Names, attack
from moekd.config import Attack
from moekd.data.embedded import generate
def victim(texts):
    time.sleep(0.002)
    return [zlib.crc32(text.encode()) % 1000 / 1000 for text in texts]
settings = Attack(attacks=("mhm", "wir-random"), candidates=4, iterations=4, budget=30)
attack(victim, generate(60, 0), settings, Names([f"zz{n}" for n in range(40)]), path=Path(sys.argv[1]), at_once=4)
"""


def test_killed_at_random_moments(tmp_path):
    """SIGKILL when the file has grown by a random amount, again and again: it ends equal to an undisturbed one."""

    def started(path: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", RUN, str(path)], stdout=subprocess.DEVNULL)

    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    assert started(whole).wait() == 0
    size = whole.stat().st_size
    for limit in sorted(random.Random(0).sample(range(1, size), 3)):
        process = started(killed)
        while process.poll() is None and not (killed.exists() and killed.stat().st_size >= limit):
            time.sleep(0.001)
        process.kill()
        process.wait()
    assert started(killed).wait() == 0
    assert killed.read_bytes() == whole.read_bytes()


def test_finished_results_are_not_computed_again(tmp_path):
    """A second run on the same file asks the model nothing."""
    path = tmp_path / "a.jsonl"
    settings = Attack(attacks=("wir-random",), candidates=3)
    first, second = Victim(lambda words: 0.9), Victim(lambda words: 0.9)
    results = attack(first, [sample()], settings, Names(VOCABULARY), path=path)
    assert attack(second, [sample()], settings, Names(VOCABULARY), path=path) == results
    assert second.asked == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": "other"}, "model"),
        ({"settings": Attack(attacks=("wir-random",), budget=7)}, "settings"),
        ({"samples": [sample(label=1, name="b")]}, "samples"),
        ({"names": Names(VOCABULARY[:3])}, "vocabulary"),
    ],
)
def test_a_file_of_other_work_is_refused(change, named, tmp_path):
    """Results of two models or two budgets in one file would be mixed silently."""
    path = tmp_path / "a.jsonl"
    settings, names = Attack(attacks=("wir-random",)), Names(VOCABULARY[:2])
    work = {"model": "m", "settings": settings, "samples": [sample()], "names": names}
    victim = Victim(lambda words: 0.9)

    def start(model, settings, samples, names):
        return attack(victim, samples, settings, names, path=path, model=model)

    start(**work)
    before = path.read_bytes()
    with pytest.raises(SettingsError, match=rf"holds results of other work \(its {named} differ\)"):
        start(**work | change)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["{}", '{"a": 1}', "x", "one\ntwo\n"])
def test_a_file_of_something_else_is_left_alone(content, tmp_path):
    """One line without an end is no beginning of ours, and was once overwritten."""
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(SettingsError, match=r"notes\.txt holds"):
        attack(Victim(lambda words: 0.9), [sample()], Attack(attacks=("mhm",)), Names(VOCABULARY), path=path)
    assert path.read_text() == content


def test_a_file_that_does_not_tell_its_vocabulary_is_continued(tmp_path):
    """Files of earlier versions: their finished results count."""
    path, settings = tmp_path / "a.jsonl", Attack(attacks=("wir-random",), candidates=3)
    results = attack(Victim(lambda words: 0.9), [sample()], settings, Names(VOCABULARY), path=path)
    header, *lines = path.read_text().splitlines()
    older = {name: value for name, value in json.loads(header).items() if name != "vocabulary"}
    path.write_text("\n".join([json.dumps(older), *lines, ""]))
    again = Victim(lambda words: 0.9)
    assert attack(again, [sample()], settings, Names(VOCABULARY), path=path) == results
    assert again.asked == []


def test_more_attacks_can_be_added_to_a_file(tmp_path):
    """Which attacks are wanted is no part of what a file belongs to: each result stands alone."""
    path, victim = tmp_path / "a.jsonl", Victim(lambda words: 0.9)
    for attacks in (("wir-random",), ("mhm",), ("wir-random", "mhm")):
        attack(victim, [sample()], Attack(attacks=attacks, iterations=2), Names(VOCABULARY), path=path)
        assert {one.attack for one in read_results(path)} >= set(attacks)
    assert [one.attack for one in read_results(path)] == ["wir-random", "mhm"]
    assert len(victim.asked) == sum(one.queries for one in read_results(path))  # nothing was asked twice
    assert all(json.loads(line) for line in path.read_text().splitlines())


# -------------------------------------------------------------------------------------------------- victims


def test_classifier_victim_answers_as_the_classifier(classifier, functions):
    """Splicing, removal of equal encodings and sorting change no probability; equal encodings are scored once."""
    texts = [one.func for one in functions[:10]] * 2 + [functions[0].func + " /* beyond the cut */" * 50]
    victim = ClassifierVictim(classifier)
    logits = torch.from_numpy(classifier.logits(texts))
    session = victim.session(texts[0])
    np.testing.assert_allclose(session(texts), logits.softmax(1)[:, 1].numpy(), atol=1e-6)
    distinct = {
        row.tobytes() for row in np.split(classifier.encode(texts).flat, classifier.encode(texts).offsets[1:-1])
    }
    assert victim.scored == len(distinct) < len(texts)
    session(texts)
    assert victim.scored == len(distinct)


def test_saved_models_are_victims(classifier, functions, make_model, tokenizer, tmp_path):
    """A classifier, a mixture and the bag of tokens by their folders: the answers of the models in memory."""
    texts = [one.func for one in functions[:5]]
    router = Classifier(make_model(labels=("g1", "g2")).eval(), tokenizer, 64)
    mixture = Mixture(router, [classifier, classifier], groups=("g1", "g2"), k=1)
    bag = BagOfTokens.fit(functions[:40], 1.0)
    classifier.save_pretrained(tmp_path / "classifier")
    mixture.save_pretrained(tmp_path / "mixture")
    bag.save(tmp_path / "bag")
    for name, model in {"classifier": classifier, "mixture": mixture, "bag": bag}.items():
        np.testing.assert_allclose(load_victim(tmp_path / name)(texts), ScorerVictim(model)(texts), atol=1e-6)
    assert len(np.unique(ScorerVictim(bag)(texts))) == 5


def test_a_mixture_reads_the_tokens_once(make_model, tokenizer, functions, tmp_path):
    """Router and two experts out of three: the mixture's own answers, and equal texts are asked once."""
    texts = [one.func for one in functions[:6]]
    scorers = [
        Classifier(make_model(seed, labels=("a", "b", "c")[:labels]).eval(), tokenizer, 64)
        for seed, labels in enumerate((3, 2, 2, 2))
    ]
    for one in scorers:
        with torch.no_grad():
            for weight in one.model.classifier.parameters():
                weight.mul_(30)
    mixture = Mixture(scorers[0], scorers[1:], groups=("a", "b", "c"), k=2, temperatures=(1.0, 2.0, 0.5))
    assert MixtureVictim.fits(mixture)
    victim = MixtureVictim(mixture)
    session = victim.session(texts[0])
    np.testing.assert_allclose(session([*texts, *texts]), p_vulnerable(mixture.logits(texts * 2)), atol=1e-6)
    encoded = scorers[0].encode(texts)
    assert victim.scored == len({row.tobytes() for row in np.split(encoded.flat, encoded.offsets[1:-1])})
    shorter = Classifier(scorers[1].model, tokenizer, 32)
    assert not MixtureVictim.fits(Mixture(scorers[0], [shorter] * 3, groups=("a", "b", "c"), k=2))


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match=r"no model that can be attacked: wanted a folder with config\.json"):
        load_victim(tmp_path / "empty")
    (tmp_path / "student.onnx").write_bytes(b"no graph")
    with pytest.raises(SettingsError, match=r"there is no tokenizer\.json"):
        load_victim(tmp_path / "student.onnx")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(SettingsError, match="could not be loaded"):
        load_victim(tmp_path / "student.onnx")
    with pytest.raises(SettingsError, match="could not be imported"):
        load_victim("no_such_module:victim")
    with pytest.raises(SettingsError, match="is no callable"):
        load_victim("math:pi")
    with pytest.raises(SettingsError, match=r"nowhere' could not be loaded: there is no such folder\."):
        load_victim(tmp_path / "nowhere")


def test_models_that_are_no_detectors_are_refused(make_model, tokenizer, tmp_path):
    """An encoder would get a classifier of random weights, and of three classes the first two would be compared."""
    with pytest.raises(SettingsError, match="ModernBertForMaskedLM, an encoder without a trained classifier"):
        load_victim("moekd-mini-student")
    Classifier(make_model(labels=("a", "b", "c")), tokenizer, 64).save_pretrained(tmp_path / "router")
    with pytest.raises(SettingsError, match="has 3 classes: an attack needs a detector of two"):
        load_victim(tmp_path / "router")


def test_packaged_models_go_by_their_names(functions, tmp_path, monkeypatch):
    """`moekd-scan` is the student that the package ships, unless there is a folder of that name."""
    p = load_victim("moekd-scan")([one.func for one in functions[:4]])
    assert p.shape == (4,)
    assert len(np.unique(p)) > 1
    monkeypatch.chdir(tmp_path)
    (tmp_path / "moekd-scan").mkdir()
    with pytest.raises(SettingsError, match="moekd-scan is no model that can be attacked"):
        load_victim("moekd-scan")


def test_exported_files_are_victims(exported, student, functions):
    """The folder and the file of an export: the student's own probabilities, and attacks that end alike."""
    texts = [one.func for one in functions[:6]]
    wanted = load_victim(student)(texts)
    for place in (exported, exported / "model.onnx"):
        np.testing.assert_allclose(load_victim(place)(texts), wanted, atol=1e-4)
    samples = [replace(one, label=int(p > 0.5)) for one, p in zip(functions[:6], wanted, strict=True)]
    settings = Attack(attacks=("wir-random",), candidates=4, budget=40)
    by_onnx, by_torch = (
        attack(load_victim(place), samples, settings, Names(VOCABULARY)) for place in (exported, student)
    )
    assert [one.outcome for one in by_onnx] == [one.outcome for one in by_torch]


def test_a_callable_by_its_name(monkeypatch, tmp_path):
    """`module:name` is imported, for the command line."""
    (tmp_path / "toy_victim.py").write_text("def answer(texts):\n    return [0.9] * len(texts)\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_victim("toy_victim:answer")(["a", "b"]) == [0.9, 0.9]


def test_a_callable_that_fails_is_no_defect_of_ours(monkeypatch, tmp_path):
    """Its name and what it raised are told, when it is imported as when it is asked."""
    (tmp_path / "broken_victim.py").write_text("raise RuntimeError('no weights')\n")
    (tmp_path / "tired_victim.py").write_text("def answer(texts):\n    return 1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingsError, match="'broken_victim:answer' could not be imported: no weights"):
        load_victim("broken_victim:answer")
    with pytest.raises(SettingsError, match="failed when asked for 2 texts: ZeroDivisionError: division by zero"):
        load_victim("tired_victim:answer")(["a", "b"])


@pytest.mark.parametrize("shape", ["roberta", "modernbert"])
def test_slow_path_gives_the_same_results(shape, make_model, tokenizer, functions):
    """The way the references do it (parsed, tokenised and padded anew for every variant) is the oracle, in fp32."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    try:
        from attack import SlowVictim
    finally:
        sys.path.pop(0)
    sizes = {"layers": 2, "hidden": 32, "heads": 2, "intermediate": 32, "dropout": 0.0}
    torch.manual_seed(0)
    model = make_model() if shape == "roberta" else modernbert(tokenizer=tokenizer, max_length=64, **sizes)
    classifier = undecided(model, tokenizer, functions)
    samples = rightly_labelled(classifier, functions[:8])
    settings = Attack(attacks=("mhm", "wir-random"), candidates=8, iterations=5)
    slow = attack(SlowVictim(classifier), samples, settings, Names(VOCABULARY), at_once=1)
    fast = attack(ClassifierVictim(classifier), samples, settings, Names(VOCABULARY))
    assert {one.outcome for one in slow} == {"fooled", "withstood"}
    assert [one.outcome for one in fast] == [one.outcome for one in slow]
    assert [one.renames for one in fast] == [one.renames for one in slow]
    assert [one.queries for one in fast] == [one.queries for one in slow]


# ----------------------------------------------------------------------------------------------- vocabulary


def test_frequent_names_by_hand():
    """Counted over all texts, without keywords, types, library names, numbers; equal counts in alphabetical order."""
    texts = ["int f(int b) { return b + a + a; }", "void g(size_t a) { memcpy(b, c, 3); MAX(a); }"]
    assert frequent_names(texts, 10) == ("a", "b", "c", "f", "g")
    assert frequent_names(texts, 2) == ("a", "b")
    assert frequent_names([], 10) == ()
