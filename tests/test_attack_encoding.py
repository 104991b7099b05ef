"""Word by word or whole: the same ids, whatever the text, and a way back where a tokenizer is not local."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from moekd.attack.encoding import VariantEncoder
from moekd.data.embedded import generate
from moekd.data.text import normalise
from moekd.rewrite import Template
from moekd.tokens import train_bpe

TEXTS = [normalise(sample.func) for sample in generate(60, 2)]
ENCODERS = {
    lowercase: VariantEncoder(train_bpe(TEXTS, vocabulary=400, max_length=50, lowercase=lowercase), 50)
    for lowercase in (False, True)
}


def same(encoder: VariantEncoder, texts: list[str]) -> bool:
    first, second = encoder.by_words(texts), encoder.whole(texts)
    return np.array_equal(first.flat, second.flat) and np.array_equal(first.offsets, second.offsets)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(TEXTS),
    st.text(alphabet="abzAZ_019é<>", min_size=1, max_size=12),
    st.booleans(),
    st.integers(0, 30),
)
def test_variants_are_encoded_as_whole_texts(text, name, lowercase, occurrence):
    """Any word in an identifier's place, `<unk>` too, once or everywhere: the ids of the full encoding."""
    template = Template.of(text)
    names = [one.name for one in template.identifiers]
    places = sum(len(template.occurrences(name)) for name in names)
    variants = [
        text,
        template.render(dict.fromkeys(names[:1], name)),
        template.replace_one({}, occurrence % places, "<unk>"),
        template.replace_one({}, occurrence % places, name),
    ]
    assert same(ENCODERS[lowercase], variants)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab_1 \n(;'\"<unk>éλ😀", max_size=60))
def test_any_normalised_text_is_encoded_as_a_whole_text(text):
    """Any text as models read it, at any length around the cut."""
    assert same(ENCODERS[False], [normalise(text), normalise(text * 3)])


def test_a_tokenizer_that_is_not_local_is_recognised():
    """One that merges across blanks (no pre-tokenizer) gives other ids word by word: it must be used whole."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<pad>"], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    encoder = VariantEncoder(
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>"), 50
    )
    assert not all(encoder.is_local(text) for text in TEXTS)
    assert all(ENCODERS[False].is_local(text) for text in TEXTS)


@pytest.mark.parametrize("length", [3, 8, 50])
def test_cut_at_any_length(length):
    tokenizer = train_bpe(TEXTS, vocabulary=300, max_length=length)
    assert same(VariantEncoder(tokenizer, length), [*TEXTS[:5], "", "x"])


def test_word_pieces_are_local():
    """A tokenizer of BERT's kind, with specials of its own."""
    from tokenizers import processors

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[UNK]", "[PAD]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    encoder = VariantEncoder(PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]"), 50)
    assert all(encoder.is_local(text) for text in TEXTS)
    assert encoder.by_words(TEXTS[:1]).flat[0] == 2
