"""transformers' DiffusionGemma as the witness of ours: the same calls, over a KV cache of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache

from llm_diffusiongemma.tiny.train import CACHE_ARGUMENT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import DiffusionGemmaForBlockDiffusion


class Reference:
    """One conversation with transformers' network."""

    def __init__(self, model: DiffusionGemmaForBlockDiffusion) -> None:
        self._model = model
        self._encoder = model.model.encoder
        self._cache = {CACHE_ARGUMENT: DynamicCache(config=model.config.get_text_config(decoder=True))}
        self._length = 0
        self._is_soft_token = torch.zeros(0, dtype=torch.int64)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """`[n]` to `[n, H]`"""
        embeddings: torch.Tensor = self._encoder.get_input_embeddings()(tokens)
        return embeddings

    def encode(self, embeddings: torch.Tensor, spans: Sequence[range] = ()) -> None:
        """Append `[n, H]` to the cache; `spans` as `Network.encode` takes them."""
        n, past = len(embeddings), self._length
        self._length += n
        self._is_soft_token = torch.cat((self._is_soft_token, torch.zeros(n, dtype=torch.int64)))
        for span in spans:
            self._is_soft_token[span.start : span.stop] = 1
        positions = torch.arange(past, self._length)[None]
        # The encoder makes masks of its own if it gets none, but forgets the ones for images.
        masks = self._encoder.create_masks_for_generate(
            config=self._model.config,
            inputs_embeds=embeddings[None],
            attention_mask=torch.ones(1, self._length, dtype=torch.bool),
            position_ids=positions,
            # From the very first token on: the masks look them up by position.
            mm_token_type_ids=self._is_soft_token[None] if spans else None,
            **self._cache,
        )
        self._encoder(inputs_embeds=embeddings[None], attention_mask=masks, position_ids=positions, **self._cache)

    def denoise(self, canvas: torch.Tensor, self_conditioning_logits: torch.Tensor | None) -> torch.Tensor:
        """A canvas `[n]` and the processed logits of the step before, fp32 `[n, V]`, to logits fp32 `[n, V]`."""
        conditioning = self_conditioning_logits
        logits: torch.Tensor = self._model(
            decoder_input_ids=canvas[None],
            self_conditioning_logits=None if conditioning is None else conditioning.to(self._model.dtype)[None],
            decoder_position_ids=torch.arange(self._length, self._length + len(canvas))[None],
            **self._cache,
        ).logits[0]
        return logits.float()
