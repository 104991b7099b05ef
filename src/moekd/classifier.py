"""A sequence classifier with its tokenizer: what a teacher, an expert, the router and a student are."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moekd import numerics
from moekd.errors import SettingsError
from moekd.files import sha256_remembered
from moekd.records import LABELS
from moekd.tokens import Tokens, encode, token_batches

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from moekd.config import Encoder, MoekdSettings, PretrainSettings, RootSettings

#: Encoders that the package ships, by name: folders in assets/.
ASSETS = ("moekd-mini", "moekd-mini-student")


class Classifier:
    """Texts in, logits out; saved and loaded the Hugging Face way.

    Attributes:
        model: a transformers model for sequence classification.
        tokenizer: its fast tokenizer.
        max_length: tokens read of a text, specials included; the rest is cut.
    """

    def __init__(self, model: Any, tokenizer: Any, max_length: int) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = max_length

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, revision: str | None = None) -> Classifier:
        """Load a saved classifier, or any sequence classifier of a model hub by name."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from moekd import bigru, wide  # noqa: F401 - importing them registers our own architectures

        model = AutoModelForSequenceClassification.from_pretrained(
            str(folder), revision=revision, attn_implementation=numerics.attention()
        )
        tokenizer = AutoTokenizer.from_pretrained(str(folder), revision=revision)
        return cls(model.to(numerics.device()).eval(), tokenizer, length_limit(model.config, tokenizer))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and the tokenizer's files.

        `transformers.pipeline("text-classification", model=folder, truncation=True)` works on them; without
        `truncation` it fails on a text that is longer than the model can read.
        """
        self.model.save_pretrained(str(folder))
        self.tokenizer.save_pretrained(str(folder))

    def encode(self, texts: Sequence[str]) -> Tokens:
        return encode(self.tokenizer, texts, self.max_length)

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 logits, (texts, classes), in the order of the texts."""
        return predict(self.model, self.encode(texts), pad_id=self.tokenizer.pad_token_id)


def length_limit(config: Any, tokenizer: Any) -> int:
    """Tokens a model can read: RoBERTa's positions start behind the padding id, so two of them are not usable."""
    positions = getattr(config, "max_position_embeddings", None) or 512
    if config.model_type in {"roberta", "camembert", "xlm-roberta", "moekd-wide-roberta"}:
        positions -= config.pad_token_id + 1
    return int(min(positions, tokenizer.model_max_length))


def place_of(name: str) -> str:
    """Return what the loaders take: the folder of an encoder that the package ships, else the name as it is."""
    return str(Path(__file__).with_name("assets") / name) if name in ASSETS else name


def language_model_of(name: str) -> str:
    """Return what the loaders take for the masked language model of an encoder: its generator where it has one."""
    place = Path(place_of(name))
    generator = place / "language-model"
    return str(generator) if generator.is_dir() else place_of(name)


def masked_lm_digests(settings: MoekdSettings) -> list[str]:
    """Return the digest of the weights of the masked language model that ALERT takes names from."""
    return weights_digests(language_model_of(settings.attack.masked_lm), settings)


def encoder_digests(settings: MoekdSettings | PretrainSettings) -> list[str]:
    """Return the digest of the encoder's weights where they lie on this disk."""
    return weights_digests(settings.encoder.name, settings)


def weights_digests(name: str, settings: RootSettings) -> list[str]:
    """Return the digest of a named encoder's weights on this disk, if any: a new version makes new results."""
    weights = Path(place_of(name)) / "model.safetensors"
    if name == "random" or not weights.is_file():
        return []
    return [sha256_remembered(weights, Path(settings.run.folder) / "digests")]


@contextmanager
def loading(encoder: Encoder) -> Iterator[None]:
    """Turn the library's failure to load `encoder.name` into a SettingsError."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"encoder.name = {encoder.name!r} could not be loaded: {why_not_loaded(encoder.name, error)} "
            f'Give the folder of a saved encoder, a hub name reachable from here, {", ".join(ASSETS)} or "random".'
        ) from error


def why_not_loaded(name: str | Path, error: Exception) -> str:
    """The library's error in a line, but of a path that leads nowhere, which it takes for a malformed hub name."""
    is_path = Path(name).is_absolute() or str(name).startswith(".") or len(Path(name).parts) > 2
    return "there is no such folder." if is_path and not Path(name).exists() else str(error).splitlines()[0]


