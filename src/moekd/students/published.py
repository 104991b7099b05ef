"""The published students as whole systems: what each one reads, how it is trained, and the defects of its code.

A system is a method in one way, such as `avatar-fixed`; a student is a method at a size, such as `avatar-3mb`. All ways
of a method share architecture, tokenizer, data, start, budget and seed, so that two of them differ by defects alone.

    one-output-teacher   the teacher's loss reads one of two outputs; the student is given both (methods.md 1.10 a)
    sigmoid-targets      sigmoid(output) takes the place of each logit, so no target is surer than 0.73 (1.10 c)
    frozen-biases        biases and norms of teacher and student stay at their start (1.10 d)
    unscaled-loss        MORPH's loss as in its code, T = 2 and no T², not as in its paper, T = 3 and T² (3.5)

Defects of 1.10 that are not here: b is GraphCodeBERT's, j and k are the search's, the others change no result.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from moekd.classifier import sizes_of
from moekd.config import PublishedMethod, Way
from moekd.errors import DataError, SettingsError
from moekd.files import read_json, sha256_file
from moekd.students.shapes import SHAPES
from moekd.students.space import Configuration
from moekd.tokens import SPECIALS, wrapped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moekd.config import MoekdSettings

Kind = Literal["bpe", "wordpiece", "unigram", "word"]

_OF_TARGETS: frozenset[Way] = frozenset({"one-output-teacher", "sigmoid-targets", "frozen-biases"})
#: What the teacher suffers from; all ways that have none of these share the single teacher of the run.
TEACHER_DEFECTS: frozenset[Way] = frozenset({"one-output-teacher", "frozen-biases"})
RENAMED_FILE = "renamed.json"
SEARCHED = "-searched"  # end of the name of a student whose architecture is the pick of a search


@dataclass(frozen=True)
class Method:
    """How one method trains its students.

    Attributes:
        epochs: as published for vulnerability detection with CodeBERT.
        tokens: read of a function at most; None: the architecture's maximal length.
        specials: `<s>` in front and `</s>` behind; without them the head reads the first token of the code.
        prefix_space: of the byte-level BPE.
        plain_text: accents are stripped and characters decomposed (NFKD) before lower-casing.
        renamed: learns from each function's renamed variant, too, and is selected on both.
        tokenizer, hidden_dropout, attention_dropout, learning_rate, batch_size: of its published students.
        defects: of its code.
    """

    epochs: int
    tokens: int | None
    specials: bool
    prefix_space: bool
    plain_text: bool
    renamed: bool
    tokenizer: Kind
    hidden_dropout: float
    attention_dropout: float
    learning_rate: float
    batch_size: int
    defects: frozenset[Way]


METHODS: dict[PublishedMethod, Method] = {
    "compressor": Method(  # methods.md 1.3, 1.4, 1.7
        epochs=20,
        tokens=400,
        specials=True,
        prefix_space=True,
        plain_text=False,
        renamed=False,
        tokenizer="bpe",
        hidden_dropout=0.5,
        attention_dropout=0.1,
        learning_rate=1e-4,
        batch_size=16,
        defects=_OF_TARGETS,
    ),
    "avatar": Method(  # methods.md 2.6
        epochs=50,
        tokens=None,
        specials=False,
        prefix_space=False,
        plain_text=True,
        renamed=False,
        tokenizer="bpe",
        hidden_dropout=0.5,
        attention_dropout=0.4,
        learning_rate=1e-3,
        batch_size=64,
        defects=_OF_TARGETS,
    ),
    "morph": Method(  # methods.md 3.5, and the row of its results that SHAPES names
        epochs=40,
        tokens=None,
        specials=False,
        prefix_space=False,
        plain_text=True,
        renamed=True,
        tokenizer="wordpiece",
        hidden_dropout=0.2,
        attention_dropout=0.2,
        learning_rate=5e-5,
        batch_size=16,
        defects=_OF_TARGETS | {"unscaled-loss"},
    ),
}


def system_named(method: PublishedMethod, way: Way) -> str:
    return f"{method}-{way}"


def parts_of(system: str) -> tuple[Method, frozenset[Way]]:
    """The method of a system and the defects that it has."""
    name, _, way = system.partition("-")
    method = METHODS[cast("PublishedMethod", name)]
    return method, method.defects if way == "reference" else method.defects & {cast("Way", way)}


def ways_of(method: PublishedMethod, ways: Sequence[Way]) -> list[Way]:
    """Those of the ways that the method has: a defect that its code lacks makes no system."""
    return [way for way in ways if way in ("reference", "fixed") or way in METHODS[method].defects]


def student_named(method: PublishedMethod, size: str, settings: MoekdSettings) -> str:
    name = f"{method}-{size}"
    return name + SEARCHED if name in settings.published.searched else name


def method_of(student: str) -> Method:
    return METHODS[cast("PublishedMethod", student.partition("-")[0])]


def configuration_of(student: str, settings: MoekdSettings) -> Configuration:
    """Architecture and training values of a student: the published ones, or the pick of the search that settings name.

    Raises:
        DataError: the file of the search cannot be read or holds no pick.
        SettingsError: the search was another one, or its pick has relative positions, which the library lost.
    """
    if student.endswith(SEARCHED):
        published = student.removesuffix(SEARCHED)
        return _picked(published, Path(settings.published.searched[published]))
    shape, method = SHAPES[student], method_of(student)
    return Configuration(
        **sizes_of(shape),
        vocabulary=shape.vocabulary,
        max_length=shape.positions - 2,
        tokenizer=method.tokenizer,
        activation=shape.activation,
        hidden_dropout=method.hidden_dropout,
        attention_dropout=method.attention_dropout,
        learning_rate=method.learning_rate,
        batch_size=method.batch_size,
    )


def _picked(student: str, path: Path) -> Configuration:
    try:
        found = read_json(path)
        searched, configuration = found["search"], Configuration(**found["picked"]["configuration"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"published.searched: {path} holds no pick of a search ({error!r}); make one with "
            f"moekd search {student.partition('-')[0]} --out FOLDER"
        ) from error
    if searched != student.partition("-")[0]:
        raise SettingsError(f"published.searched: {student} was given {path}, which is a search of {searched}")
    if configuration.position != "absolute":
        raise SettingsError(
            f"published.searched: the pick in {path} has {configuration.position} positions, which transformers 5 "
            "no longer builds: search among candidates with absolute ones"
        )
    return configuration


def searched_digests(settings: MoekdSettings) -> list[str]:
    """Return the digests of the searches whose picks replace published architectures; DataError if one is missing."""
    try:
        return [sha256_file(Path(path)) for _, path in sorted(settings.published.searched.items())]
    except OSError as error:
        raise DataError(f"published.searched: cannot read {error.filename}: {error.strerror}") from error


def tokenize_published(
    settings: MoekdSettings, inputs: Mapping[str, Path], folder: Path, *, student: str, seed: int = 0
) -> dict[str, Any]:
    """Stage: the student's tokenizer, trained on half B, and train_b, valid and test encoded with it.

    Args:
        inputs: `data`; with `renamed`, its variants of train_b and valid are encoded as well, `train_b-renamed.npz` ...
        seed: of the renamed functions; names the step, and changes nothing else here.
    """
    from moekd.data import load_parts
    from moekd.tokens import encode

    method, configuration = method_of(student), configuration_of(student, settings)
    texts = {part: [sample.func for sample in samples] for part, samples in load_parts(inputs["data"]).items()}
    asked = {part: texts[part] for part in ("train_b", "valid", "test")}
    if "renamed" in inputs:
        renamed = read_json(inputs["renamed"] / RENAMED_FILE)
        asked |= {f"{part}-renamed": found for part, found in renamed.items()}
    tokenizer = train_published_tokenizer(method, configuration, texts["train_b"])
    tokenizer.save_pretrained(str(folder))
    length = tokenizer.model_max_length
    facts: dict[str, Any] = {"vocabulary": len(tokenizer), "vocabulary_asked": configuration.vocabulary}
    for part, found in asked.items():
        tokens = encode(tokenizer, found, length)
        tokens.save(folder / f"{part}.npz")
        facts[f"{part}_cut_share"] = float((tokens.lengths >= length).mean())
    return facts


def train_published_tokenizer(method: Method, configuration: Configuration, texts: Sequence[str]) -> Any:
    """Train the tokenizer of a method, of the kind that the configuration names; white space is collapsed first.

    Returns:
        A `transformers.PreTrainedTokenizerFast` that cuts texts where the method does.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    unknown = "<unk>"
    digits = pre_tokenizers.Digits(individual_digits=True)
    specials: dict[str, Any] = {
        "special_tokens": list(SPECIALS),
        "vocab_size": configuration.vocabulary,
        "show_progress": False,
    }
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model, pre_tokenizer, trainer = {
        "bpe": lambda: (
            models.BPE(unk_token=unknown),
            pre_tokenizers.ByteLevel(add_prefix_space=method.prefix_space),
            trainers.BpeTrainer(initial_alphabet=alphabet, **specials),
        ),
        "wordpiece": lambda: (
            models.WordPiece(unk_token=unknown),
            pre_tokenizers.Whitespace(),
            trainers.WordPieceTrainer(**specials),
        ),
        "unigram": lambda: (
            models.Unigram(),
            pre_tokenizers.Metaspace(),
            trainers.UnigramTrainer(unk_token=unknown, **specials),
        ),
        "word": lambda: (
            models.WordLevel(unk_token=unknown),
            pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), digits]),
            trainers.WordLevelTrainer(**specials),
        ),
    }[configuration.tokenizer]()
    tokenizer = Tokenizer(model)
    plain = [normalizers.NFKD(), normalizers.StripAccents()] if method.plain_text else []
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(), normalizers.Lowercase(), *plain]
    )
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(texts, trainer)
    if method.specials:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    return wrapped(tokenizer, method.tokens or configuration.max_length)
