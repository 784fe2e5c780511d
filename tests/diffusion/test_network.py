"""The same logits as transformers' class: every mode, mask, chunk and dtype."""

from __future__ import annotations

import functools
import itertools
import statistics
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.diffusion import kv_cache, packed
from llm_diffusiongemma.diffusion.experts import Experts
from llm_diffusiongemma.diffusion.kv_cache import KVCache
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.placement import LayerHome
from llm_diffusiongemma.diffusion.sampler import EntropyBoundSampler, GeneratorRandomness, SamplerSettings

from . import small_network
from .operators import Operators
from .pretended import PretendedDevices
from .reference import Reference
from .taped import WAITING
from .tiny_models import FULL, SLIDING, network_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WINDOW, CANVAS, VOCAB = 16, 16, 96
LAYERS = (SLIDING, SLIDING, FULL, SLIDING, FULL)
# The real network's asymmetry: on full layers heads of twice the size, one key head for eight queries.
TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 40,
    "moe_intermediate_size": 24,
    "num_experts": 5,
    "top_k_experts": 2,
    "num_hidden_layers": len(LAYERS),
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "sliding_window": WINDOW,
    "max_position_embeddings": 512,
    "layer_types": list(LAYERS),
    "use_bidirectional_attention": "vision",
}
GLOBAL = {"global_head_dim": 16, "num_global_key_value_heads": 1}
SPELLINGS: dict[str, dict[str, Any]] = {
    "global sizes": GLOBAL,
    "global head_dim alone": {"global_head_dim": 16},
    "each layer": {
        "per_layer_config": {
            f"{layer:02}": {"head_dim": 16, "num_key_value_heads": 1}
            for layer, kind in enumerate(LAYERS)
            if kind == FULL
        }
    },
    "nothing of a layer": {"per_layer_config": {}, **GLOBAL},
    "nothing at all": {},
}


@pytest.fixture(autouse=True)
def _little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the KV cache of a short context has to grow and forget."""
    monkeypatch.setattr(kv_cache, "PIECE", 8)
    monkeypatch.setattr(kv_cache, "SLIDING_PIECE", 4)


@torch.no_grad()
def random_model(
    dtype: torch.dtype = torch.float32, **text: object
) -> tuple[DiffusionGemmaForBlockDiffusion, dict[str, Any]]:
    """A model whose every weight differs from every other, and the config it was made from."""
    config = {
        "text_config": TEXT | text,
        "vision_config": {"model_type": "gemma4_vision", "hidden_size": 8, "num_hidden_layers": 1},
        "canvas_length": CANVAS,
        "image_token_id": 6,
        "boi_token_id": 7,
        "eoi_token_id": 8,
    }
    model = DiffusionGemmaForBlockDiffusion(DiffusionGemmaConfig(**config)).eval()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if "vision" not in name:
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim > 1:
                tensor.copy_(noise * tensor.shape[-1] ** -0.5)
            else:  # of norms, and scales: a network that reacts to the last bit of a sum says nothing
                tensor.copy_((0.4 if "post_" in name or "_norm" in name else 1) * (1 + 0.2 * noise))
    return model.to(dtype), config


@functools.cache
def asymmetric() -> tuple[DiffusionGemmaForBlockDiffusion, Network]:
    """For all the tests that don't change it."""
    model, config = random_model(**GLOBAL)
    return model, network_of(model, config)


@functools.cache
def embedded(dtype: torch.dtype) -> tuple[DiffusionGemmaForBlockDiffusion, Network]:
    model = DiffusionGemmaForBlockDiffusion.from_pretrained(
        EMBEDDED_CHECKPOINT, dtype=dtype, local_files_only=True
    ).eval()
    return model, network_of(model)