def build(
    encoder: Encoder,
    tokenizer: Any,
    *,
    labels: Sequence[str] = LABELS,
    seed: int,
    dropout: float,
    random_weights: bool = False,
) -> Any:
    """Build the teacher-side model: the named Hugging Face encoder, or a small RoBERTa from random weights.

    Args:
        labels: class names; their number is the width of the head.
        seed: of every randomly initialised weight (of the head alone for a pre-trained encoder).
        dropout: of hidden states; attention dropout is 0, because drawing its masks costs more than the attention.
        random_weights: keep the named encoder's shape, but not what it has learned.
    Raises:
        SettingsError: the named encoder cannot be loaded.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    names = dict(enumerate(labels))
    torch.manual_seed(seed)
    if encoder.name == "random":
        return roberta(
            tokenizer=tokenizer,
            max_length=encoder.max_length,
            **sizes_of(encoder),
            dropout=dropout,
            labels=labels,
            ngram_buckets=encoder.ngram_buckets,
        )
    with loading(encoder):
        config = AutoConfig.from_pretrained(place_of(encoder.name), revision=encoder.revision, id2label=names)
        config.label2id = {name: index for index, name in names.items()}
        _set_dropout(config, dropout)
        config = _with_table(config, encoder.ngram_buckets)
        if random_weights:
            return _from_random_weights(config)
        return AutoModelForSequenceClassification.from_pretrained(
            place_of(encoder.name),
            revision=encoder.revision,
            config=config,
            dtype=torch.float32,  # weights may be shipped in half precision
            ignore_mismatched_sizes=True,
            attn_implementation=numerics.attention(),
        )


def _with_table(config: Any, ngram_buckets: int) -> Any:
    """The config as it is, or one with a table of n-grams (wide.py), where asked for."""
    if not ngram_buckets:
        return config
    from moekd.wide import widened

    return widened(config, ngram_buckets)


def _from_random_weights(config: Any) -> Any:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_config(config, attn_implementation=numerics.attention())
    if hasattr(model, "roberta"):  # a fair start, as for our own shapes
        start_positions_as_sinusoids(model.roberta.embeddings.position_embeddings.weight, config.initializer_range)
    return model.float()


def _set_dropout(config: Any, dropout: float) -> None:
    """Architectures name their dropouts differently; attention ones have "attention" or "attn" in the name."""
    for field in config.to_dict():
        if "dropout" in field or field.endswith("_pdrop"):
            setattr(config, field, 0.0 if "att" in field else dropout)


def _vocabulary_and_labels(tokenizer: Any, labels: Sequence[str]) -> dict[str, Any]:
    """What the configuration of every classifier of ours says alike."""
    names = dict(enumerate(labels))
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "id2label": names,
        "label2id": {name: index for index, name in names.items()},
        "problem_type": "single_label_classification",
    }


def sizes_of(place: Any) -> dict[str, Any]:
    """The sizes of settings, a shape or a configuration, as `roberta` and `modernbert` take them."""
    return {name: getattr(place, name) for name in ("layers", "hidden", "heads", "intermediate")}


def roberta(*, ngram_buckets: int = 0, **shape: Any) -> Any:
    """A RoBERTa sequence classifier (no pooler; dense h x h, tanh, h x classes) from random weights.

    Takes what `roberta_config` takes, and rows of an n-gram table. Positions start as sinusoids of the word
    embeddings' size instead of noise: order is then readable from the first step, and a few thousand functions are too
    few to learn it from nothing.
    """
    return _from_random_weights(_with_table(roberta_config(**shape), ngram_buckets))


def roberta_config(
    *,
    tokenizer: Any,
    max_length: int,
    layers: int,
    hidden: int,
    heads: int,
    intermediate: int,
    dropout: float,
    attention_dropout: float = 0.0,
    activation: str = "gelu",
    labels: Sequence[str] = LABELS,
) -> Any:
    """The `transformers.RobertaConfig` of all our encoders and students."""
    from transformers import RobertaConfig

    return RobertaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        hidden_act=activation,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=attention_dropout,
        max_position_embeddings=max_length + tokenizer.pad_token_id + 1,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        **_vocabulary_and_labels(tokenizer, labels),
    )


def modernbert(*, ngram_buckets: int = 0, **shape: Any) -> Any:
    """A ModernBERT sequence classifier from random weights; takes what `modernbert_config` takes, and table rows."""
    return _from_random_weights(_with_table(modernbert_config(**shape), ngram_buckets))


def modernbert_config(
    *,
    tokenizer: Any,
    max_length: int,
    layers: int,
    hidden: int,
    heads: int,
    intermediate: int,
    dropout: float,
    local_window: int = 0,
    labels: Sequence[str] = LABELS,
) -> Any:
    """A `transformers.ModernBertConfig`: rotary positions, pre-norm, gated feed-forward layers.

    The classifier reads the mean of all tokens. `local_window`: tokens that every second layer attends to; 0: all
    layers attend to all tokens.
    Source: Warner et al. 2024, arXiv:2412.13663.
    """
    from transformers import ModernBertConfig

    return ModernBertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=max_length,
        local_attention=local_window or max_length,
        global_attn_every_n_layers=2 if local_window else 1,
        cls_token_id=tokenizer.bos_token_id,
        sep_token_id=tokenizer.eos_token_id,
        attention_dropout=0.0,
        embedding_dropout=dropout,
        mlp_dropout=dropout,
        classifier_dropout=dropout,
        classifier_pooling="mean",
        **_vocabulary_and_labels(tokenizer, labels),
    )


def ngrams(*, tokenizer: Any, max_length: int, buckets: int, labels: Sequence[str] = LABELS) -> Any:
    """A linear classifier over hashed token n-grams (wide.py), zero at the start."""
    from moekd.wide import NGramConfig, NGramForSequenceClassification

    sizes = {"ngram_buckets": buckets, "max_position_embeddings": max_length}
    return NGramForSequenceClassification(NGramConfig(**sizes, **_vocabulary_and_labels(tokenizer, labels)))


def bigru(
    *, tokenizer: Any, max_length: int, layers: int, hidden: int, dropout: float, labels: Sequence[str] = LABELS
) -> Any:
    """A bidirectional GRU classifier from random weights; `hidden` is the width of one direction."""
    from moekd.bigru import BiGruConfig, BiGruForSequenceClassification

    config = BiGruConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        max_position_embeddings=max_length,
        hidden_dropout_prob=dropout,
        **_vocabulary_and_labels(tokenizer, labels),
    )
    return BiGruForSequenceClassification(config)


def start_positions_as_sinusoids(weight: torch.Tensor, standard_deviation: float) -> None:
    """Fill position embeddings, (positions, width), with sinusoids of a standard deviation."""
    import torch

    positions, width = weight.shape
    frequency = torch.exp(torch.arange(0, width, 2) * (-np.log(10_000.0) / width))
    angle = torch.arange(positions)[:, None] * frequency  # (positions, width / 2, rounded up)
    waves = torch.stack((angle.sin(), angle.cos()), dim=-1).reshape(positions, -1)[:, :width]
    with torch.no_grad():
        weight.copy_(waves * standard_deviation * 2**0.5)  # a sinusoid's deviation is 1 / sqrt(2)


def predict(model: Any, tokens: Tokens, *, pad_id: int, bf16: bool = False, budget: int = 4096) -> np.ndarray:
    """Return the logits of all texts, float32, (texts, classes), in their order.

    fp32 by default: figures are quoted from it. bf16 is for validation while training and for score tables.
    """
    import torch

    device = numerics.device()
    model.to(device).eval()
    out = np.zeros((len(tokens), model.config.num_labels), dtype=np.float32)
    with torch.inference_mode(), numerics.autocast(bf16):
        for rows in token_batches(tokens.lengths, budget=budget, limit=128):
            batch = model_inputs(tokens, rows, pad_id)
            out[rows] = model(**batch).logits.float().cpu().numpy()
    return out


def model_inputs(tokens: Tokens, rows: np.ndarray, pad_id: int) -> dict[str, torch.Tensor]:
    """Ids and attention mask of some rows on the device, int64, (rows, longest); no mask where nothing is padded."""
    import torch

    ids, mask = tokens.padded(rows, pad_id)
    device = numerics.device()
    batch = {"input_ids": torch.from_numpy(ids).to(device)}
    if not mask.all():  # the fused attention kernel is faster without one
        batch["attention_mask"] = torch.from_numpy(mask).to(device)
    return batch
