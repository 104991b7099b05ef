"""The classifier: saved and loaded the Hugging Face way, its answers, and the encoders it is built on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from micro import settings
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
    RobertaConfig,
    RobertaModel,
    pipeline,
)

from moekd.classifier import Classifier, build, predict
from moekd.config import Encoder
from moekd.errors import SettingsError
from moekd.experts import encoder as encoder_stage
from moekd.stages import data_step
from moekd.steps import run_steps
from moekd.tokens import train_bpe


@pytest.fixture
def classifier(make_model, tokenizer) -> Classifier:
    return Classifier(make_model().eval(), tokenizer, 64)


def texts_of(functions, count: int = 20) -> list[str]:
    return [sample.func for sample in functions[:count]]


# ---------------------------------------------------------------------------------------- save and load


def test_saved_and_loaded_it_answers_the_same(classifier, functions, tmp_path):
    texts = [*texts_of(functions), ""]
    classifier.save_pretrained(tmp_path)
    loaded = Classifier.from_pretrained(tmp_path)
    np.testing.assert_array_equal(loaded.logits(texts), classifier.logits(texts))
    assert loaded.max_length == classifier.max_length == 64
    assert not loaded.model.training


@pytest.mark.parametrize("lowercase", [False, True])
def test_saved_tokenizers_cut_texts_the_same(make_model, functions, tmp_path, lowercase):
    """Loaded by its folder alone, a tokenizer keeps its merges, its lower-casing and its maximal length."""
    texts = texts_of(functions)
    tokenizer = train_bpe(texts, vocabulary=300, max_length=50, lowercase=lowercase)
    Classifier(make_model(), tokenizer, 50).save_pretrained(tmp_path)
    loaded = Classifier.from_pretrained(tmp_path)
    texts.append("int F(Char *X) { return STRLEN(X); }")
    before, after = (one.encode(texts) for one in (Classifier(None, tokenizer, 50), loaded))
    np.testing.assert_array_equal(before.flat, after.flat)
    np.testing.assert_array_equal(before.offsets, after.offsets)
    assert loaded.max_length == 50


def test_transformers_pipeline(classifier, functions, tmp_path):
    """Labels are named, scores are our softmax, and long functions are cut with `truncation=True`."""
    classifier.save_pretrained(tmp_path)
    texts = [*texts_of(functions, 3), texts_of(functions, 1)[0] * 20]
    answers = pipeline("text-classification", model=str(tmp_path), truncation=True, top_k=None)(texts)
    logits = torch.from_numpy(classifier.logits(texts))
    for answer, expected in zip(answers, logits.softmax(1).tolist(), strict=True):
        found = {one["label"]: one["score"] for one in answer}
        assert found == pytest.approx(dict(zip(("not_vulnerable", "vulnerable"), expected, strict=True)), abs=1e-4)


# --------------------------------------------------------------------------------------------- answers


def test_no_texts(classifier):
    assert classifier.logits([]).shape == (0, 2)


@given(rows=st.permutations(range(12)), budget=st.integers(64, 600))
@example(rows=range(12), budget=8192)
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=15)
def test_answers_do_not_depend_on_the_batch(classifier, functions, rows, budget):
    """Whatever the order and the batches, a text's logits are those it has alone."""
    texts = [*texts_of(functions, 11), "x"]
    alone = np.concatenate([classifier.logits([text]) for text in texts])
    tokens = classifier.encode([texts[row] for row in rows])
    together = predict(classifier.model, tokens, pad_id=classifier.tokenizer.pad_token_id, budget=budget)
    np.testing.assert_allclose(together, alone[list(rows)], atol=1e-5)


def test_only_the_first_tokens_are_read(classifier, functions):
    text = texts_of(functions, 1)[0] * 20
    tokens = classifier.encode([text])
    assert len(tokens.flat) == 64
    assert tokens.flat[-1] == classifier.tokenizer.eos_token_id


def test_positions_start_as_sinusoids(make_model):
    """Wave 2j of width 32 turns by 10000^(-2j / 32) a position; all deviate as other weights do at their start."""
    model = make_model()
    weight = model.roberta.embeddings.position_embeddings.weight.detach().numpy()
    scale = 0.02 * np.sqrt(2)
    for position in (0, 2, 65):
        for j in (0, 1, 15):
            angle = position / 10_000 ** (2 * j / 32)
            assert weight[position, 2 * j] == pytest.approx(scale * np.sin(angle), abs=1e-6)
            assert weight[position, 2 * j + 1] == pytest.approx(scale * np.cos(angle), abs=1e-6)
    assert weight[:, :2].std() == pytest.approx(model.config.initializer_range, rel=0.05)


# --------------------------------------------------------------------------------------------- encoders

TINY = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
ENCODERS = {
    "roberta": lambda: RobertaModel(RobertaConfig(**TINY, max_position_embeddings=66)),
    "modernbert": lambda: ModernBertModel(
        ModernBertConfig(**TINY, pad_token_id=1, bos_token_id=0, cls_token_id=0, eos_token_id=2, sep_token_id=2)
    ),
    "bert": lambda: BertModel(BertConfig(**TINY)),
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(vocab_size=400, dim=32, n_layers=1, n_heads=2, hidden_dim=32, pad_token_id=1)
    ),
}


