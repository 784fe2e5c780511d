"""What a config.json and a generation_config.json may say, and the `NetworkConfig` that comes of the one.

A value that is in a file and not here is never used: no class of transformers is made from a stranger's JSON, only
from what has passed this schema. The bounds are generous: they keep out what would end in an error without a
sentence, or in absurd memory. Whether the sizes are those of the weights is checked against the weights. How
weights are packed is in `quantization`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from ..documents import Document, refuse_unless
from ..errors import CheckpointError
from ..layout import CONFIG_FILE, GENERATION_FILE, TokenId, check_document, read_document, read_json
from ..wording import quoted
from .config import AttentionConfig, NetworkConfig

if TYPE_CHECKING:
    from pathlib import Path

MODEL_TYPE = "diffusion_gemma"

Size = Annotated[int, Field(ge=1, le=1 << 18)]
Count = Annotated[int, Field(ge=1, le=1024)]
HeadDim = Annotated[int, Field(ge=4, le=4096, multiple_of=4)]
Positive = Annotated[float, Field(gt=0, le=1e12)]
LAYER_INDEX = re.compile(r"\d{1,4}", re.ASCII)
LayerIndex = Annotated[str, Field(pattern=r"^(0|[1-9]\d{0,3})$")]
LayerType = Literal["sliding_attention", "full_attention"]
Activation = Literal["gelu_pytorch_tanh"]


class _Rope(Document):
    rope_type: Literal["default", "proportional"]
    rope_theta: Positive
    partial_rotary_factor: float = Field(default=1.0, gt=0, le=1)
    factor: float = Field(default=1.0, ge=1, le=1)

    @model_validator(mode="after")
    def _is_of_one_piece(self) -> _Rope:
        refuse_unless(
            self.rope_type == "proportional" or self.partial_rotary_factor == 1,
            "only rope_type proportional has a partial_rotary_factor",
        )
        return self


class _RopeByLayerType(Document):
    sliding_attention: _Rope
    full_attention: _Rope


# What transformers takes where a config has no rope_parameters.
DEFAULT_ROPE = _RopeByLayerType(
    sliding_attention=_Rope(rope_type="default", rope_theta=10_000.0),
    full_attention=_Rope(rope_type="proportional", rope_theta=1_000_000.0, partial_rotary_factor=0.25),
)


class _LayerSizes(Document):
    model_config = ConfigDict(extra="forbid")  # in all else the layers are alike

    head_dim: HeadDim | None = None
    num_key_value_heads: Count | None = None


def _by_number(value: Any) -> Any:
    """transformers writes the numbers of layers with a zero in front, if there are more than ten."""
    if not isinstance(value, dict):
        return value
    return {str(int(key)) if LAYER_INDEX.fullmatch(str(key)) else key: each for key, each in value.items()}


class _OtherFeatures(Document):
    """What related networks have and this one has not: the values that say so, which go no further."""

    attention_k_eq_v: Literal[True] = Field(default=True, exclude=True)
    enable_moe_block: Literal[True] = Field(default=True, exclude=True)
    hidden_size_per_layer_input: Literal[0] | None = Field(default=None, exclude=True)
    num_kv_shared_layers: Literal[0] | None = Field(default=None, exclude=True)
    use_double_wide_mlp: Literal[False] = Field(default=False, exclude=True)
    mlp_bias: Literal[False] = Field(default=False, exclude=True)
    attn_logit_softcapping: None = Field(default=None, exclude=True)
    query_pre_attn_scalar: Literal[1] | None = Field(default=None, exclude=True)
    rope_scaling: None = Field(default=None, exclude=True)


class TextConfig(_OtherFeatures):
    """The text network. What a config leaves out has the default of transformers."""

    model_type: Literal["diffusion_gemma_text"] = "diffusion_gemma_text"
    vocab_size: int = Field(default=262_144, ge=1, le=1 << 22)
    hidden_size: Size = 2304
    intermediate_size: Size = 9216
    num_hidden_layers: Count = 30
    num_attention_heads: Count = 8
    num_key_value_heads: Count = 4
    head_dim: HeadDim = 256
    global_head_dim: HeadDim = 512
    num_global_key_value_heads: Count | None = None
    per_layer_config: Annotated[dict[LayerIndex, _LayerSizes] | None, BeforeValidator(_by_number)] = None
    layer_types: Annotated[list[LayerType], Field(min_length=1)] | None = None
    sliding_window: int = Field(default=512, ge=2, le=1 << 24)
    max_position_embeddings: int = Field(default=131_072, ge=1, le=1 << 30)
    rope_parameters: _RopeByLayerType | None = None
    hidden_activation: Activation = "gelu_pytorch_tanh"
    rms_norm_eps: float = Field(default=1e-6, ge=0, le=1)
    final_logit_softcapping: Annotated[float, Field(gt=1e-3, le=1e3)] | None = 30.0
    use_bidirectional_attention: Literal["vision"] | None = None
    attention_bias: Literal[False] = False
    tie_word_embeddings: Literal[True] = True
    num_experts: int = Field(ge=1, le=4096)
    top_k_experts: int = Field(ge=1, le=4096)
    moe_intermediate_size: Size
    pad_token_id: TokenId | None = 0
    bos_token_id: TokenId | None = 2

    @model_validator(mode="after")
    def _is_of_one_piece(self) -> TextConfig:
        refuse_unless(self.top_k_experts <= self.num_experts, "top_k_experts must be at most num_experts")
        for name in ("pad_token_id", "bos_token_id"):
            refuse_unless((getattr(self, name) or 0) < self.vocab_size, f"{name} must be below vocab_size")
        kinds = self.kinds
        refuse_unless(len(kinds) == self.num_hidden_layers, "layer_types must name each of num_hidden_layers")
        refuse_unless(kinds[-1] == "full_attention", "the last of layer_types must be full_attention")
        sizes = {
            kind: {self._layer_sizes(i, kind) for i, each in enumerate(kinds) if each == kind}
            for kind in set(kinds)
        }
        refuse_unless(
            all(len(each) == 1 for each in sizes.values()),
            "per_layer_config must say the same of all layers of a type",
        )
        refuse_unless(
            all(self.num_attention_heads % heads == 0 for each in sizes.values() for _, heads in each),
            "num_attention_heads must be a multiple of the key and value heads",
        )
        refuse_unless(
            all(int(index) < self.num_hidden_layers for index in self.per_layer_config or ()),
            "per_layer_config must be of layers that there are",
        )
        return self

    @property
    def kinds(self) -> list[LayerType]:
        """Of each layer."""
        last = self.num_hidden_layers - 1
        return self.layer_types or [
            "full_attention" if i % 6 == 5 or i == last else "sliding_attention" for i in range(last + 1)
        ]

    def attention(self, layer: int) -> AttentionConfig:
        """What kind of attention a layer has."""
        kind = self.kinds[layer]
        head_dim, num_key_value_heads = self._layer_sizes(layer, kind)
        rope = getattr(self.rope_parameters or DEFAULT_ROPE, kind)
        window = self.sliding_window if kind == "sliding_attention" else None
        return AttentionConfig(head_dim, num_key_value_heads, rope.rope_theta, rope.partial_rotary_factor, window)

    def _layer_sizes(self, layer: int, kind: str) -> tuple[int, int]:
        """A layer's head_dim and its key and value heads. Where there is a per_layer_config, it holds."""
        own = _LayerSizes()
        if self.per_layer_config is not None:
            own = self.per_layer_config.get(str(layer), own)
        elif kind == "full_attention":
            own = _LayerSizes(head_dim=self.global_head_dim, num_key_value_heads=self.num_global_key_value_heads)
        return own.head_dim or self.head_dim, own.num_key_value_heads or self.num_key_value_heads