class Conversation:
    """One with ours: what `Reference` is with transformers'."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._cache = KVCache(network.config, network.dtype, network.device)

    def encode(self, embeddings: torch.Tensor, spans: Sequence[range] = ()) -> None:
        self._network.encode(embeddings, self._cache, spans)

    def denoise(self, canvas: torch.Tensor, self_conditioning_logits: torch.Tensor | None) -> torch.Tensor:
        network, everything = self._network, slice(0, self._network.size)
        soft = self_conditioning_logits
        if soft is not None:
            soft = network.mix(soft.softmax(-1).to(network.product_dtype), everything).float()
        logits = network.logits(network.denoise(canvas, soft, self._cache), everything).float()
        softcap = network.config.final_logit_softcapping
        return logits if softcap is None else (logits / softcap).tanh() * softcap


def tokens(length: int, vocab_size: int = VOCAB, seed: int = 0) -> torch.Tensor:
    return torch.randint(9, vocab_size, (length,), generator=torch.Generator().manual_seed(seed))


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@torch.no_grad()
def pairs(
    model: DiffusionGemmaForBlockDiffusion,
    network: Network,
    chunks: Sequence[int],
    spans: Sequence[range] = (),
    steps: int = 2,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Our logits and theirs, of the steps of a canvas behind each chunk. Each is conditioned by its own."""
    ours, theirs = Conversation(network), Reference(model)
    vocab_size, canvas_length = network.size, network.config.canvas_length
    prompt = tokens(sum(chunks), vocab_size)
    soft_tokens = torch.randn(sum(chunks), network.hidden_size, generator=torch.Generator().manual_seed(1))
    for i, (start, stop) in enumerate(itertools.pairwise(itertools.accumulate(chunks, initial=0))):
        embeddings = network.embed(prompt[start:stop])
        assert torch.equal(embeddings, theirs.embed(prompt[start:stop]))
        here = [span for span in spans if start <= span.start < stop]
        for span in here:
            embeddings[span.start - start : span.stop - start] = soft_tokens[span.start : span.stop]
        ours.encode(embeddings, here)
        theirs.encode(embeddings, here)
        canvas = tokens(canvas_length, vocab_size, seed=2 + i)
        conditioning: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
        for temperature in torch.linspace(0.8, 0.4, steps).tolist():
            mine, other = ours.denoise(canvas, conditioning[0]), theirs.denoise(canvas, conditioning[1])
            yield mine, other
            conditioning = (mine / temperature, other / temperature)
            canvas = torch.where(torch.arange(canvas_length) % 3 == 0, other.argmax(-1), canvas)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Some 1e-6 is what comes of another order of sums in fp32."""
    assert difference(ours, theirs) <= 1e-5
    best, second = theirs.topk(2).values.T
    sure = best - second > 1e-3
    assert sure.float().mean() > 0.9
    assert torch.equal(ours.argmax(-1)[sure], theirs.argmax(-1)[sure])


CHUNKS = [
    (1,),
    (5,),
    (WINDOW,),
    (WINDOW - 1, 1, 1),
    (WINDOW + 1, 1),
    (5 * WINDOW,),
    (WINDOW - 3, *(1,) * 6),
    (3, WINDOW, WINDOW - 1, WINDOW + 1, 2),
    (2 * WINDOW + 3, 1, 2 * WINDOW),
]


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_logits_behind_chunks_of_every_kind(chunks: Sequence[int]) -> None:
    for ours, theirs in pairs(*asymmetric(), chunks):
        assert_same(ours, theirs)


@pytest.mark.parametrize("text", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_logits_with_the_sizes_of_a_layer_in_every_spelling(text: dict[str, Any]) -> None:
    model, config = random_model(**text)
    for ours, theirs in pairs(model, network_of(model, config), (WINDOW + 3, WINDOW)):
        assert_same(ours, theirs)


@pytest.mark.parametrize(
    "text",
    [
        {"layer_types": [FULL] * len(LAYERS)},
        {"sliding_window": 2},
        {"final_logit_softcapping": 2.0},
        {"rms_norm_eps": 0.1},
        {"num_experts": 1, "top_k_experts": 1},
        {"top_k_experts": 5},
        {"num_attention_heads": 4},
        {
            "rope_parameters": {
                SLIDING: {"rope_type": "proportional", "rope_theta": 20.0, "partial_rotary_factor": 0.8},
                FULL: {"rope_type": "default", "rope_theta": 300.0},
            }
        },
    ],
    ids=str,
)
def test_logits_of_other_networks(text: dict[str, Any]) -> None:
    model, config = random_model(**GLOBAL, **text)
    for ours, theirs in pairs(model, network_of(model, config), (3, WINDOW + 3, WINDOW)):
        assert_same(ours, theirs)


IMAGES = {
    "in the first chunk": ((30,), [range(2, 9)]),
    "two in a chunk": ((7, 40), [range(10, 22), range(25, 31)]),
    "in two chunks": ((20, 30), [range(1, 19), range(22, 30)]),
    "longer than the window": ((5, 3 * WINDOW), [range(9, 10 + 2 * WINDOW)]),
    "a whole chunk far behind": ((3 * WINDOW, 10, 5), [range(3 * WINDOW, 3 * WINDOW + 10)]),
}


@pytest.mark.parametrize(("chunks", "spans"), IMAGES.values(), ids=IMAGES.keys())
def test_logits_behind_images(chunks: Sequence[int], spans: list[range]) -> None:
    for ours, theirs in pairs(*asymmetric(), chunks, spans):
        assert_same(ours, theirs)


def test_what_attention_returns_may_lie_otherwise_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As some kernels of cards have it, head by head within each row: a view was refused there."""
    attention = F.scaled_dot_product_attention

    def attend(*args: Any, **kwargs: Any) -> torch.Tensor:
        return attention(*args, **kwargs).transpose(1, 2).contiguous().transpose(1, 2)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    for ours, theirs in pairs(*asymmetric(), (5, 2 * WINDOW)):
        assert_same(ours, theirs)


