"""Captions that list many labels, as tokens: each distinct word of them is tokenised once."""

from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
import torch

_SEPARATOR = ", "


def tokenize_lists(tokenizer: Callable[[list[str]], torch.Tensor], texts: Sequence[str]) -> torch.Tensor:
    """``tokenizer(texts)``, (len(texts), context length) int64, sooner for texts that join few parts by ", ".

    CLIP's tokenizer splits a text at spaces and between letters and punctuation before it looks at anything else, so
    the tokens of "a photo of a cat, dog" are those of its words and of ",". A text for which that might not hold (a
    part of more than letters, digits and spaces, another script, too long) is tokenised as a whole.
    """
    split = [text.split(_SEPARATOR) if text.isascii() else [text] for text in texts]
    parts = [part for part in set(chain.from_iterable(split)) if part.isascii() and part.replace(" ", "").isalnum()]
    words = sorted(set(chain.from_iterable(part.split() for part in parts)))
    tokens = tokenizer([_SEPARATOR.strip(), *words])
    start, end, length = tokens[0, 0].item(), tokens.max().item(), tokens.shape[1]  # the end token has the largest id
    comma, *inside = [row[1:stop] for row, stop in zip(tokens.tolist(), tokens.argmax(1).tolist(), strict=True)]
    of_word = dict(zip(words, inside, strict=True))
    of_part = {part: list(chain(*(of_word[word] for word in part.split()), comma)) for part in parts}

    rows, odd = [], []
    for place, row in enumerate(split):
        try:
            found = [start, *chain.from_iterable(map(of_part.__getitem__, row))]
        except KeyError:
            found = []
        if not 1 < len(found) <= length:
            odd.append(place)
            found = [start, end]
        found[-1] = end  # instead of the last comma
        rows.append(found)
    sizes = np.fromiter(map(len, rows), int, len(rows))
    filled = np.zeros((len(rows), length), dtype=np.int64)
    filled[np.arange(length) < sizes[:, None]] = np.fromiter(chain.from_iterable(rows), int, sizes.sum())
    result = torch.from_numpy(filled)
    if odd:
        result[odd] = tokenizer([texts[place] for place in odd])
    return result
