"""Word pieces of captions, against a few lines of Python that look for the longest beginning."""

import json
import random
import warnings
from pathlib import Path

import pytest

from scorefield.models.text_tokens import WordPieces

CAPTIONS = ["3 left of 5", "8 above 7", "a grinning face, with tears", "Éclair", "", "3 left of 8"]
BERT = ["[PAD]", "\u2028", "[UNK]", "[CLS]", "[SEP]", "un", "##aff", "##able", "run", "##ning", "!", "a", "##b"]


def pieces(words: list[str], vocabulary: dict[str, int]) -> list[int]:
    """The longest known beginning of each word, and so on with its rest; or the unknown token."""
    found = []
    for word in words:
        start, own = 0, []
        while start < len(word):
            ends = [e for e in range(len(word), start, -1) if "##" * (start > 0) + word[start:e] in vocabulary]
            if not ends:
                own = [vocabulary["[UNK]"]]
                break
            own.append(vocabulary["##" * (start > 0) + word[start : ends[0]]])
            start = ends[0]
        found += own
    return found


def vocabulary_of(tokens: WordPieces) -> dict[str, int]:
    vocabulary: dict[str, int] = json.loads(tokens.text)["model"]["vocab"]
    return vocabulary


def test_a_vocabulary_of_captions_has_their_letters_and_frequent_words() -> None:
    tokens = WordPieces.of_captions(CAPTIONS, length=12)
    vocabulary = vocabulary_of(tokens)
    assert sorted(vocabulary.values()) == list(range(tokens.size))
    assert [vocabulary[each] for each in ("[PAD]", "[UNK]", "[CLS]", "[SEP]")] == [0, 1, 2, 3]
    assert {"left", "of", "above", "eclair", "##g", "g", ","} <= {*vocabulary} and "Éclair" not in vocabulary
    assert vocabulary["left"] < vocabulary["above"]  # the more frequent first
    again = WordPieces.of_captions(random.Random(0).sample(CAPTIONS, len(CAPTIONS)), length=12)
    assert again.text == tokens.text
    small = vocabulary_of(WordPieces.of_captions(CAPTIONS, size=tokens.size - 7))
    assert len(small) == tokens.size - 7 and small["left"] == vocabulary["left"] and "with" not in small


def test_captions_become_numbers_with_padding() -> None:
    tokens = WordPieces.of_captions(CAPTIONS, length=12)
    vocabulary, r = vocabulary_of(tokens), random.Random(0)
    letters = sorted(
        {letter for caption in CAPTIONS for letter in caption.lower() if letter.isascii() and letter.isalnum()}
    )
    words = [["".join(r.choices(letters, k=r.randint(1, 3))) for _ in range(3)] for _ in range(50)]
    words += [["left", "grinning"], ["x7left"]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = tokens.encode([" ".join(each) for each in words])
    assert rows.shape == (52, 12) and rows.dtype == "int64"
    for row, own in zip(rows.tolist(), words, strict=True):
        expected = [*[2, *pieces(own, vocabulary)][:11], 3]
        assert row == expected + [0] * (12 - len(expected))
    assert tokens.encode(["", " \n", "a"]).any(1).tolist() == [False, False, True]  # nothing is padding alone
    assert tokens.encode([]).shape == (0, 12)
    assert tokens.decode(tokens.encode(["LEFT of  5"])[0].tolist()) == "left of 5"


def test_unknown_words_and_long_captions_are_said_once() -> None:
    tokens = WordPieces.of_captions(CAPTIONS, length=6)
    with pytest.warns(UserWarning, match="^unknown words in captions: 3, as 'Qq', 'zz': reword them$") as said:
        rows = tokens.encode(["a Qq zz", "Qq"])
    assert len(said) == 1 and rows[1].tolist() == [2, 1, 3, 0, 0, 0]
    with pytest.warns(UserWarning, match="^1 of 2 captions have over 6 tokens, and are cut: shorten them$"):
        assert tokens.encode(["a a a a a", "Qq"])[0].tolist() == [2, *[rows[0, 1]] * 4, 3]
    tokens.encode(["a a a a a", "Qq"])  # warnings are errors in the tests


def test_a_tokeniser_is_kept_as_text_and_read_from_files(tmp_path: Path) -> None:
    tokens = WordPieces.of_captions(CAPTIONS, length=12)
    file = tmp_path / "tokenizer.json"
    file.write_text(tokens.text, encoding="utf-8")
    for again in (WordPieces.of_text(tokens.text), WordPieces.read(file, 12)):
        assert again.length == 12 and (again.encode(CAPTIONS) == tokens.encode(CAPTIONS)).all()
    assert WordPieces.read(file, 20).encode(CAPTIONS).shape == (6, 20)
    for cased in (False, True):
        vocabulary = [*BERT, "A"] if cased else BERT
        (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
        bert = WordPieces.read(tmp_path / "vocab.txt", 8)
        assert bert.size == len(vocabulary)
        assert bert.encode(["unaffable running!"]).tolist() == [[3, 5, 6, 7, 8, 9, 10, 4]]
        for word, expected in (("ab", [11, 12]), ("A", [13] if cased else [11])):
            assert bert.encode([word])[0, 1 : 1 + len(expected)].tolist() == expected


def test_what_is_no_tokeniser_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    (tmp_path / "latin.txt").write_bytes(b"\xe9")
    text = json.loads(WordPieces.of_captions(CAPTIONS).text)
    text["model"]["vocab"] = {piece.replace("[PAD]", "<pad>"): n for piece, n in text["model"]["vocab"].items()}
    text["added_tokens"], text["padding"] = [], None
    calls = {
        "got 2 others": lambda: WordPieces.read(tmp_path / "vocab.txt"),
        "reading .*none.json gave": lambda: WordPieces.read(tmp_path / "none.json"),
        "reading .*latin.txt gave": lambda: WordPieces.read(tmp_path / "latin.txt"),
        "expected the JSON of a tokeniser": lambda: WordPieces.of_text("{"),
        r"with \[PAD\] as token 0 .* got \[PAD\] as token None": lambda: WordPieces.of_text(json.dumps(text)),
        "of at most 3 different letters, got": lambda: WordPieces.of_captions(CAPTIONS, size=10),
        "captions of words, .* got 0": lambda: WordPieces.of_captions(["", " "]),
        "at least 3 tokens, got 2": lambda: WordPieces.of_captions(CAPTIONS, length=2),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value) and len(str(error.value)) < 300
