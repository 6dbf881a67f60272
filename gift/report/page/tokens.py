"""The text of each token of a completion, so that a page can colour them."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

TOKENIZER = "tokenizer.json"


class Pieces:
    """Cuts texts at the borders of their tokens, by a policy folder's tokenizer."""

    def __init__(self, file: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(file))
        self.known: dict[int, str] = {}

    def lengths(self, ids: Sequence[int], text: str) -> list[int] | None:
        """How many characters of `text` each token makes: 0 of one that makes none, such as the end of a text.

        A character of several tokens is the last one's. None where the tokens are not those of the text.
        """
        for each in {*ids} - self.known.keys():
            self.known[each] = self.tokenizer.decode([each], skip_special_tokens=True)
        pieces = [self.known[each] for each in ids]
        if "".join(pieces) != text:
            stream = DecodeStream(skip_special_tokens=True)
            pieces = [stream.step(self.tokenizer, each) or "" for each in ids]
        return [len(piece) for piece in pieces] if "".join(pieces) == text else None


def tokenizer_of(*policies: Path) -> Pieces | None:
    """Of the first of these folders that has a sound tokenizer in one file; None where none has."""
    for policy in policies:
        if (policy / TOKENIZER).is_file():
            with suppress(Exception):  # of any type: a damaged one, as `tokenizers` raises it
                return Pieces(policy / TOKENIZER)
    return None
