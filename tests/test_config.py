"""Settings: what a file and `--set` make, where values came from, and what the errors say."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from moekd.config import MoekdSettings
from moekd.errors import SettingsError
from moekd.settings_loading import flat, key_settings, load_any, load_pretrain_settings, load_settings, show

CONFIGS = Path(__file__).parents[1] / "configs"

SMALL = """
name = "small"

[[data.sources]]
kind = "embedded"
count = 400

[distill]
temperature = 2
"""


@pytest.fixture
def config(tmp_path) -> Path:
    return written(tmp_path, SMALL)


def written(folder: Path, text: str) -> Path:
    path = folder / "small.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.name)
def test_every_shipped_config_loads(path):
    load_any(path)


def test_values_and_where_they_came_from(config):
    """File over default, `--set` over both."""
    overrides = ("run.seeds=[1, 2]", "mixture.k=3", "data.sources.0.columns.func=code")
    rows = {key: (value, origin) for key, value, origin in show(load_any(config, overrides))}
    assert rows["name"] == ("small", str(config))
    assert rows["data.sources.0.count"] == (400, str(config))
    assert rows["data.sources.0.seed"] == (0, "default")
    assert rows["data.sources.0.columns"] == ({"func": "code"}, "--set")
    assert rows["run.seeds"] == ([1, 2], "--set")
    assert rows["mixture.k"] == (3, "--set")
    assert rows["distill.temperature"] == (2.0, str(config))
    assert rows["router.gamma"] == (1.0, "default")


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("distill.temperature=4.5", "distill.temperature", 4.5),
        ("data.balance=false", "data.balance", False),
        ("data.split=family", "data.split", "family"),
        ('data.split="family"', "data.split", "family"),
        ("run.folder=/tmp/a b=c", "run.folder", "/tmp/a b=c"),
        ("run.folder=", "run.folder", ""),
        ("run.folder=a\nb=1", "run.folder", "a\nb=1"),
        ("data.sources.0.count=500", "data.sources.0.count", 500),
        ('student.systems=["moe", "hard"]', "student.systems", ["moe", "hard"]),
        ("student.training={epochs=1}", "student.training.epochs", 1),
        ("distill.temperature = 3", "distill.temperature", 3.0),
    ],
)
def test_set_takes_toml_values_and_bare_strings(config, override, key, value):
    assert flat(load_settings(config, [override]))[key] == value


@hypothesis_settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])).map(str.strip))
def test_set_takes_any_quoted_string(text):
    """A string quoted as TOML (here as JSON, which agrees on these characters) arrives unchanged."""
    quoted = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    tree = Path(__file__).parent / "cases" / "settings" / "small.toml"
    assert load_settings(tree, [f"run.folder={quoted}"]).run.folder == text


def test_a_part_of_a_section_keeps_the_rest_of_its_defaults(config):
    """Giving the router's learning rate must not reset its own 20 epochs to the general 5."""
    settings = load_settings(config, ["router.training.learning_rate=1e-3", "student.training.epochs=3"])
    assert settings.router.training.epochs == MoekdSettings.model_fields["router"].default.training.epochs == 20
    assert settings.student.training.learning_rate == 1e-4
    assert settings.teacher.training.epochs == 5


