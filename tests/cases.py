"""The bank: everything that keeps the same promises. It finds the library's forms and hypernetworks by itself.

Everything is float64, and `build` gives the same network every time it is called after the same
seed.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from inspect import Parameter, isabstract, signature

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

import weightloom.hypernets
from weightloom.conditions import DeepSets, GridEncoder, SupportAttention
from weightloom.forms import FiLM, LowRank, Template
from weightloom.forms.form import KINDS
from weightloom.hypernets import (
    AdapterHyperNetwork,
    ChunkedHyperNetwork,
    EquivariantHyperNetwork,
    GraphHyperNetwork,
    HeadHyperNetwork,
    HyperNetwork,
    MLPHyperNetwork,
    StaticHyperNetwork,
    TransformerHyperNetwork,
)
from weightloom.networks import ConvNet, mlp
from weightloom.networks.keras import KerasBase
from weightloom.networks.recurrent import GRU, LSTM
from weightloom.params import ParamSpec

TASKS, BATCH = 3, 4
LOOPS_INSIDE = pytest.mark.filterwarnings(
    "ignore:There is a performance drop because we have not yet implemented"
)
"""`vmap` runs one of its operations task after task."""
KERAS_SAVES = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
"""Keras 3.15 with numpy 2, when a model is pickled."""


@dataclass(frozen=True)
class Base:
    """A base network, the inputs it takes, and which of its parameters are generated."""

    build: Callable[[], nn.Module]
    event: tuple[int, ...] = (5,)
    generate: str | tuple[str, ...] = "*"
    symbols: int = 0
    """Inputs are integers below this; 0 means that they are real numbers."""
    inputs: int = 1
    train: bool = True
    draw: Callable[[tuple[int, int]], tuple[torch.Tensor, ...]] | None = None
    """(tasks, batch) to the inputs, where ``event``, ``symbols`` and ``inputs`` do not say what
    they are."""
    extra: str = ""
    """The optional package that it needs; without it the case is skipped."""

    def net(self):
        torch.manual_seed(0)
        net = self.build().double().train(self.train)
        for module in net.modules():  # statistics that differ from those of a fresh network
            if isinstance(module, _NormBase) and module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
        return net

    def params(self, tasks=TASKS):
        shapes = ParamSpec.of(self.net(), self.generate).shapes
        return {
            name: torch.randn(tasks, *shape, dtype=torch.float64) for name, shape in shapes.items()
        }

    def x(self, tasks=TASKS):
        if self.draw:
            return self.draw((tasks, BATCH))
        shape = (tasks, BATCH, *self.event)
        one = (
            (lambda: torch.randint(self.symbols, shape))
            if self.symbols
            else (lambda: torch.randn(shape).double())
        )
        return tuple(one() for _ in range(self.inputs))


class Tied(nn.Module):
    """Two layers of one weight: it goes by ``first.weight``."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


class TiedEmbedding(nn.Module):
    """What reads the symbols also scores them: one weight, by the name of ``embedding.weight``."""

    def __init__(self, **options):
        super().__init__()
        self.embedding, self.out = nn.Embedding(7, 4, **options), nn.Linear(4, 7)
        self.out.weight = self.embedding.weight

    def forward(self, symbols):
        return self.out(torch.tanh(self.embedding(symbols)))


class TokenAndPositions(nn.Module):
    """As a vision transformer begins: a token is put before every sequence, and positions are added."""

    def __init__(self):
        super().__init__()
        self.token, self.positions = (
            nn.Parameter(torch.randn(1, 1, 4)),
            nn.Parameter(torch.randn(1, 4, 4)),
        )
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        return self.out(torch.tanh(tokens + self.positions))[:, 0]


