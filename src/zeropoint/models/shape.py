"""What most families' config.json says in the same fields: sizes, activation function, attention windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from zeropoint.models.config import Config
from zeropoint.models.spec import Activation

ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "relu": Activation.RELU,
}


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a decoder: layer, head, vocabulary and position counts; channels of its hidden and MLP layers."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    max_positions: int

    @property
    def queries(self) -> int:
        """Return the channels of all query heads together."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Return the channels of all key heads together; the value heads have as many."""
        return self.kv_heads * self.head_dim


#: Upper limits, far above any real model: a damaged config must not produce a spec with millions of layers.
MAX_LAYERS = 4096
MAX_HEAD_DIM = 4096


def read_shape(
    config: Config,
    *,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    intermediate: str | None = None,
    grouped: bool = True,
    own_head_dim: bool = True,
) -> Shape:
    """Read the sizes of a model from the config fields that most families use.

    `kv_heads` and `head_dim` are the family's defaults where the config has no `num_key_value_heads` or `head_dim`;
    without a family default these are `num_attention_heads` and `hidden_size // num_attention_heads`.
    `intermediate` is the family's name for `intermediate_size`. `grouped=False`: no grouped-query attention, and
    `num_key_value_heads` is not read. `own_head_dim=False`: `head_dim` must be `hidden_size // num_attention_heads`.
    Raises `UnsupportedError` if a field is missing, refused or out of range.
    """
    heads, hidden = config.size("num_attention_heads"), config.size("hidden_size")
    if not own_head_dim:
        config.only("head_dim", hidden // heads)
    shape = Shape(
        layers=config.size("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=config.size("num_key_value_heads", kv_heads or heads) if grouped else heads,
        head_dim=config.size("head_dim", head_dim or hidden // heads or None),
        intermediate=config.size(intermediate or "intermediate_size"),
        vocab=config.size("vocab_size"),
        max_positions=config.size("max_position_embeddings"),
    )
    return check_shape(config, shape)


def check_shape(config: Config, shape: Shape) -> Shape:
    """Return `shape` if its sizes are possible. Raises `UnsupportedError` naming the config field if not."""
    if shape.layers > MAX_LAYERS:
        config.refuse("num_hidden_layers", shape.layers)
    if shape.head_dim > MAX_HEAD_DIM:
        config.refuse("head_dim", shape.head_dim)
    if shape.heads % shape.kv_heads:
        config.refuse("num_key_value_heads", shape.kv_heads)
    return shape


def read_activation(config: Config, name: str = "hidden_act", default: str = "silu") -> Activation:
    """Return the MLP's activation function from the config field `name`.

    Raises `UnsupportedError` if the native engine lacks the function."""
    value = config.get(name, default)
    if not isinstance(value, str) or value not in ACTIVATIONS:
        config.refuse(name, value)
    return ACTIVATIONS[value]


def read_layer_types(config: Config, shape: Shape, default: Callable[[int], bool]) -> tuple[bool, ...]:
    """Return one boolean per layer: True for sliding-window attention, False for full attention.

    Without `layer_types` in the config, layer i is `default(i)`."""
    layer_types = config.get("layer_types")
    if layer_types is None:
        return tuple(default(layer) for layer in range(shape.layers))
    names = ("full_attention", "sliding_attention")
    if (
        not isinstance(layer_types, list)
        or len(layer_types) != shape.layers
        or any(kind not in names for kind in layer_types)
    ):
        config.refuse("layer_types", layer_types)
    return tuple(kind == "sliding_attention" for kind in layer_types)


def read_window(config: Config, *, default: int | None) -> int:
    """Return the size of the sliding attention window in positions; 0 means no window.

    Without a `sliding_window` field the window is `default` (None: no window); the value null means no window."""
    if not config.has("sliding_window"):
        return default or 0
    return 0 if config.get("sliding_window") is None else config.size("sliding_window")


def read_qwen_windows(config: Config, shape: Shape) -> tuple[int, ...]:
    """Return the attention window of each layer of a Qwen model, 0 for full attention.

    `use_sliding_window` false: no layer has a window. True: `layer_types` lists the layers with a window; without that
    list, the layers from number `max_window_layers` on have one.
    """
    first_layer = config.get("max_window_layers", 28)
    if type(first_layer) is not int or first_layer < 0:
        config.refuse("max_window_layers", first_layer)
    enabled = config.flag("use_sliding_window", False)
    window = read_window(config, default=4096)
    window = window if enabled else 0
    slides = read_layer_types(config, shape, lambda layer: window > 0 and layer >= first_layer)
    if any(slides) and not window:
        config.refuse("layer_types", "sliding_attention")
    return tuple(window if each else 0 for each in slides)