@pytest.fixture
def save(tokenizer, tmp_path):
    """Write a pre-trained encoder into a folder: the model and the settings that name it."""

    def write(kind: str):
        torch.manual_seed(3)
        model = ENCODERS[kind]()
        model.save_pretrained(tmp_path / "encoder")
        tokenizer.save_pretrained(tmp_path / "encoder")
        return model, Encoder(name=str(tmp_path / "encoder"), max_length=64)

    return write


@pytest.fixture(params=ENCODERS)
def saved(request, save):
    return save(request.param)


def test_a_saved_encoder_gets_a_new_head(saved, tokenizer):
    """The encoder's weights are the saved ones, whatever the seed; the head's are the seed's."""
    original, chosen = saved
    labels = ("CWE-664", "other", "unknown")
    one, same, other = (build(chosen, tokenizer, labels=labels, seed=s, dropout=0.0) for s in (1, 1, 2))
    known = original.state_dict()
    kept = {name: value for name, value in one.base_model.state_dict().items() if name in known}
    assert {name for name in known if not name.startswith("pooler")} <= kept.keys()
    assert all(torch.equal(value, known[name]) for name, value in kept.items())
    fresh = [name for name, _ in one.named_parameters() if name.removeprefix(f"{one.base_model_prefix}.") not in known]
    assert fresh
    for name in fresh:
        assert torch.equal(one.get_parameter(name), same.get_parameter(name)), name
    weights = [name for name in fresh if one.get_parameter(name).std() > 0]
    assert all(not torch.equal(one.get_parameter(name), other.get_parameter(name)) for name in weights)
    assert one.config.id2label == dict(enumerate(labels))
    assert one.config.label2id == {name: index for index, name in enumerate(labels)}


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_dropout_is_ours_and_attention_has_none(saved, tokenizer, dropout):
    """With 0, training mode draws nothing at all, whatever the architecture calls its dropouts."""
    model = build(saved[1], tokenizer, seed=0, dropout=dropout).train()
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
    assert {rate for name, rate in rates.items() if "attention.self" not in name} - {0.0} == {dropout} - {0.0}
    assert {value for name, value in model.config.to_dict().items() if "dropout" in name and "att" in name} == {0.0}
    ids = torch.arange(5, 45)[None]
    state = torch.random.get_rng_state()
    first, second = (model(input_ids=ids).logits for _ in range(2))
    assert torch.equal(first, second) == (dropout == 0)
    assert torch.equal(torch.random.get_rng_state(), state) == (dropout == 0)


def test_a_saved_encoder_answers_and_is_saved(saved, tokenizer, functions, tmp_path):
    model = build(saved[1], tokenizer, seed=0, dropout=0.0).eval()
    texts = texts_of(functions, 6)
    classifier = Classifier(model, tokenizer, 64)
    classifier.save_pretrained(tmp_path / "saved")
    loaded = Classifier.from_pretrained(tmp_path / "saved")
    assert loaded.max_length == 64
    np.testing.assert_allclose(loaded.logits(texts), classifier.logits(texts), atol=1e-6)


@pytest.mark.parametrize("name", ["nobody/no-such-encoder", "/no/such/folder"])
def test_an_unknown_encoder_is_named(tokenizer, name):
    with pytest.raises(SettingsError, match=rf"encoder\.name = '{name}' could not be loaded: .*\"random\""):
        build(Encoder(name=name), tokenizer, seed=0, dropout=0.0)


# ------------------------------------------------------------------------------------- stage `encoder`


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    chosen = settings(tmp_path_factory.mktemp("data") / "runs")
    return run_steps([data_step()], chosen)["data"]


def test_the_stage_takes_the_encoders_own_tokenizer(saved, tokenizer, data, tmp_path):
    (tmp_path / "stage").mkdir()
    chosen = settings(encoder={"name": saved[1].name, "max_length": 48})
    facts = encoder_stage.tokenize(chosen, {"data": data}, tmp_path / "stage")
    loaded = encoder_stage.load_tokenizer(tmp_path / "stage")
    assert facts["vocabulary"] == len(tokenizer)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.model_max_length == 48
    assert 0 < facts["test_cut_share"] <= 1


def test_the_stage_names_an_unknown_encoder(data, tmp_path):
    with pytest.raises(SettingsError, match=r"encoder\.name = 'nobody/no-such-encoder' could not be loaded"):
        encoder_stage.tokenize(settings(encoder={"name": "nobody/no-such-encoder"}), {"data": data}, tmp_path)


def test_more_tokens_than_the_encoder_reads(save, data, tmp_path):
    """66 RoBERTa positions are 64 tokens; without the check training would fail with an index error."""
    chosen = settings(encoder={"name": save("roberta")[1].name, "max_length": 65})
    with pytest.raises(SettingsError, match=r"encoder\.max_length is 65, but .*encoder' reads 64 tokens at most"):
        encoder_stage.tokenize(chosen, {"data": data}, tmp_path)
