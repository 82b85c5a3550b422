"""Captions as the numbers of word pieces, as BERT has them (Devlin et al. 2019; Schuster and Nakajima 2012)."""

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

PAD, UNK, CLS, SEP = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
SHOWN = 3  # unknown words in a warning


class WordPieces:
    """A tokeniser: a caption is [CLS], the pieces of its words, [SEP], and [PAD] up to `length`.

    The longest known beginning of a word is a piece, and so on with its rest. A word that cannot be put together so is
    [UNK]. [PAD] is token 0. An empty caption has padding only, which conditioners take as "nothing".

    Args:
        tokenizer: of the package `tokenizers`.
        length: tokens of a caption. Longer captions are cut, and still end with [SEP].

    Raises:
        ValueError: if it lacks one of BERT's special tokens, or [PAD] is another number than 0.
    """

    def __init__(self, tokenizer: Tokenizer, length: int) -> None:
        lacking = [each for each in (UNK, CLS, SEP) if tokenizer.token_to_id(each) is None]
        if tokenizer.token_to_id(PAD) != 0 or lacking:
            raise ValueError(
                f"expected a tokeniser as BERT's, with {PAD} as token 0 and {UNK}, {CLS} and {SEP}, got {PAD} as token "
                f"{tokenizer.token_to_id(PAD)}{' and no ' if lacking else ''}{' and no '.join(lacking)}: use another"
            )
        if length < 3:
            raise ValueError(f"expected a length of at least 3 tokens, got {length}: give more (conditioner.length)")
        tokenizer.enable_truncation(length)
        tokenizer.enable_padding(length=length)
        self._tokenizer, self.length, self._said = tokenizer, length, set[str]()

    @classmethod
    def of_captions(cls, captions: Iterable[str], length: int = 77, size: int = 4096) -> "WordPieces":
        """A small vocabulary: every letter of the captions, and their most frequent words, up to `size` tokens.

        Other words are put together of letters. It depends on the captions and their number, and not on their order.

        Raises:
            ValueError: if there is no word, or the letters alone are more.
        """
        words = Counter[str]()
        normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        for caption, count in Counter(captions).items():
            for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(caption)):
                words[word] += count
        letters = sorted({letter for word in words for letter in word})
        pieces = [PAD, UNK, CLS, SEP, *letters, *(f"##{letter}" for letter in letters)]
        if not words or len(pieces) > size:
            raise ValueError(
                f"expected captions of words, of at most {(size - 4) // 2} different letters, got {len(letters)}: give "
                "captions, or a tokeniser of your own"
            )
        frequent = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word], word))
        return cls(_bert([*pieces, *frequent[: size - len(pieces)]], lowercase=True), length)

    @classmethod
    def read(cls, path: Path | str, length: int = 77) -> "WordPieces":
        """A tokenizer.json, or a vocab.txt with a piece in each line, as BERT's.

        The pieces of a vocab.txt decide whether captions are read in lower case: they are, unless a piece is not.

        Raises:
            ValueError: if the file cannot be read, or is no such tokeniser.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
            if path.suffix == ".txt":
                pieces = text.removesuffix("\n").split("\n")  # a piece may be another line separator
                plain = (piece for piece in pieces if not piece.startswith("["))
                return cls(_bert(pieces, lowercase=all(piece == piece.lower() for piece in plain)), length)
            return cls.of_text(text, length)
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"expected a tokenizer.json or a vocab.txt, and reading {path} gave {error}") from None

    @classmethod
    def of_text(cls, text: str, length: int | None = None) -> "WordPieces":
        """The tokeniser that `text` says, as in a tokenizer.json; `length` replaces its own.

        Raises:
            ValueError: if it says none.
        """
        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the package raises nothing more exact
            raise ValueError(f"expected the JSON of a tokeniser, and reading it gave {error}: restore it") from None
        own = tokenizer.truncation or {}
        return cls(tokenizer, own.get("max_length", 77) if length is None else length)

    @property
    def text(self) -> str:
        """All of it as JSON, as a tokenizer.json has it: `of_text` reads it back."""
        return self._tokenizer.to_str(pretty=True)

    @property
    def size(self) -> int:
        """The number of different tokens."""
        return self._tokenizer.get_vocab_size()

    def encode(self, captions: Sequence[str]) -> NDArray[np.int64]:
        """The tokens of captions, (N, length). Warns once of unknown words, and once of captions that are cut."""
        rows, unknown, cut = dict[str, list[int]](), Counter[str](), 0
        for caption, count in Counter(captions).items():
            encoding = self._tokenizer.encode(caption)
            rows[caption] = encoding.ids if caption.strip() else [0] * self.length
            cut += count * bool(encoding.overflowing)
            for token, (start, end) in zip(encoding.tokens, encoding.offsets, strict=True):
                if token == UNK:
                    unknown[caption[start:end]] += count
        if unknown:
            shown = ", ".join(repr(word) for word, _ in unknown.most_common(SHOWN))
            self._say_once("unknown", f"unknown words in captions: {sum(unknown.values())}, as {shown}: reword them")
        if cut:
            line = f"{cut} of {len(captions)} captions have over {self.length} tokens, and are cut: shorten them"
            self._say_once("cut", line)
        return np.array([rows[caption] for caption in captions], np.int64).reshape(-1, self.length)

    def decode(self, tokens: Sequence[int]) -> str:
        """The caption of tokens (length,), in the normal form that they have."""
        return self._tokenizer.decode([int(token) for token in tokens])

    def _say_once(self, what: str, line: str) -> None:
        if what not in self._said:
            self._said.add(what)
            warnings.warn(line, stacklevel=3)


def _bert(pieces: Sequence[str], lowercase: bool) -> Tokenizer:
    """BERT's tokeniser with these pieces, numbered from 0."""
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    if UNK not in vocabulary or CLS not in vocabulary or SEP not in vocabulary:
        raise ValueError(f"expected pieces with {UNK}, {CLS} and {SEP}, got {len(pieces)} others: use BERT's vocab.txt")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNK))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([piece for piece in (PAD, UNK, CLS, SEP) if piece in vocabulary])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}", special_tokens=[(CLS, vocabulary[CLS]), (SEP, vocabulary[SEP])]
    )
    return tokenizer