class _VisionRope(Document):
    rope_type: Literal["axial", "default"]
    rope_theta: Positive


class VisionConfig(Document):
    """The vision tower."""

    model_type: Literal["gemma4_vision"] = "gemma4_vision"
    hidden_size: Size = 768
    intermediate_size: Size = 3072
    num_hidden_layers: Count = 16
    num_attention_heads: Count = 12
    num_key_value_heads: Count = 12
    head_dim: HeadDim = 64
    hidden_activation: Activation = "gelu_pytorch_tanh"
    rms_norm_eps: float = Field(default=1e-6, ge=0, le=1)
    rope_parameters: _VisionRope | None = None
    pooling_kernel_size: int = Field(default=3, ge=1, le=64)
    patch_size: int = Field(default=16, ge=1, le=256)
    position_embedding_size: int = Field(default=10_240, ge=1, le=1 << 20)
    use_clipped_linears: bool = False
    standardize: bool = False
    attention_bias: Literal[False] = False

    @model_validator(mode="after")
    def _is_of_one_piece(self) -> VisionConfig:
        refuse_unless(
            self.num_attention_heads % self.num_key_value_heads == 0,
            "num_attention_heads must be a multiple of num_key_value_heads",
        )
        return self


class ConfigFile(Document):
    """A whole config.json."""

    text_config: TextConfig
    vision_config: VisionConfig | None = None
    boi_token_id: TokenId = 255_999
    eoi_token_id: TokenId = 258_882
    image_token_id: TokenId = 258_880
    canvas_length: int = Field(default=256, ge=1, le=4096)
    tie_word_embeddings: Literal[True] = True
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    torch_dtype: Literal["float32", "bfloat16", "float16"] | None = None

    @model_validator(mode="after")
    def _is_of_one_piece(self) -> ConfigFile:
        for name in ("boi_token_id", "eoi_token_id", "image_token_id"):
            token_id = getattr(self, name)
            refuse_unless(token_id < self.text_config.vocab_size, f"{name} {token_id} must be below vocab_size")
        return self

    def network(self) -> NetworkConfig:
        """What the text network must know of it."""
        text = self.text_config
        return NetworkConfig(
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            num_attention_heads=text.num_attention_heads,
            num_experts=text.num_experts,
            top_k_experts=text.top_k_experts,
            moe_intermediate_size=text.moe_intermediate_size,
            layers=tuple(map(text.attention, range(text.num_hidden_layers))),
            rms_norm_eps=text.rms_norm_eps,
            final_logit_softcapping=text.final_logit_softcapping,
            image_tokens_see_each_other=text.use_bidirectional_attention == "vision",
            context_length=text.max_position_embeddings,
            canvas_length=self.canvas_length,
        )


