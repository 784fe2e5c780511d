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


_SLIDING = AttentionConfig(head_dim=256, num_key_value_heads=8, rope_theta=10_000.0, rope_share=1.0, window=1024)
_FULL = AttentionConfig(head_dim=512, num_key_value_heads=2, rope_theta=1_000_000.0, rope_share=0.25, window=None)

#: The network of the Hub's repositories, to judge a machine by before any of it is here.
DIFFUSIONGEMMA_26B_A4B = NetworkConfig(
    vocab_size=262_144,
    hidden_size=2816,
    intermediate_size=2112,
    num_attention_heads=16,
    num_experts=128,
    top_k_experts=8,
    moe_intermediate_size=704,
    layers=(_SLIDING, _SLIDING, _SLIDING, _SLIDING, _SLIDING, _FULL) * 5,
    rms_norm_eps=1e-6,
    final_logit_softcapping=30.0,
    image_tokens_see_each_other=True,
    context_length=262_144,
    canvas_length=256,
)