LINEAR, TABLE = "router.model=n-grams", "encoder.ngram_buckets=64"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distill.temprature=2"], "`distill.temprature` in --set; did you mean `distill.temperature`?"),
        (["temperature=2"], "unknown setting `temperature` in --set; did you mean `distill.temperature`?"),
        (["distill.qqqqqqqqq=2"], "known there: temperature, logits, features, label_share, schedule"),
        (["skew=2"], "unknown setting `skew` in --set; did you mean `distill.logits.skew`?"),
        (["distill.logits.kind=dst"], '`distill.logits.kind` is "dst" in --set; it should be one of kl, skewed, '),
        (["distill.logits.skew=0.1"], "`distill.logits.kind` is missing in --set; it should be one of kl, skewed, "),
        (["distill.logits={kind='dist', intra_wight=3}"], "did you mean `distill.logits.intra_weight`?"),
        (["distill.logits={kind='dist', intra_weight=-3}"], "`distill.logits.intra_weight` is -3 in --set; it should"),
        (["distill.logits={kind='dist', inter_weight=0, intra_weight=0}"], "are both 0: nothing would be learned"),
        (["distill.logits={kind='decoupled', target_weight=0, other_weight=0}"], "are both 0: nothing would be"),
        (["distill.logits={kind='dist', intra_weight=0}"], "intra_weight is 0, and of two classes the other term"),
        (["distill.logits={kind='decoupled', target_weight=0}"], "target_weight is 0, and of two classes the other"),
        (['published.systems=["avatar"]', 'published.ways=["unscaled-loss"]'], "which is of MORPH's code alone"),
        (["distill.features=3"], "`distill.features` is 3 in --set; it should be a table; choose one with `distill.f"),
        (["student.shapes=bigru-7m"], 'is "bigru-7m" in --set; it should be a valid array; write it as ["bigru-7m"]'),
        (["run.seeds=3"], "it should be a valid array; write it as [3]"),
        (["distill.features={kind='patient', weight=0}"], "`distill.features.weight` is 0 in --set; it should be"),
        (["distill.label_share=1"], "`distill.label_share` is 1 in --set; it should be less than 1"),
        (["distill.logits.kind=standardised"], "three classes or more, and there are 2"),
        (["distill.schedule.kind=uncertainty", "distill.logits.kind=dist"], 'only logits.kind = "kl" lets it'),
        (["distill.schedule.kind=balanced", "distill.label_share=0.2"], "leave label_share out"),
        (["distill.schedule.kind=balanced", "distill.features.kind=hidden"], "leave features out"),
        (["distill.schedule={kind='continuation', end=0.0}"], "both 0: the share would not move"),
        (["distill.schedule={kind='annealed-temperature', end=2}"], "both 2: the temperature would not move"),
        (["distill.features.kind=hidden", 'student.systems=["hard"]'], 'holds only "hard", which has no teacher'),
        (["distill.features.kind=hidden", 'student.systems=["pioneer"]'], "leaves only logits of the renamed"),
        (["distill.schedule.kind=competence", 'student.systems=["soda"]'], "which paces itself"),
        (["data.sources.0.knd=1"], "`data.sources.0.knd` in --set; did you mean `data.sources.0.kind`?"),
        (["distill.temperature=0"], "`distill.temperature` is 0 in --set; it should be greater than 0"),
        (["distill.temperature=inf"], "is Infinity in --set; it should be a finite number"),
        (["distill.temperature=warm"], 'is "warm" in --set; it should be a valid number'),
        (["mixture.k=true"], "`mixture.k` is true in --set; it should be a valid integer"),
        (["data.split=randm"], "'family' or 'time'; did you mean `random`?"),
        (["run.seeds=[]"], "`run.seeds` is [] in --set; it should have at least 1 item"),
        (["run=3"], "`run` is 3 in --set; it should be a table"),
        (["encoder.heads=3"], "`encoder` in --set: hidden (128) must be divisible by heads (3)"),
        (["data.sources=[{kind='jsonl'}]"], "`data.sources.0` in --set: a source of kind 'jsonl' needs"),
        (["mixture.k=3", 'partition.groups=["a", "other"]'], "k is 3, but partition.groups makes only 2"),
        (["mixture.k=11", "partition.scheme=kmeans"], "k is 11, but partition.clusters makes only 10"),
        (["mixture.table=selected"], 'student.systems holds "ensemble", which needs every expert\'s score'),
        ([LINEAR], 'router.model = "n-grams" has encoder.ngram_buckets rows, which is 0: set it'),
        ([LINEAR, TABLE, "router.start=teacher"], "is a linear model, which cannot start from an encoder: leave"),
        ([LINEAR, TABLE, "experts.mode=shared"], 'experts.mode = "shared" brings a router of its own'),
        (["mixture.k"], "--set wants a.b=value, got 'mixture.k'"),
        (["mixture..k=1"], "--set wants a.b=value, got 'mixture..k=1'"),
        (["name.x=1"], '--set name.x: `name` is "small", not a table'),
        (["data.sources.1.count=40"], "is a list of 1; name its items by index from 0, not '1'"),
        (["data.sources.first.count=40"], "name its items by index from 0, not 'first'"),
    ],
)  # fmt: skip
def test_errors_name_key_value_place_and_what_is_allowed(config, overrides, message):
    with pytest.raises(SettingsError, match=re.escape(message)):
        load_settings(config, overrides)


TASKS = {
    "multi-class": ["data.task=multi-class", "data.classes=cwe-group", "data.balance=false"],
    "pair": ["data.task=pair", "data.balance=false", "data.sources.0={kind='jsonl', path='pairs.jsonl'}"],
}
SINGLE = 'student.systems=["single", "hard"]'


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([*TASKS["multi-class"]], 'holds moe, ensemble, random-partition, but with data.task = "multi-class" there is'),
        ([*TASKS["multi-class"], 'student.systems=["moe"]'], "its router predicts the group of a function, which here"),
        ([*TASKS["pair"], 'student.systems=["single", "ensemble"]'], "student.systems holds ensemble, but with"),
        ([*TASKS["pair"]], "its experts are of groups of vulnerabilities, and pairs of functions have none"),
        ([*TASKS["pair"], SINGLE, "mixture.k=1"], 'mixture cannot be used with data.task = "pair"'),
        ([*TASKS["pair"], SINGLE, 'attack.attacks=["mhm"]'], 'attack.attacks cannot be used with data.task = "pair"'),
        ([*TASKS["multi-class"], SINGLE, "search.points=10"], "search.points cannot be used with data.task"),
        ([*TASKS["pair"], SINGLE, "data.split=time"], 'pairs are split by function, which is split = "random"'),
        ([*TASKS["pair"], SINGLE, "data.classes=cwe-group"], 'classes = "cwe-group" is for task = "multi-class"'),
        ([*TASKS["multi-class"], "data.balance=true"], "each vulnerable one, which task"),
        (["data.task=multi-class", "data.balance=false"], "reads sources of kind parquet, jsonl, hub"),
        (["data.classes=cwe-group"], 'classes = "cwe-group" is for task = "multi-class", got task = "binary"'),
    ],
)
def test_what_has_no_meaning_for_a_task_is_refused(config, overrides, message):
    """Before any training, with what to do; nothing is left out silently."""
    with pytest.raises(SettingsError, match=re.escape(message)):
        load_settings(config, overrides)