class _SamplerConfig(Document):
    cls_name: Literal["EntropyBoundSamplerConfig"] = Field(
        default="EntropyBoundSamplerConfig", validation_alias="_cls_name"
    )
    entropy_bound: Positive


def _as_list(value: Any) -> Any:
    """One id may stand alone."""
    return [] if value is None else [value] if isinstance(value, int) else value


class GenerationSettings(Document):
    """A whole generation_config.json. The ranges are those of the options of a prompt."""

    eos_token_id: Annotated[list[TokenId], BeforeValidator(_as_list)] = Field(
        default_factory=list, max_length=1000
    )
    pad_token_id: TokenId | None = None
    max_denoising_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    sampler_config: _SamplerConfig | None = None
    t_min: Annotated[float, Field(ge=0, le=100)] | None = None
    t_max: Annotated[float, Field(ge=0.01, le=100)] | None = None
    stability_threshold: Annotated[int, Field(ge=0, le=1000)] | None = None
    confidence_threshold: Positive | None = None

    @model_validator(mode="after")
    def _is_of_one_piece(self) -> GenerationSettings:
        if self.t_min is not None and self.t_max is not None:
            rule = f"t_min must be below t_max, and they are {self.t_min} and {self.t_max}"
            refuse_unless(self.t_min < self.t_max, rule)
        return self


def read_config(folder: Path) -> ConfigFile:
    """A folder's config.json. Refuses what is no DiffusionGemma, saying what it is.

    Raises `CheckpointError` and `FileAccessError`.
    """
    file = folder / CONFIG_FILE
    content = read_json(file)
    model_type = content.get("model_type")
    if model_type != MODEL_TYPE:
        raise CheckpointError(
            f"{quoted(folder)} holds a model of type {quoted(repr(model_type))}, and this plugin runs "
            f"{MODEL_TYPE!r} only."
        )
    return check_document(file, ConfigFile, content)


def read_generation_settings(folder: Path, vocab_size: int) -> GenerationSettings:
    """A folder's generation_config.json, for a network of that vocabulary.

    Raises `CheckpointError` and `FileAccessError`.
    """
    file = folder / GENERATION_FILE
    settings = read_document(file, GenerationSettings)
    if not settings.eos_token_id:
        raise CheckpointError(
            f"{quoted(folder)} names no end-of-sequence tokens, so a reply would never end. Its {GENERATION_FILE} "
            "must have eos_token_id: take the file from where the model comes from."
        )
    for token_id in [*settings.eos_token_id, settings.pad_token_id or 0]:
        if token_id >= vocab_size:
            raise CheckpointError(
                f"{quoted(file)} names a token {token_id}, and the network of {quoted(folder / CONFIG_FILE)} has "
                f"{vocab_size:,}: they are not of one checkpoint. Take both files from where the model comes from."
            )
    return settings