class Block(nn.Module):
    """The residual block of a ResNet; it halves the image where it widens."""

    def __init__(self, channels, wider, **options):
        super().__init__()
        stride = 1 if channels == wider else 2
        self.conv1 = nn.Conv2d(channels, wider, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(wider, **options)
        self.conv2 = nn.Conv2d(wider, wider, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(wider, **options)
        self.shortcut = (
            nn.Identity() if stride == 1 else nn.Conv2d(channels, wider, 1, stride, bias=False)
        )

    def forward(self, x):
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class Recurrent(nn.Module):
    """Reads a sequence and keeps the last output, beside the final state."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        outputs, state = self.layer(x)
        return outputs[:, -1], state


class Branching(nn.Module):
    """Looks at the values of its input, which `vmap` hides from it."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 5)

    def forward(self, x):
        return self.linear(x) if x.sum() > 0 else self.linear(-x)


class TwoInputsTwoOutputs(nn.Module):
    """Takes two inputs, gives a dict, and has a parameter that is one number."""

    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(5, 2), nn.Parameter(torch.ones(()))

    def forward(self, x, z):
        mixed = self.layer(x * z)
        return {"mixed": mixed * self.scale, "both": (x + z, mixed)}


def conv():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def conv1d():
    return nn.Sequential(
        nn.Conv1d(2, 3, 3, stride=2), nn.Tanh(), nn.ConvTranspose1d(3, 2, 3), nn.Flatten()
    )


def layer_norm():
    return nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 2))


def batch_norm(**options):
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6, **options), nn.ReLU(), nn.Linear(6, 2))


def instance_norm():
    return nn.Sequential(
        nn.Conv1d(2, 4, 3),
        nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
        nn.Flatten(),
    )


def dropout():
    return nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), nn.Linear(6, 2))


def embedding(**options):
    return nn.Sequential(nn.Embedding(7, 4, **options), nn.Flatten(), nn.Linear(12, 2))


def transformer():
    return nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)


def transformer_encoder():
    return nn.TransformerEncoder(transformer(), 2, enable_nested_tensor=False)


def resnet(**options):
    stem = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4, **options), nn.ReLU()
    blocks = Block(4, 4, **options), Block(4, 6, **options)
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))


def conv_transpose2d():
    return nn.Sequential(
        nn.Linear(5, 18), nn.Unflatten(1, (2, 3, 3)), nn.ConvTranspose2d(2, 1, 3, stride=2)
    )


def conv2d_grouped():
    return nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=4), nn.PReLU(4), nn.Conv2d(4, 6, 1, groups=2), nn.Flatten()
    )


def conv3d():
    return nn.Sequential(nn.Conv3d(2, 3, 2), nn.PReLU(), nn.Flatten(), nn.Linear(12, 2))


TINY = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}


def bert(attention="eager"):
    from transformers import BertConfig, BertModel

    sizes = {"vocab_size": 11, "max_position_embeddings": 6, **TINY}
    return BertModel(
        BertConfig(pad_token_id=0, attn_implementation=attention, **sizes), add_pooling_layer=False
    )


