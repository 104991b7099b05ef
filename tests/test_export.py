"""The exported student: answers of torch, calibration and thresholds checked by hand, and the gates."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from moekd import cli
from moekd.classifier import Classifier, modernbert
from moekd.errors import DataError, OutputError, SettingsError
from moekd.export import calibrate, compare, export, thresholds
from moekd.records import Sample
from moekd.scan.model import FILES, ScanModel
from moekd.students.shapes import SHAPES, build_student
from moekd.tokens import train_bpe


def facts_of(folder) -> dict:
    return json.loads((folder / "model.json").read_text())


def change(folder, **fields) -> None:
    (folder / "model.json").write_text(json.dumps(facts_of(folder) | fields))


@pytest.fixture
def copied(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copy")


# --------------------------------------------------------------------------------------------------- parity


def test_exported_files_answer_as_the_student_does(student, exported, functions):
    """Texts of any length, the empty one and one that is cut included: logits within float rounding."""
    texts = [sample.func for sample in functions[:30]] + ["", "x", functions[0].func * 30]
    expected = Classifier.from_pretrained(student).logits(texts)
    np.testing.assert_allclose(ScanModel.load(exported).logits(texts), expected, atol=1e-4)
    assert np.ptp(expected[:, 1] - expected[:, 0]) > 1, "scores that hardly differ would prove nothing"


def test_a_rotary_student_is_exported(tokenizer, labelled, functions, tmp_path):
    """Rotary positions and pre-norm are traced for every length, not for the one of the traced text."""
    torch.manual_seed(0)
    model = modernbert(tokenizer=tokenizer, max_length=64, layers=2, hidden=32, heads=2, intermediate=32, dropout=0.0)
    for weight in model.parameters():
        weight.data.mul_(3)
    Classifier(model.eval(), tokenizer, 64).save_pretrained(tmp_path / "student")
    export(tmp_path / "student", tmp_path / "out", data=labelled)
    texts = [sample.func[:length] for sample in functions[:10] for length in (10, 60, 1000)]
    expected = Classifier.from_pretrained(tmp_path / "student").logits(texts)
    np.testing.assert_allclose(ScanModel.load(tmp_path / "out").logits(texts), expected, atol=1e-4)


ODD_LINES = ["int x = y[0];", "", " ", "}", "a" * 700, "\t", "\u0301\u00df \u4e2d", '"  "']
LINE = st.sampled_from(ODD_LINES) | st.text(max_size=40)


@settings(deadline=None)
@given(lines=st.lists(LINE, max_size=200), end=st.sampled_from(["\n", " \n", "\r\n", " "]))
def test_a_long_text_is_read_as_if_all_of_it_were_encoded(exported, lines, end):
    """Only its first lines are, with what few tokens hold many characters among them."""
    model = ScanModel.load(exported)
    tokenizer = Tokenizer.from_file(str(exported / "tokenizer.json"))
    text = end.join(lines)
    everything = tokenizer.encode(text, add_special_tokens=False).ids
    ids, cut = model._encode(text)
    assert ids[1:-1] == everything[: model.facts.max_tokens - 2]
    assert cut == (len(everything) > model.facts.max_tokens - 2)


def test_margins_in_batches_equal_margins_one_by_one(exported, functions):
    texts = [sample.func[:length] for sample in functions[:10] for length in (10, 40, 80)]
    model = ScanModel.load(exported)
    one_by_one = [model.answer(text)[0] for text in texts]
    np.testing.assert_allclose(model.margins(texts, batch=4), one_by_one, atol=1e-4)


def test_a_cut_text_is_told(exported, functions):
    model = ScanModel.load(exported)
    assert model.answer("int f(void) { return 1; }")[1] is False
    assert model.answer(functions[0].func * 30)[1] is True


@pytest.mark.skipif("MOEKD_DATA" not in os.environ, reason="MOEKD_DATA, the folder of real functions, is not set")
def test_parity_on_real_functions(student, exported):
    import pyarrow.parquet as pq

    table = pq.ParquetFile(Path(os.environ["MOEKD_DATA"]) / "devign.parquet")
    texts = next(table.iter_batches(batch_size=100, columns=["func"])).column(0).to_pylist()
    expected = Classifier.from_pretrained(student).logits(texts)
    np.testing.assert_allclose(ScanModel.load(exported).logits(texts), expected, atol=1e-4)


def test_int8_is_smaller_and_its_scores_do_not_depend_on_neighbours(student, labelled, exported, functions, tmp_path):
    export(student, tmp_path, data=labelled, precision="int8", min_agreement=0.5)
    sizes = [(folder / "model.onnx").stat().st_size for folder in (tmp_path, exported)]
    assert sizes[0] < 0.6 * sizes[1]
    model = ScanModel.load(tmp_path)
    texts = [sample.func for sample in functions[:6]]
    np.testing.assert_array_equal(model.margins(texts), [model.answer(text)[0] for text in texts])


# ----------------------------------------------------------------------------------- calibration, thresholds


def test_temperature_by_hand():
    """Margins of +-2 that are right 3 times in 4: the likelihood peaks where sigmoid(2 / T) = 3/4, T = 2 / ln 3.

    Accuracy 3/4 at confidence sigmoid(2) = 0.880797: the error before is 0.130797, afterwards none.
    """
    logits = np.array([[0, 2], [0, 2], [0, 2], [0, 2], [2, 0], [2, 0], [2, 0], [2, 0]], dtype=np.float32)
    labels = np.array([1, 1, 1, 0, 0, 0, 0, 1])
    found = calibrate(logits, labels, logits, labels)
    assert found.temperature == pytest.approx(2 / math.log(3), rel=1e-3)
    assert found.shift == 0
    assert found.ece_before == pytest.approx(0.130797, abs=1e-6)
    assert found.ece_after == pytest.approx(0, abs=1e-4)


def test_shift_to_the_natural_ratio_by_hand():
    """From 1 in 2 to 1 in 10: the log odds fall by ln 9."""
    logits = np.tile(np.array([[0.0, 1.0], [1.0, 0.0]]), (5, 1))
    labels = np.tile([1, 0], 5)
    natural = np.array([1] + [0] * 9)
    assert calibrate(logits, labels, logits, natural).shift == pytest.approx(-math.log(9))


def test_thresholds_by_hand():
    """100 safe functions of 10 lines score 0.00 ... 0.99, 5 vulnerable ones 0.985, 0.5, ...; 1,050 lines.

    At 1 % one safe function may be reported, 0.99, so the threshold lies just above 0.98: 0.985 is found too.
    """
    text = "\n".join(["x;"] * 10)
    safe = [Sample(f"s:{i}", text, 0, "s") for i in range(100)]
    bad = [Sample(f"v:{i}", text, 1, "v") for i in range(5)]
    p = np.array([i / 100 for i in range(100)] + [0.985, 0.5, 0.4, 0.3, 0.2])
    rows = thresholds(safe + bad, p)
    first = rows[0]
    assert 0.98 < first.p < 0.9801
    assert (first.false_alarm_rate, first.recall) == (0.01, 0.2)
    assert first.alarms_per_kloc == pytest.approx(2 / 1.05)
    assert [row.false_alarm_rate for row in rows] == sorted(row.false_alarm_rate for row in rows)
    assert all(np.mean(p[:100] >= row.p) == row.false_alarm_rate for row in rows)


def test_ties_never_raise_the_false_alarm_rate():
    """Half of the safe functions share one score: any rate below a half must leave all of them out."""
    safe = [Sample(f"s:{i}", "x;", 0, "s") for i in range(100)]
    rows = thresholds(safe, np.array([0.9] * 50 + [0.1] * 50))
    assert {row.false_alarm_rate for row in rows if row.false_alarm_rate < 0.5} == {0.0}
    assert all(row.recall is None for row in rows)


def test_the_threshold_for_a_rate_keeps_the_promise(exported):
    facts = ScanModel.load(exported).facts
    row = facts.at_false_alarm_rate(0.1)
    assert row.false_alarm_rate <= 0.1
    assert row == max(
        (one for one in facts.thresholds if one.false_alarm_rate <= 0.1), key=lambda one: one.false_alarm_rate
    )
    assert facts.at_alarms_per_kloc(1e9).alarms_per_kloc == max(one.alarms_per_kloc for one in facts.thresholds)
    with pytest.raises(SettingsError, match=r"--false-alarm-rate 1e-06: .* its lowest is"):
        facts.at_false_alarm_rate(1e-6)


def test_a_model_without_thresholds_says_so(copied):
    change(copied, thresholds={"rows": []})
    with pytest.raises(SettingsError, match="has no thresholds, because it was exported with too few functions"):
        ScanModel.load(copied).facts.at_false_alarm_rate(0.01)


def test_p_is_monotone_and_finite_far_out(exported):
    facts = ScanModel.load(exported).facts
    values = [facts.p_vulnerable(margin) for margin in (-1e6, -3.0, 0.0, 3.0, 1e6)]
    assert values == sorted(values)
    assert (values[0], values[-1]) == (0.0, 1.0)


# ---------------------------------------------------------------------------------------------------- gates


def test_disagreement_by_hand():
    found = compare(np.array([[0, 1], [0, 1.0]]), np.array([[0, 1.5], [2, 1.0]]))
    assert (found.functions, found.max_logit_difference, found.label_agreement) == (2, 2.0, 0.5)


def test_nan_is_refused():
    with pytest.raises(DataError, match="diverged"):
        compare(np.array([[0, np.nan]]), np.array([[0, 1.0]]))


def test_int8_that_loses_too_much_fails_loudly(student, labelled, tmp_path, monkeypatch):
    """Nothing is written: a later scan must not find it."""
    from moekd.export import Parity

    monkeypatch.setattr("moekd.export.compare", lambda *_: Parity(400, 0.5, 0.9))
    with pytest.raises(SettingsError, match=r"int8 gives the student's label on 90.00% of 400 functions.*99.00%"):
        export(student, tmp_path / "out", data=labelled, precision="int8")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["taken", "taken/below"])
def test_a_file_in_the_place_of_the_folder_is_told_before_any_work(tmp_path, out):
    """Not even the student is read: it is not there."""
    (tmp_path / "taken").touch()
    with pytest.raises(OutputError, match=r"taken is a file; name a folder"):
        export(tmp_path / "no student", tmp_path / out, data=tmp_path / "no data")


def test_a_graph_that_is_not_the_student_fails(student, labelled, tmp_path, monkeypatch):
    from moekd.export import Parity

    monkeypatch.setattr("moekd.export.compare", lambda *_: Parity(400, 0.5, 1.0))
    with pytest.raises(SettingsError, match=r"differs from the student by up to 0\.5"):
        export(student, tmp_path / "out", data=labelled)


def test_size_gate_counts_every_file(student, labelled, exported, tmp_path):
    total = sum((exported / name).stat().st_size for name in FILES)
    export(student, tmp_path / "fits", data=labelled, max_bytes=total + 100)
    with pytest.raises(SettingsError, match=r"the limit is \d.*--precision int8"):
        export(student, tmp_path / "out", data=labelled, max_bytes=total - 100)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["rotary-3mb-int8", "rotary-3mb-int8-deep"])
def test_int8_shapes_fit_three_megabytes_as_int8_only(name, labelled, tmp_path):
    """All files of a student with a full vocabulary, measured: under 3,000,000 bytes as int8, as float32 far over."""
    shape, rng = SHAPES[name], np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz_"))
    words = ["".join(rng.choice(letters, 12)) for _ in range(3000)]
    tokenizer = train_bpe(words, vocabulary=shape.vocabulary, max_length=shape.max_length)
    assert len(tokenizer) == shape.vocabulary
    model = build_student(shape, tokenizer, seed=0, dropout=0.0).eval()
    Classifier(model, tokenizer, shape.max_length).save_pretrained(tmp_path / "student")
    data = tmp_path / "few.jsonl"
    data.write_text("\n".join(labelled.read_text().splitlines()[:24]))
    export(tmp_path / "student", tmp_path / "out", data=data, precision="int8", min_agreement=0.0)
    assert sum((tmp_path / "out" / file).stat().st_size for file in FILES) < 3_000_000 < 4 * shape.parameters() / 3.5


def test_equal_students_give_equal_files(student, labelled, exported, tmp_path):
    """Into a folder of the same name: that is what the model is called in reports."""
    out = tmp_path / exported.name
    export(student, out, data=labelled)
    assert [(out / name).read_bytes() for name in FILES] == [(exported / name).read_bytes() for name in FILES]
    assert ScanModel.load(out).facts.name == exported.name


def test_validation_part_of_a_data_stage(student, tmp_path):
    """Of a data stage's folder only the validation part is taken: test functions must decide nothing."""
    from micro import settings

    from moekd.data import load_parts
    from moekd.stages import data_step
    from moekd.steps import run_steps

    step = data_step()
    folder = run_steps([step], settings(tmp_path / "runs"))[step.label]
    facts = export(student, tmp_path / "out", data=folder)
    assert facts["calibration"]["functions"] == len(load_parts(folder)["valid"])


