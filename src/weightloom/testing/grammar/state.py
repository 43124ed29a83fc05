"""Grammar of state: buffers, attributes, caches, hooks, branches.

See `weightloom.testing.grammar`.
"""

STATE = """
# buffer read
init| self.register_buffer("buf_K", torch.randn(<<W|1, W>>)<<|, persistent=False>>)
h = h <<*|+>> self.buf_K

# buffer assigned state rare
init| self.register_buffer("buf_K", torch.zeros(W))
if self.training:
    self.buf_K = 0.9 * self.buf_K + 0.1 * h.detach().reshape(-1, W).mean(0)
h = h - self.buf_K

# buffer changed in place state rare
init| self.register_buffer("buf_K", torch.zeros(<<W|1>>))
if self.training:
    self.buf_K.<<mul_(0.9).add_(h.detach().mean())|add_(1)|\
copy_(h.detach().flatten()[: len(self.buf_K)])>>
h = h - self.buf_K

# buffer counted state rare
init| self.register_buffer("buf_K", torch.tensor(0))
if self.training:
    self.buf_K += 1
h = h / (1 + self.buf_K)

# last features state
init| self.last_K = None
self.last_K = <<h|h.detach()|h.mean()|(h, h.sum(0))|{"h": h}>>

# last features read state rare
init| self.last_K = None
if self.last_K is not None:
    h = h + self.last_K
self.last_K = h.detach()

# collected state
init| self.seen_K = []
self.seen_K.append(h.detach())

# calls counted state
init| self.calls_K = 0
self.calls_K += 1

# calls counted and read state rare
init| self.calls_K = 0
self.calls_K += 1
h = h / self.calls_K

# derived weight as an attribute state
self.derived_K = self.one.weight.tanh()
h = F.linear(h, self.derived_K)

# derived weight kept state rare
init| self.key_K, self.cache_K = None, None
if self.key_K != self.one.weight._version:
    self.key_K, self.cache_K = self.one.weight._version, self.one.weight.tanh()
h = h @ self.cache_K

# derived weight kept for the tensor state rare
init| self.cache_K = {}
key_K = (id(self.one.weight), self.one.weight._version)
if key_K not in self.cache_K:
    self.cache_K = {key_K: self.one.weight.tanh()}
h = h @ self.cache_K[key_K]

# mask kept by size
init| self.masks_K = {}
if len(h) not in self.masks_K:
    self.masks_K[len(h)] = torch.arange(1.0, len(h) + 1)
h = h / self.masks_K[len(h)].view(-1, *[1] * (h.ndim - 1))

# cached by size
top| @functools.lru_cache
top| def mask_K(n):
top|     return torch.linspace(1, 2, n)
h = h / mask_K(<<len(h)|W>>).sum()

# hook that changes
init| self.hooked_K = nn.Linear(W, W)
init| self.hooked_K.register_forward_hook(lambda m, i, o: <<o * 2|o - o.mean(0)|\
o + m.weight.sum()|i[0] + o>>)
h = self.hooked_K(h)

# pre-hook that changes
init| self.hooked_K = nn.Linear(W, W)
init| self.hooked_K.register_forward_pre_hook(lambda m, i: <<i[0] * 2|(i[0] + m.bias,)|\
(i[0] - i[0].mean(0),)>>)
h = self.hooked_K(h)

# hook that collects state
init| self.seen_K = []
init| self.one.register_forward_hook(lambda m, i, o: self.seen_K.append(o.detach()))
h = self.one(h)

# hook that is a method
init| self.one.register_forward_hook(self.hook_K)
method| def hook_K(self, module, inputs, output):
method|     return output * self.one.bias
h = self.one(h)

# hook for gradients
h = h * 1
if h.requires_grad:
    h.register_hook(lambda g: <<g * 2|g - g.mean(0)|g * self.one.bias.detach()>>)

# forward of its own
init| self.lin_K = nn.Linear(W, W)
init| w_K = self.one.weight
init| self.lin_K.forward = <<lambda h: F.linear(h, self.one.weight) * 2|\
functools.partial(F.linear, weight=w_K)>>
h = self.lin_K(h)

# method of its own
top| def run_K(self, h):
top|     return F.linear(h, self.weight.tanh(), self.bias)
init| self.lin_K = nn.Linear(W, W)
init| self.lin_K.forward = types.MethodType(run_K, self.lin_K)
h = self.lin_K(h)

# block
top| class Block_K(nn.Module):
top|     def __init__(self, other):
top|         super().__init__()
top|         self.inner, self.other = nn.Linear(W, W), other
top|     def forward(self, h, *, scale=1.0):
top|         return scale * torch.tanh(self.inner(h)) + self.other(h)
init| self.block_K = Block_K(self.one)
h = self.block_K(h<<|, scale=2.0|, scale=self.one.bias>>)

# block that knows its parent
top| class Child_K(nn.Module):
top|     def __init__(self, parent):
top|         super().__init__()
top|         self.inner = nn.Linear(W, W)
top|         <<self.parent = [parent]|object.__setattr__(self, "parent", [parent])|\
self.parent = (lambda: parent,)>>
top|     def forward(self, h):
top|         return self.inner(h) + (self.parent[0]() if callable(self.parent[0]) and not \
isinstance(
top|             self.parent[0], nn.Module) else self.parent[0]).one.bias
init| self.child_K = Child_K(self)
h = self.child_K(h)

# low precision
init| self.low_K = nn.Linear(W, W).float()
h = self.low_K(h.float()).<<double()|to(h.dtype)|type_as(h)>>

# other dtype for a moment
h = <<h.float().tanh().double()|F.linear(h.float(), self.one.weight.float()).double()|\
h.to(torch.float32).to(h)>>

# complex
h = <<(h + 1j * self.one(h)).abs().add(1)|torch.fft.rfft(h, dim=0).abs().sum(0) + h|\
torch.view_as_real(h * 1j)[..., 1]>>

# branch on sizes
if <<len(h) > 2|h.shape[-1] == len(h)|h.shape[0] % 2|h.ndim == 2|h.numel() > 6|len(h) == 1>>:
    BODY
else:
    BODY

# branch on the mode
if <<self.training|not self.training|torch.is_grad_enabled()|h.requires_grad|\
h.is_floating_point()>>:
    BODY

# branch on values rare
if <<h.sum() > 0.1234|(h > 0.1234).any()|self.one.weight.sum() > 0.1234|\
float(self.one.bias[0]) > 0.1234>>:
    BODY

# branch on a config
top| @dataclass
top| class Config_K:
top|     on: bool = <<True|False>>
init| self.config_K = Config_K()
change| base.config_K.on = not base.config_K.on
if self.config_K.on:
    BODY

# branch on a dict
init| self.config_K = {"on": <<True|False>>, "deep": [1, {"n": 0}]}
change| base.config_K["on"] = not base.config_K["on"]
change| base.config_K["deep"][1]["n"] += 1
h = h * (1 + self.config_K["deep"][1]["n"])
if self.config_K["on"]:
    BODY

# branch on a list
init| self.config_K = ["a"]
change| base.config_K.append("b")
for _ in self.config_K:
    h = self.one(h)

# branch on an enum
top| class Mode_K(enum.Enum):
top|     A, B = 1, 2
init| self.mode_K = Mode_K.<<A|B>>
change| base.mode_K = Mode_K.B if base.mode_K is Mode_K.A else Mode_K.A
if self.mode_K is Mode_K.A:
    BODY

# branch on a global
top| FLAG_K = <<True|False>>
turn| global FLAG_K
turn| FLAG_K = not FLAG_K
if FLAG_K:
    BODY

# branch on a closure
top| def switch_K():
top|     on = <<True|False>>
top|     def read():
top|         return on
top|     def turn():
top|         nonlocal on
top|         on = not on
top|     return read, turn
init| self.read_K, self.turn_K = switch_K()
change| base.turn_K()
if self.read_K():
    BODY

# a plain attribute that changes
init| self.power_K = 1
change| base.power_K += 1
h = torch.tanh(h) <<** self.power_K|* self.power_K>>

# a layer that is replaced rare
init| self.act_K = nn.Tanh()
change| base.act_K = nn.<<Softplus|Softmax|Identity>>(<<|>>)
h = self.act_K(h)

# checkpoint
def block_K(h):
    BODY
    return h
h = checkpoint(block_K, h, use_reentrant=<<False|False|False|True>>)

# checkpoint of a layer
h = checkpoint(<<self.one|lambda q: torch.tanh(self.one(q))>>, h, use_reentrant=False)

# function inside
def inner_K(h):
    BODY
    return h
h = h + inner_K(<<h|h * 0.5|h.tanh()>>)

# tried
try:
    h = h.view(<<-1, W|h.shape[0], -1|*h.shape>>).<<view|reshape>>(h.shape)
except RuntimeError:
    h = h.reshape(h.shape)

# tried on values rare
try:
    n_K = float(h.detach().sum())
except RuntimeError:
    n_K = 0.0
h = h + n_K

# values read rare
h = h * <<h.sum().item()|float(self.one.bias[0])|self.one.weight.detach().tolist()[0][0]|\
int((h > 0.1234).sum())>>
"""
"""Statements of ``forward`` about state, and branches."""