def gpt2(attention="eager"):
    """Its output layer is tied to its embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 11, "n_positions": 6, "n_embd": 8, "n_layer": 2, "n_head": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(
        GPT2Config(use_cache=False, attn_implementation=attention, **sizes, **ends)
    )


def vit(attention="eager"):
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        image_size=8, patch_size=4, num_channels=1, attn_implementation=attention, **TINY
    )
    return ViTModel(config, add_pooling_layer=False)


def symbols_and_2d_mask(tasks_and_batch):
    """The second half of a task's sentences is two symbols short."""
    mask = torch.ones(*tasks_and_batch, 5, dtype=torch.long)
    mask[:, tasks_and_batch[1] // 2 :, 3:] = 0
    return torch.randint(11, mask.shape), mask


def symbols_and_4d_mask(tasks_and_batch):
    """The same mask, ready to be added to the scores: (tasks, batch, heads, queries, keys)."""
    symbols, mask = symbols_and_2d_mask(tasks_and_batch)
    return symbols, -1e4 * (1.0 - mask.double())[..., None, None, :].expand(
        *tasks_and_batch, 1, 5, 5
    )


def keras_model():
    """Of layers that stay in float64: Keras on torch multiplies the matrices of `Dense` in float32."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    layers = [
        keras.layers.EinsumDense(
            "bi,io->bo", 6, bias_axes="o", activation="tanh", dtype="float64", name="body"
        ),
        keras.layers.BatchNormalization(dtype="float64", name="norm"),
        keras.layers.EinsumDense("bi,io->bo", 2, dtype="float64", name="head"),
    ]
    base = KerasBase(keras.Sequential([keras.Input((5,), dtype="float64"), *layers]))
    base.get_buffer("norm/moving_mean").normal_()
    base.get_buffer("norm/moving_variance").uniform_(0.5, 2.0)
    return base


def bank(**cases):
    """Name each case after what is special about it."""
    return [
        pytest.param(case, id=name, marks=_marks(name, getattr(case, "extra", "")))
        for name, case in cases.items()
    ]


def _marks(name, extra):
    warns = dict.fromkeys(("bilinear", "embedding_bag"), LOOPS_INSIDE) | {"keras": KERAS_SAVES}
    missing = bool(extra) and find_spec(extra) is None
    skip = [pytest.mark.skipif(missing, reason=f"{extra} is not installed")] if extra else []
    return [*skip, *(mark for word, mark in warns.items() if word in name)]


BASES = bank(
    linear_without_bias=Base(lambda: nn.Linear(5, 2, bias=False)),
    linear=Base(lambda: nn.Linear(5, 2)),
    mlp=Base(lambda: mlp([5, 6, 6, 2])),
    mlp_one_glob=Base(lambda: mlp([5, 6, 2]), generate="*.bias"),
    mlp_two_globs=Base(lambda: mlp([5, 6, 2]), generate=("0.weight", "2.*")),
    conv2d_with_group_norm=Base(conv, (2, 6, 6)),
    conv1d_there_and_back=Base(conv1d, (2, 7)),
    conv_net=Base(lambda: ConvNet(1, 8, 3, channels=4, blocks=2), (1, 8, 8)),
    conv_net_head=Base(
        lambda: ConvNet(1, 8, 3, channels=4, blocks=2), (1, 8, 8), generate="head.*"
    ),
    layer_norm=Base(layer_norm),
    layer_norm_scale=Base(layer_norm, generate="1.*"),
    embedding=Base(embedding, (3,), symbols=7),
    attention_train=Base(SelfAttention, (3, 4)),
    attention_eval=Base(SelfAttention, (3, 4), train=False),
    transformer_eval=Base(transformer, (3, 4), train=False),
    tied=Base(Tied),
    tied_weight_only=Base(Tied, generate="first.weight"),
    batch_norm_eval=Base(batch_norm, train=False),
    batch_norm_without_statistics=Base(lambda: batch_norm(track_running_stats=False)),
    instance_norm_eval=Base(instance_norm, (2, 6), train=False),
    dropout_eval=Base(dropout, train=False),
    embedding_with_padding=Base(lambda: embedding(padding_idx=2), (3,), symbols=7),
    tied_embedding_with_padding=Base(lambda: TiedEmbedding(padding_idx=2), (3,), symbols=7),
    token_and_positions=Base(TokenAndPositions, (3, 4)),
    two_inputs=Base(TwoInputsTwoOutputs, inputs=2),
    bilinear=Base(lambda: nn.Bilinear(5, 5, 2), inputs=2),
    resnet_eval=Base(resnet, (2, 5, 5), train=False),
    resnet_norms_eval=Base(resnet, (2, 5, 5), generate=("*bn*", "1.*"), train=False),
    resnet_without_statistics=Base(lambda: resnet(track_running_stats=False), (2, 5, 5)),
    conv_transpose2d=Base(conv_transpose2d),
    conv2d_grouped_with_prelu=Base(conv2d_grouped, (4, 4, 4)),
    conv3d=Base(conv3d, (2, 3, 3, 2)),
    tied_embedding=Base(TiedEmbedding, (3,), symbols=7),
    embedding_bag=Base(lambda: nn.EmbeddingBag(7, 4), (3,), symbols=7),
    lstm=Base(lambda: Recurrent(LSTM(2, 3, batch_first=True)), (4, 2)),
    gru_two_layers_both_ways=Base(
        lambda: Recurrent(GRU(2, 3, 2, batch_first=True, bidirectional=True)), (4, 2)
    ),
    transformer_encoder_train=Base(transformer_encoder, (3, 4)),
    transformer_encoder_eval=Base(transformer_encoder, (3, 4), train=False),
    bert=Base(bert, (5,), symbols=11, train=False, extra="transformers"),
    bert_sdpa=Base(lambda: bert("sdpa"), (5,), symbols=11, train=False, extra="transformers"),
    bert_4d_mask=Base(bert, train=False, draw=symbols_and_4d_mask, extra="transformers"),
    gpt2=Base(gpt2, (5,), symbols=11, train=False, extra="transformers"),
    gpt2_norms=Base(gpt2, (5,), "*ln_*", symbols=11, train=False, extra="transformers"),
    vit=Base(vit, (1, 8, 8), train=False, extra="transformers"),
    keras=Base(keras_model, train=False, extra="keras"),
)

BASES_FOR_THE_LOOP = bank(
    torch_lstm=Base(lambda: Recurrent(nn.LSTM(2, 3, batch_first=True)), (4, 2)),
    branching=Base(Branching),
    bert_2d_mask=Base(bert, train=False, draw=symbols_and_2d_mask, extra="transformers"),
)
"""What `vmap` cannot run: they keep their promises with ``engine="loop"``."""


@dataclass(frozen=True)
class Hyper:
    """A hypernetwork and a condition that it reads."""

    build: Callable[[], nn.Module]
    condition: Callable[[int], tuple[torch.Tensor, ...]]
    """The number of tasks to what the hypernetwork takes."""

    def hyper(self):
        """As it is built, with nothing moved from where its initialisation put it."""
        torch.manual_seed(0)
        return self.build().double()

    def moved(self):
        """A generic state: nothing is zero by initialisation."""
        hyper = self.hyper()
        with torch.no_grad():
            for parameter in hyper.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return hyper


def vectors(tasks):
    return (torch.randn(tasks, 4, dtype=torch.float64),)


def labelled(tasks, ways=3, shots=4, features=6):
    """Features, labels and a mask that leaves classes with unequal shots."""
    labels = torch.arange(ways).repeat_interleave(shots).repeat(tasks, 1)
    there = torch.rand(tasks, ways * shots) < 0.8
    there[:, ::shots] = True
    return torch.randn(tasks, ways * shots, features, dtype=torch.float64), labels, there


def token_vectors(tasks):
    return (torch.randn(tasks, 3, 4, dtype=torch.float64),)


def related_token_vectors(tasks):
    return torch.randn(tasks, 3, 4, dtype=torch.float64), torch.randn(
        tasks, 2, 3, 3, dtype=torch.float64
    )


def tiny_transformer(base, **options):
    return TransformerHyperNetwork(base, 4, slice_size=7, width=8, heads=2, **options)


def tiny_graph(bases, **options):
    return GraphHyperNetwork(bases, 4, hidden=8, tile=3, **options)


def tiny_adapter(base, rank=1):
    return AdapterHyperNetwork(base, 4, form=LowRank(rank), width=8, features=3)


def public_hypernetworks():
    """Every hypernetwork of the library that can be built."""
    kinds = [kind for kind in vars(weightloom.hypernets).values() if isinstance(kind, type)]
    return [kind for kind in kinds if issubclass(kind, HyperNetwork) and not isabstract(kind)]


def with_defaults(kind):
    """Of a base and the width of its condition alone."""
    return Hyper(lambda: kind(mlp([5, 6, 2]), 4), vectors)


HYPERNETWORKS = bank(
    **{
        kind.__name__: with_defaults(kind)
        for kind in public_hypernetworks()
        if kind.__name__ not in globals()
    },
    mlp=Hyper(lambda: MLPHyperNetwork(mlp([5, 6, 2]), 4), vectors),
    mlp_part=Hyper(
        lambda: MLPHyperNetwork(conv(), 4, generate=["*.bias", "1.*"], hidden=(8, 8)), vectors
    ),
    mlp_linear=Hyper(lambda: MLPHyperNetwork(Tied(), 4, hidden=()), vectors),
    mlp_scalar=Hyper(lambda: MLPHyperNetwork(TwoInputsTwoOutputs(), 4, generate="scale"), vectors),
    chunked=Hyper(lambda: ChunkedHyperNetwork(mlp([5, 6, 2]), 4, slice_size=7), vectors),
    chunked_deep_fan_in=Hyper(
        lambda: ChunkedHyperNetwork(
            conv(), 4, 7, 3, hidden=(8, 6), generate=["*.bias", "5.*"], init="hyperfan-in"
        ),
        vectors,
    ),
    chunked_magnitude_invariant=Hyper(
        lambda: ChunkedHyperNetwork(Tied(), 4, slice_size=99, init="magnitude-invariant"), vectors
    ),
    chunked_low_rank=Hyper(
        lambda: ChunkedHyperNetwork(mlp([5, 6, 4]), 4, 7, form=LowRank(2)), vectors
    ),
    transformer=Hyper(lambda: tiny_transformer(mlp([5, 6, 2])), vectors),
    transformer_of_tokens=Hyper(lambda: tiny_transformer(TwoInputsTwoOutputs()), token_vectors),
    transformer_fan_out=Hyper(lambda: tiny_transformer(conv(), init="hyperfan-out"), vectors),
    transformer_film=Hyper(lambda: tiny_transformer(conv(), form=FiLM()), vectors),
    static=Hyper(
        lambda: StaticHyperNetwork(conv(), 4, block=2, embedding_dim=3, hidden=5), vectors
    ),
    static_linear=Hyper(lambda: StaticHyperNetwork(mlp([4, 6, 2]), 4, block=2, window=()), vectors),
    graph=Hyper(lambda: tiny_graph(mlp([5, 6, 2])), vectors),
    graph_of_one_layer=Hyper(lambda: tiny_graph(nn.Linear(5, 2)), vectors),
    graph_of_two_bases=Hyper(
        lambda: tiny_graph([conv(), mlp([5, 6, 2])], generate="*weight"), vectors
    ),
    graph_template=Hyper(lambda: tiny_graph(Tied(), form=Template(2)), vectors),
    graph_low_rank=Hyper(
        lambda: tiny_graph([conv(), mlp([5, 6, 4])], form=LowRank(2), rounds=0), vectors
    ),
    graph_scalar=Hyper(lambda: tiny_graph(TwoInputsTwoOutputs()), vectors),
    mlp_of_templates=Hyper(lambda: MLPHyperNetwork(mlp([5, 6, 3]), 4, form=Template(2)), vectors),
    equivariant=Hyper(lambda: EquivariantHyperNetwork("0", 6, 4, width=8, heads=2), token_vectors),
    equivariant_assigned=Hyper(
        lambda: EquivariantHyperNetwork("", 2, 4, relations=2, width=8, heads=2, rounds=3),
        related_token_vectors,
    ),
    adapter=Hyper(lambda: tiny_adapter(mlp([5, 6, 2])), vectors),
    adapter_conv=Hyper(lambda: tiny_adapter(conv()), vectors),
    adapter_tied=Hyper(lambda: tiny_adapter(Tied(), rank=3), vectors),
    head=Hyper(HeadHyperNetwork, labelled),
)

ENCODERS = bank(
    deep_sets=DeepSets,
    attention=SupportAttention,
    grid=partial(GridEncoder, size=9, low=-3.0, high=3.0, hidden=(32,)),
)
"""Each is built with ``x_dim``, ``y_dim`` and ``condition_dim``."""


def small(kind):
    """A form of a class; each option that has no default is a count, and is 2."""
    needed = [
        option
        for option in signature(kind).parameters.values()
        if option.default is Parameter.empty
    ]
    return kind(*[2] * len(needed))


FORMS = bank(**{name: small(kind) for name, kind in KINDS.items()})