@pytest.mark.parametrize("labels", [[0] * 50, [1] * 50])
def test_data_of_one_class_are_refused(student, tmp_path, labels):
    data = tmp_path / "one.jsonl"
    rows = [{"func": f"int f{i}(void) {{ return {i}; }}", "label": label} for i, label in enumerate(labels)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="calibration needs vulnerable and other functions"):
        export(student, tmp_path / "out", data=data)


def test_what_is_no_student_is_refused(labelled, tmp_path):
    with pytest.raises(SettingsError, match=r"there is no config\.json in it"):
        export(tmp_path, tmp_path / "out", data=labelled)


# --------------------------------------------------------------------------------------------- damaged models


def test_missing_model_says_how_to_make_one(tmp_path):
    with pytest.raises(SettingsError, match=r"there is no model.json. Make one .* `moekd export STUDENT"):
        ScanModel.load(tmp_path)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "changed"])
def test_a_damaged_file_is_refused_before_it_is_loaded(copied, name, damage):
    path = copied / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else content.replace(b"e", b"f", 1))
    with pytest.raises(SettingsError, match=f"is damaged: .*{name}.* Copy or export it again"):
        ScanModel.load(copied)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged: model.json is no JSON"),
        (b"[" * 100_000, "is damaged: model.json is no JSON"),
        (b"[]", "has schema None"),
        (b'{"schema": 1}', "is damaged: model.json lacks or misstates 'files'"),
    ],
)
def test_a_damaged_model_json(copied, content, message):
    (copied / "model.json").write_bytes(content)
    with pytest.raises(SettingsError, match=message):
        ScanModel.load(copied)