def test_an_image_is_read_causally_by_a_network_that_says_so() -> None:
    model, config = random_model(**GLOBAL, use_bidirectional_attention=None)
    for ours, theirs in pairs(model, network_of(model, config), (7, 40), [range(10, 22)]):
        assert_same(ours, theirs)


def test_logits_of_the_embedded_checkpoint() -> None:
    for ours, theirs in pairs(*embedded(torch.float32), (5, 256, 700)):
        assert difference(ours, theirs) <= 1e-5
        assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


@functools.cache
def exact_logits() -> list[torch.Tensor]:
    return [theirs for _, theirs in pairs(*embedded(torch.float32), (300, 20), steps=2)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_short_floats_are_as_near_to_fp32_as_those_of_transformers(dtype: torch.dtype) -> None:
    """On the embedded checkpoint: of a network that has learned nothing, every rounding makes another one."""
    errors = [
        (difference(ours, right), difference(theirs, right))
        for (ours, theirs), right in zip(pairs(*embedded(dtype), (300, 20), steps=2), exact_logits(), strict=True)
    ]
    ours, theirs = (statistics.median(each) for each in zip(*errors, strict=True))
    assert 0 < ours <= 1.2 * theirs


def test_every_weight_matters() -> None:
    """None that is read from a checkpoint is left out, but for what an encoder's last layer is spared."""
    network = network_of(random_model(**GLOBAL, layer_types=[SLIDING, FULL], num_hidden_layers=2)[0])
    prompt, canvas = tokens(WINDOW), tokens(CANVAS, seed=1)
    conditioning = torch.randn(CANVAS, VOCAB, generator=torch.Generator().manual_seed(1))

    def logits() -> torch.Tensor:
        conversation = Conversation(network)
        conversation.encode(network.embed(prompt))
        return conversation.denoise(canvas, conditioning)

    before = logits()
    unused = []
    for name, tensor in network.tensors():
        kept = tensor.clone()
        tensor += torch.randn(tensor.shape, generator=torch.Generator().manual_seed(2))
        if torch.equal(logits(), before):
            unused.append(name)
        tensor.copy_(kept)
    assert unused == ["model.encoder.language_model.layers.1.layer_scalar"]
    assert torch.equal(logits(), before)


# --- on several devices -------------------------------------------------------------------------------------

FIRST, SECOND = "xpu:0", "xpu:1"
TWO = [LayerHome(device, "device") for device in (FIRST, FIRST, SECOND, SECOND, SECOND)]
LAST_ALONE = [LayerHome(device, "device") for device in (FIRST, FIRST, FIRST, FIRST, SECOND)]
STREAMED = [
    LayerHome(FIRST, "host"),
    LayerHome(FIRST, "device"),
    *(LayerHome(SECOND, experts) for experts in ("files", "host", "files")),
]


@pytest.mark.parametrize(
    ("homes", "formats"),
    [(TWO, "bf16"), (LAST_ALONE, "compressed-tensors"), (STREAMED, "fp8"), (STREAMED, "modelopt")],
    ids=["two", "the last layer alone", "streamed fp8", "streamed nvfp4"],
)
def test_on_two_devices_the_same_bits(homes: list[LayerHome], formats: str) -> None:
    """Nothing is computed from tensors of both, and activations cross once on the way and once back."""
    resident = small_network.resident_network(small_network.FORMATS[formats])
    with PretendedDevices() as devices:
        network, _ = small_network.network_at(homes, resident)
        results = small_network.reply(network, chunks=(5, 20), steps=2)
        assert {result.device for result in results} == {torch.device(FIRST)}
    small_network.assert_same(results, small_network.reply(resident, chunks=(5, 20), steps=2))
    there, back = [(FIRST, SECOND)], [(SECOND, FIRST)]
    crossings = [each for each in devices.crossings if "cpu" not in each]
    assert crossings == (there * 2 + (there + back) * 2) + (there + (there + back) * 2)


# --- what a denoising step costs a device ------------------------------------------------------------------


@torch.no_grad()
def operators_of_a_step(layers: list[str], monkeypatch: pytest.MonkeyPatch, constraint: Any = None) -> list[str]:
    """Of network and sampler, in bf16, with self-conditioning, as if on a card; up to what a constraint does."""
    monkeypatch.setattr(packed, "is_multiplied_fast", lambda dtype: True)
    model, config = random_model(torch.bfloat16, **GLOBAL, layer_types=layers, num_hidden_layers=len(layers))
    network = network_of(model, config)
    for layer in network._layers:
        layer.experts._is_grouped = True
    cache = KVCache(network.config, network.dtype, network.device)
    network.encode(network.embed(tokens(3 * WINDOW)), cache)
    sampler = sampler_of(network)
    sampler.start_canvas(constraint)
    sampler.measure(network.denoise(sampler.canvas, None, cache))
    with Operators() as operators, monkeypatch.context() as patch:
        # One kernel on CUDA; the CPU has only its parts.
        patch.setattr(F, "rms_norm", operators.counted_as_one(F.rms_norm))
        patch.setattr(F, "scaled_dot_product_attention", operators.counted_as_one(F.scaled_dot_product_attention))
        sampler.measure(network.denoise(sampler.canvas, sampler.soft_embeddings, cache))
    return operators.names


def sampler_of(network: Network) -> EntropyBoundSampler:
    return EntropyBoundSampler(
        SamplerSettings(5, 0.1, 0.4, 0.8, 0.005, 1),
        vocabulary=network,
        canvas_length=CANVAS,
        device=network.device,
        softcap=30.0,
        randomness=GeneratorRandomness(torch.Generator().manual_seed(0)),
        candidates=3,
    )


@pytest.mark.parametrize("kind", [SLIDING, FULL])
def test_a_step_takes_few_operators_a_layer(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a kernel of some 3 µs, 30 times a step."""
    monkeypatch.setattr(Experts, "__call__", lambda _, x, chosen, weights: x[:, None])
    few, more = (operators_of_a_step([*[kind] * n, FULL], monkeypatch) for n in (1, 2))
    assert 30 < len(more) - len(few) <= 40


@pytest.mark.parametrize("constraint", [None, "some"])
def test_a_step_waits_for_nothing(monkeypatch: pytest.MonkeyPatch, constraint: str | None) -> None:
    """And no shape depends on data: a step can be captured."""
    names = operators_of_a_step([*LAYERS], monkeypatch, constraint)
    assert "_grouped_mm" in names
    assert ("cumsum" in names) == (constraint is None)  # positions are accepted
    assert not [name for name in names if name.startswith(WAITING)]


@torch.no_grad()
def test_a_step_can_be_taken_where_no_value_can_be_read() -> None:
    meta = torch.device("meta")
    network = Network(asymmetric()[1].config, torch.bfloat16, meta)
    for layer in network._layers:
        layer.experts._is_grouped = True
    cache = KVCache(network.config, network.dtype, meta)
    network.encode(network.embed(tokens(3 * WINDOW).to(meta)), cache)
    sampler = sampler_of(network)
    sampler.start_canvas()
    for soft_embeddings in (None, sampler.soft_embeddings):
        sampler.measure(network.denoise(sampler.canvas, soft_embeddings, cache))
