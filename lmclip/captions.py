"""Captions that list many labels, as tokens: each distinct part of them is tokenised once."""

from collections.abc import Callable, Sequence

import torch

_SEPARATOR = ", "


def tokenize_lists(tokenizer: Callable[[list[str]], torch.Tensor], texts: Sequence[str]) -> torch.Tensor:
    """``tokenizer(texts)``, (len(texts), context length) int64, sooner for texts that join few parts by ", ".

    CLIP's tokenizer splits a text at spaces and between letters and punctuation before it looks at anything else, so
    the tokens of "a photo of a cat, dog" are those of "a photo of a cat", "," and "dog". A text for which that might
    not hold (a part of more than letters, digits and spaces, another script, too long) is tokenised as a whole.
    """
    split = [text.split(_SEPARATOR) if text.isascii() else [text] for text in texts]
    parts = sorted({part for row in split for part in row if len(row) > 1 and part.replace(" ", "").isalnum()})
    tokens = tokenizer([_SEPARATOR.strip(), *parts])
    inside = [row[1:end] for row, end in zip(tokens.tolist(), tokens.argmax(1).tolist(), strict=True)]
    start, comma, end = tokens[0, 0].item(), inside[0], tokens.max().item()  # the end token has the largest id
    known = dict(zip(parts, inside[1:], strict=True))
    rows, odd = [], []
    for place, row in enumerate(split):
        found = [start]
        if len(row) > 1 and all(part in known for part in row):
            for part in row:
                found += known[part]
                found += comma
            found[len(found) - len(comma) :] = [end]
        if not 1 < len(found) <= tokens.shape[1]:
            odd.append(place)
            found = []
        rows.append(found + [0] * (tokens.shape[1] - len(found)))
    result = torch.tensor(rows, dtype=torch.int64).reshape(len(texts), tokens.shape[1])
    if odd:
        result[odd] = tokenizer([texts[place] for place in odd])
    return result
