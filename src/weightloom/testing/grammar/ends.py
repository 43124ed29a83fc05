"""Grammar of a base's further inputs and its outputs. See `weightloom.testing.grammar`."""

INPUTS = """
# a second input often
sign| y
args| torch.randn(T, *ROWS, W)
h = h <<+|*>> y

# one of another size
sign| y
args| torch.randn(T, 2, W)
h = h + y.mean(0)

# a number per task
sign| s
args| torch.randn(T)
h = h * s

# one row per task
sign| r
args| torch.randn(T, W)
h = h + r

# numbers of words
sign| ids
args| torch.randint(3, (T, <<B|B|2>>))
init| self.words = nn.Embedding(3, W)
h = h + self.words(ids).mean(0)

# a pair
sign| state
args| (torch.randn(T, *ROWS, W), torch.randn(T, W))
h = torch.tanh(h + state[0]) * state[1]

# a pair by name often
sign| state=None
kwargs| "state": (torch.randn(T, *ROWS, W), <<torch.randn(T, *ROWS, W)|None>>)
a, b = state
h = torch.tanh(h + a) if b is None else torch.tanh(h + a) * b

# a dict
sign| batch
args| {"y": torch.randn(T, *ROWS, W), "inner": [torch.randn(T, W), "name", 2]}
h = h * batch["inner"][2] + batch["y"] - batch["inner"][0]

# a dataclass
top| @dataclass
top| class Batch:
top|     y: torch.Tensor
top|     n: int = 2
sign| batch
args| Batch(torch.randn(T, *ROWS, W))
h = h * batch.n + batch.y

# a dataclass by name
top| @dataclass
top| class Batch:
top|     y: torch.Tensor
top|     n: int = 2
sign| *, batch
kwargs| "batch": Batch(torch.randn(T, *ROWS, W))
h = h * batch.n + batch.y

# a named tuple
top| class Pair(NamedTuple):
top|     y: torch.Tensor
top|     z: torch.Tensor
sign| pair
args| Pair(torch.randn(T, *ROWS, W), torch.randn(T, W))
h = h + pair.y * pair.z

# a tensor by name often
sign| *, y=None
kwargs| "y": torch.randn(T, *ROWS, W)
h = h if y is None else h + y

# a list of tensors by name
sign| *, ys=()
kwargs| "ys": [torch.randn(T, *ROWS, W), torch.randn(T, *ROWS, W)]
for y in ys:
    h = h * y

# constants by name often
sign| *, power=1, name="a", flag=False, none=0
kwargs| "power": <<2|3>>, "name": "b", "flag": True, "none": None
h = torch.tanh(h) ** power if flag and name == "b" and none is None else h

# a mask
sign| *, mask
kwargs| "mask": torch.rand(T, *ROWS, W) > 0.5
h = torch.where(mask, h, <<0.0|h.mean(0)|-h>>)

# a mask for everybody rare
sign| *, mask
kwargs| "mask": torch.rand(W) > 0.5
share| mask
h = torch.where(mask, h, 0.0)
"""
"""Inputs of ``forward`` in addition to ``x``."""

OUTPUTS = """
# tensor often
h

# tensor again often
h

# pair
(h, <<h.mean()|x|h.sum(0)|h * 2|h.argmax(-1)|self.one.weight.norm()|self.one.bias|None|"name"|3|\
h.shape[0]|h.shape>>)

# list
[h, [h * 2, {"x": x}]]

# dict
{"h": h, <<"n"|3>>: <<len(h)|h.mean(-1)|(h, h)|h > 0.1234>>}

# ordered
collections.OrderedDict(h=h, other=h.tanh())

# dataclass
top| @dataclass
top| class Out:
top|     h: torch.Tensor
top|     rest: object = None
Out(h<<|, (h * 2, None)|, rest={"s": h.sum()}|, Out(h)>>)

# frozen dataclass
top| @dataclass(frozen=True)
top| class Out:
top|     h: torch.Tensor
top|     name: str = "a"
Out(h)

# named tuple
top| class Out(NamedTuple):
top|     h: torch.Tensor
top|     rest: object = None
Out(h<<|, h.mean(0)|, 2>>)

# plain object rare
types.SimpleNamespace(h=h, n=2)

# scalar
h.<<sum|mean|square().mean|logsumexp((0, -1)).sum>>()

# without rows
<<h.mean(0)|h[0]|h.sum(0, keepdim=True)|h.flatten()|h.transpose(0, -1)|h.mean((0, -1))>>

# without the last axis
<<h.mean(-1)|h[..., 0]|h.amax(-1)|h.norm(dim=-1)>>

# integers
<<h.argmax(-1)|h.argsort(-1)|h.argmax()|(h > 0.1234)|(h > 0.1234).sum(0)|torch.tensor(len(h))>>

# of the weights alone
<<self.one.weight.norm()|self.one.weight|{"w": self.one.weight.sum(0), "h": h}|\
torch.linalg.norm(self.one.weight)>>

# more rows
<<torch.cat([h, h])|h[:1]|h[::2]|h[None]|torch.stack([h, h * 2])|h.unbind()>>

# a number of python rare
<<(h, float(len(h)))|(h, h.sum().item())|(h, h.mean(0).tolist())|len(h)>>

# the input
<<x|(x, h)|(h, h)|(h.detach(), h)>>
"""
"""Return values of ``forward``."""
