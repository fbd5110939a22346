"""The KV cache of rows that go on, fork and are fed results: gather columns out of it, and feed it.

Keys carry their positions, so a column may move to another place, or row. Rows end together at the right; where a row
has less than the others there are holes, which nobody attends to. Left out: what a row is, and what it lacks
(`rollout.py:Sampler`).
"""

from collections.abc import Iterator
from itertools import groupby

import torch
from torch.nn.functional import pad
from transformers import DynamicCache

FEED_TOKENS = 8192  # fed in one forward pass at most


class RowCache(DynamicCache):
    """Keys and values of B rows in C columns; `mask` (B, C) is True at the real ones."""

    def __init__(self, rows: int, device):
        super().__init__()
        self.mask = torch.zeros(rows, 0, dtype=torch.bool, device=device)

    def gather(self, sources: list[int], kept: list[int]) -> None:
        """Row i becomes the first kept[i] real columns of row sources[i]."""
        rows = torch.tensor(sources, device=self.mask.device)
        columns = self.mask.int().argsort(dim=-1, descending=True, stable=True)[rows]  # real ones first, in order
        place = torch.arange(-max(kept), 0, device=rows.device) + torch.tensor(kept, device=rows.device)[:, None]
        index = columns.gather(1, place.clamp(min=0))  # (B, C), right-aligned
        for layer in self.layers:
            layer.keys = layer.keys[rows[:, None], :, index].transpose(1, 2)
            layer.values = layer.values[rows[:, None], :, index].transpose(1, 2)
        self.mask = place >= 0

    def feed(self, model, rows: list[list[int]], filler: int) -> int:
        """Appends ids to each row, of which some may have none; returns the holes that were computed for nothing.

        Rows that are fed about as much go together, so that few are padded to a long result.
        """
        lengths, cached, holes = [len(ids) for ids in rows], self.mask.shape[1], 0
        self.mask = pad(self.mask, (0, max(lengths)))
        for layer in self.layers:
            layer.keys, layer.values = (pad(block, (0, 0, 0, max(lengths))) for block in (layer.keys, layer.values))
        for group in feeding_groups(lengths):
            part = RowCache(0, self.mask.device)
            part.mask = self.mask[group, :cached]
            for n, layer in enumerate(self.layers):
                part.update(layer.keys[group, :, :cached], layer.values[group, :, :cached], n)
            holes += part.append(model, [rows[i] for i in group], filler)
            self._write(group, part, lengths[group[-1]])
        return holes

    def _write(self, group: list[int], part: "RowCache", width: int) -> None:
        """The last columns of a group's cache become those of the group here."""
        self.mask[group, -width:] = part.mask[:, -width:]
        for n, fed in enumerate(part.layers):
            if n == len(self.layers):  # nothing was cached before
                size = len(self.mask), fed.keys.shape[1], self.mask.shape[1]
                self.update(*(x.new_zeros(*size, x.shape[-1]) for x in (fed.keys, fed.values)), n)
            self.layers[n].keys[group, :, -width:] = fed.keys[:, :, -width:]
            self.layers[n].values[group, :, -width:] = fed.values[:, :, -width:]

    @torch.no_grad()
    def append(self, model, rows: list[list[int]], filler: int) -> int:
        """A forward pass over all rows, padded on the left; returns the holes."""
        width, device = max(map(len, rows)), self.mask.device
        ids = torch.tensor([[filler] * (width - len(row)) + row for row in rows], device=device)
        real = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows], device=device)
        self.mask = torch.cat([self.mask, real], dim=1)
        positions = (self.mask.cumsum(-1) - 1).clamp(min=0)[:, -width:]
        inputs = dict(input_ids=ids, attention_mask=self.mask.long(), position_ids=positions)
        model(**inputs, past_key_values=self, use_cache=True, logits_to_keep=1)
        return width * len(rows) - sum(map(len, rows))


def feeding_groups(lengths: list[int]) -> Iterator[list[int]]:
    """The rows that are fed so many tokens, those of like length together, few enough at a time for FEED_TOKENS."""
    lacking = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: lengths[i])
    for _, alike in groupby(lacking, key=lambda i: lengths[i].bit_length()):
        group = list(alike)
        some = max(1, FEED_TOKENS // lengths[group[-1]])
        yield from (group[first : first + some] for first in range(0, len(group), some))
