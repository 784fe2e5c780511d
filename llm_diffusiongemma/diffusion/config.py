"""What the text network must know of itself: plain values, understood whole. `config_file` reads them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AttentionConfig:
    """A kind of attention layer. All layers of a kind are alike."""

    head_dim: int
    num_key_value_heads: int
    rope_theta: float
    rope_share: float
    """Of the pairs of a head's dimensions those that turn with the position; the others stand still."""
    window: int | None
    """How many positions a sliding layer's token sees, its own counted. None: a full layer sees all of them."""

    @property
    def has_value_projection(self) -> bool:
        """A full layer's values are its keys, before their norm and rotation."""
        return self.window is not None


@dataclass(frozen=True)
class NetworkConfig:
    """The text network. Sizes in comments elsewhere: V vocabulary, H hidden, E experts."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    """of the dense MLP"""
    num_attention_heads: int
    num_experts: int
    top_k_experts: int
    moe_intermediate_size: int
    """of each expert"""
    layers: tuple[AttentionConfig, ...]
    rms_norm_eps: float
    final_logit_softcapping: float | None
    """c makes c tanh(z / c) of a logit z; None leaves it."""
    image_tokens_see_each_other: bool
    """Whether the soft tokens of one image are read in both directions."""
    context_length: int
    canvas_length: int

    @property
    def window(self) -> int | None:
        """That of the sliding layers; None if there are none."""
        return next((layer.window for layer in self.layers if layer.window is not None), None)