def test_a_model_of_another_version(copied):
    change(copied, schema=99)
    with pytest.raises(SettingsError, match=r"has schema 99; this version of moekd reads 1. Export the student again"):
        ScanModel.load(copied)


@pytest.mark.parametrize(
    "fields",
    [
        {"precision": "int3"},
        {"max_tokens": "many"},
        {"calibration": {"temperature": 0, "shift": 0}},
        {"thresholds": {"rows": [{}]}},
        {"thresholds": {"rows": [{"p": float("nan"), "false_alarm_rate": 0.1, "alarms_per_kloc": 1, "recall": None}]}},
        {"files": []},
    ],
)
def test_misstated_facts(copied, fields):
    change(copied, **fields)
    with pytest.raises(SettingsError, match="lacks or misstates"):
        ScanModel.load(copied)


def test_a_model_that_answers_nan_is_no_clean_scan(exported, monkeypatch):
    """NaN compares as below any threshold: every function would pass."""
    monkeypatch.setattr(ScanModel, "_run", lambda self, ids: np.full((len(ids), 2), np.nan))
    with pytest.raises(SettingsError, match="answers nan for a function"):
        ScanModel.load(exported).answer("int f;")


# -------------------------------------------------------------------------------------------------- command


def test_command(student, labelled, tmp_path, capsys):
    arguments = ["export", str(student), str(tmp_path / "out"), "--data", str(labelled), "-q"]
    assert cli.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(tmp_path / "out")
    assert any("same label on 100.00%" in line for line in lines)
    assert cli.main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == facts_of(tmp_path / "out")
    assert cli.main([*arguments, "--budget", "10"]) == 2
    assert "the limit is 10" in capsys.readouterr().err