@pytest.mark.parametrize("overrides", TASKS.values(), ids=TASKS)
def test_tasks_with_single_teacher_and_labels_load(config, overrides):
    """And the task is part of the data stage's key, while binary data keep the keys they had."""
    assert key_settings(load_settings(config, [*overrides, SINGLE]), ["data"])["data.task"] in TASKS
    assert (
        not {"data.task", "data.classes", "data.class_min_samples"}
        & key_settings(load_settings(config), ["data"]).keys()
    )


def test_an_error_of_the_file_names_the_file(tmp_path):
    path = written(tmp_path, SMALL.replace("temperature", "temprature"))
    with pytest.raises(SettingsError) as caught:
        load_settings(path)
    assert str(caught.value) == (f"unknown setting `distill.temprature` in {path}; did you mean `distill.temperature`?")


def test_all_errors_are_told_at_once(config):
    """One line each, so that nobody mends five settings in five runs."""
    with pytest.raises(SettingsError) as caught:
        load_settings(config, ["distill.temperature=0", "mixture.k=0", "encoder.layer=1"])
    assert [line.split("`")[1] for line in str(caught.value).splitlines()] == [
        "encoder.layer",
        "mixture.k",
        "distill.temperature",
    ]


def test_a_missing_setting_is_named(tmp_path):
    path = written(tmp_path, 'name = "small"')
    with pytest.raises(SettingsError, match=r"missing setting `data` in .*small\.toml: it has no default"):
        load_settings(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a = 1\nb\n", r"small\.toml is not valid TOML: .*\(at line 2, column 2\)"),
        (b"a = 1\n\nb = '\xff'", r"small\.toml is not valid TOML: a byte that is not UTF-8 \(at line 3\)"),
    ],
)
def test_broken_toml_names_file_and_line(tmp_path, content, message):
    path = tmp_path / "small.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=message):
        load_settings(path)


def test_a_missing_file_names_the_nearest(config):
    wrong = config.with_name("smal.toml")
    with pytest.raises(SettingsError, match=r"no config file .*smal\.toml; did you mean `.*small\.toml`\?"):
        load_settings(wrong)
    with pytest.raises(SettingsError, match=r"cannot read the config file .*: Is a directory"):
        load_settings(config.parent)


def test_settings_of_a_key(config):
    """Sections and single settings by dotted name; what changes speed or place only is left out."""
    settings = load_settings(config)
    assert key_settings(settings, ["distill", "mixture.k", "run"]) == {
        "distill.temperature": 2.0,
        "mixture.k": 2,
        "run.seeds": [0],
    }
    teacher = key_settings(settings, ["teacher"])
    assert "teacher.training.epochs" in teacher
    assert "teacher.training.checkpoint_seconds" not in teacher
    assert key_settings(settings, ["data"])["data.sources.0.kind"] == "embedded"


def test_a_field_added_later_leaves_earlier_keys_as_they_were():
    """A field of that kind is part of a key only with another value than its default; `config show` has it always."""
    path = CONFIGS / "pretrain.toml"
    as_before = load_pretrain_settings(path)
    assert "pretrain.local_window" not in key_settings(as_before, ["pretrain"])
    assert flat(as_before)["pretrain.local_window"] == 64
    other = load_pretrain_settings(path, ["pretrain.local_window=32"])
    assert key_settings(other, ["pretrain"])["pretrain.local_window"] == 32


def test_the_wrong_command_for_a_config():
    """Each kind of config names the command it is for."""
    with pytest.raises(SettingsError, match=r"pretrain\.toml .* is a config of `moekd pretrain`, not of `moekd run`"):
        load_settings(CONFIGS / "pretrain.toml")
    with pytest.raises(SettingsError, match=r"tiny\.toml .* is a config of `moekd run`, not of `moekd pretrain`"):
        load_pretrain_settings(CONFIGS / "tiny.toml")


def test_ways_to_distil_leave_the_keys_of_plain_kl_alone(config):
    """Results of students trained before there was a choice stay valid; a choice, and its defaults, are in the key."""
    plain = {"distill.temperature": 2.0}
    assert key_settings(load_settings(config), ["distill"]) == plain
    assert key_settings(load_settings(config, ["distill.logits.kind=kl"]), ["distill"]) == plain
    chosen = load_settings(config, ["distill.features.kind=patient", "distill.label_share=0.5"])
    assert key_settings(chosen, ["distill"]) == plain | {
        "distill.features.kind": "patient",
        "distill.features.weight": 10.0,
        "distill.label_share": 0.5,
    }
