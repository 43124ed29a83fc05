"""Grammar of parameters: gradients, transforms, the places that hold them.

See `weightloom.testing.grammar`.
"""

PARAMETERS = """
# without gradients row
with torch.no_grad():
    c_K = self.one(h)
h = h + c_K

# detached row
h = <<h + self.one(h).detach()|h.detach() * self.one(h)|F.linear(h, self.one.weight.detach())>>

# weight changed in place rare
with torch.no_grad():
    self.one.weight.<<div_(self.one.weight.norm() + 1)|mul_(0.9)|clamp_(-0.5, 0.5)|\
copy_(self.one.weight * 0.5)>>
h = self.one(h)

# data of a weight
h = <<h @ self.one.weight.data|F.linear(h, self.one.weight.data, self.one.bias)|\
h + self.one.bias.data.sum()>>

# data of a weight changed rare
self.one.weight.data<<.mul_(0.5)| = self.one.weight.data * 0.5|.clamp_(-0.5, 0.5)>>
h = self.one(h)

# gradient of the input
with torch.enable_grad():
    q_K = h.<<detach()|clone()>>.requires_grad_()
    e_K = self.one(q_K).<<tanh().sum()|square().mean()|sin().sum(-1).mean()>>
    (g_K,) = torch.autograd.grad(e_K, q_K, create_graph=<<True|True|False>>)
h = h - g_K

# gradient of a parameter
with torch.enable_grad():
    e_K = self.one(h).<<tanh().sum()|square().mean()>>
    (g_K,) = torch.autograd.grad(e_K, <<self.one.weight|[self.one.weight]>>, create_graph=<<True|\
True|False>>)
h = F.linear(h, self.one.weight - 0.1 * g_K, self.one.bias)

# gradient as a function
h = h - torch.func.grad(lambda q: self.one(q).tanh().sum())(h)

# gradient for a weight
g_K = torch.func.grad(lambda w: F.linear(h, w).<<tanh().sum()|square().mean()>>)(self.one.weight)
h = F.linear(h, self.one.weight - 0.1 * g_K)

# gradients of each row
h = torch.func.vmap(torch.func.grad(lambda q: self.one(q).tanh().sum()))(h)

# jvp
h = torch.func.jvp(lambda q: self.one(q).tanh(), (h,), (<<h|torch.ones_like(h)>>,))[1]

# vmap
h = torch.<<func.vmap|vmap>>(<<self.one|lambda row: self.one(row).tanh()|\
lambda row: row * self.one.bias>>)(h)

# vmap of statements
def each_K(h):
    ROW
    return h
h = torch.vmap(each_K)(h)

# experts
init| self.experts_K = nn.Parameter(torch.randn(<<T|W|2>>, W, W))
h = torch.vmap(lambda w: torch.tanh(h @ w))(self.experts_K).mean(0)

# vmap over a parameter
h = torch.vmap(lambda row, b: row * b<<, in_dims=(-1, 0), out_dims=-1|, (-1, 0), -1>>)(h, \
self.one.<<bias|weight[0]>>)

# functional call
h = torch.func.functional_call(self.one, {"weight": self.one.weight * <<2|self.one.bias>>}, \
<<(h,)|h>>)

# functional call of own values
own_K = {n: p * 0.5 for n, p in self.one.<<named_parameters()|state_dict(keep_vars=True).items()>>}
h = torch.func.functional_call(self.one, own_K, (h,))

# inner step
own_K = dict(self.one.named_parameters())
with torch.enable_grad():
    e_K = torch.func.functional_call(self.one, own_K, (h,)).square().mean()
    g_K = torch.autograd.grad(e_K, tuple(own_K.values()), create_graph=True)
own_K = {n: p - 0.1 * g for (n, p), g in zip(own_K.items(), g_K)}
h = torch.func.functional_call(self.one, own_K, (h,))

# deepcopy in forward rare
h = copy.deepcopy(self.one)(h)

# deepcopy at the start
init| self.copy_K = copy.deepcopy(self.one)
h = self.copy_K(h)

# weak reference
init| self.ref_K = weakref.ref(self.one)
h = self.ref_K()(h)

# proxy
init| self.proxy_K = [weakref.proxy(self.one)]
h = self.proxy_K[0](h)

# plain holder
top| class Holder_K:
top|     def __init__(self, layer):
top|         self.layer = layer
top|     def run(self, h):
top|         return self.layer(h)
init| self.holder_K = Holder_K(self.one)
h = self.holder_K.<<run|layer>>(h)

# kept in a list
init| self.kept_K = [self.one.weight, self.one.bias]
h = F.linear(h, *self.kept_K)

# kept in a dict
init| self.kept_K = {"weight": self.one.weight, "inner": {"bias": self.one.bias}}
h = F.linear(h, self.kept_K["weight"], self.kept_K["inner"]["bias"])

# kept in a tuple
init| self.kept_K = tuple(self.one.parameters())
h = F.linear(h, self.kept_K[0])

# kept in a partial
init| self.kept_K = functools.partial(F.linear, weight=self.one.weight, bias=self.one.bias)
h = self.kept_K(h)

# kept in a closure
init| weight = self.one.weight
init| self.kept_K = lambda h: F.linear(h, weight)
h = self.kept_K(h)

# kept in a closure of a layer
init| one = self.one
init| self.kept_K = lambda h: one(h).tanh()
h = self.kept_K(h)

# bound method
init| self.kept_K = self.one.<<forward|__call__>>
h = self.kept_K(h)

# partial of a layer
init| self.kept_K = functools.partial(torch.utils.checkpoint.checkpoint, self.one, \
use_reentrant=False)
h = self.kept_K(h)

# layers in a plain list
init| self.plain_K = [self.one, <<nn.Linear(W, W)|self.one|nn.LayerNorm(W)>>]
for layer in self.plain_K:
    h = layer(h)

# layers in a plain dict
init| self.plain_K = {"a": self.one, "b": (nn.Tanh(), nn.Linear(W, W))}
h = self.plain_K["b"][1](self.plain_K["a"](h))

# module list
init| self.list_K = nn.ModuleList([nn.Linear(W, W), <<nn.LayerNorm(W)|nn.Tanh()|self.one>>])
for layer in self.list_K:
    h = layer(h)

# module dict
init| self.dict_K = nn.ModuleDict({"a": nn.Linear(W, W), "b": nn.<<Tanh|GELU>>()})
for name in self.dict_K:
    h = self.dict_K[name](h)

# sequential
init| self.seq_K = nn.Sequential(nn.Linear(W, W), nn.<<Tanh|SiLU|ELU|Identity>>(), nn.Linear(W, W))
h = self.seq_K(h)

# parameter list
init| self.plist_K = nn.ParameterList([torch.randn(W), torch.randn(W, W)])
h = (h * self.plist_K[0]) @ self.plist_K[1]

# parameter dict
init| self.pdict_K = nn.ParameterDict({"a": torch.randn(W), "b": torch.randn(1, W)})
for name in self.pdict_K:
    h = h + self.pdict_K[name]

# tied
init| self.tie_K = nn.Linear(W, W)
init| self.tie_K.weight = self.one.weight
h = self.tie_K(torch.tanh(self.one(h)))

# shared layer
init| self.again_K = <<self.one|nn.Sequential(self.one, nn.Tanh(), self.one)>>
h = self.again_K(h)

# frozen
init| self.still_K = nn.Linear(W, W)
init| self.still_K.<<weight.requires_grad_(False)|requires_grad_(False)>>
h = self.still_K(h)

# weight norm
init| self.wn_K = torch.nn.utils.parametrizations.weight_norm(nn.Linear(W, W))
h = self.wn_K(h)

# spectral norm rare
init| self.sn_K = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(W, W)).eval()
if not self.training:
    h = self.sn_K(h)

# old weight norm rare
init| self.wn_K = torch.nn.utils.weight_norm(nn.Linear(W, W))
h = self.wn_K(h)

# parametrised
top| class Half_K(nn.Module):
top|     def forward(self, w):
top|         return <<0.5 * w|w.triu()|w.tanh()>>
init| self.para_K = nn.Linear(W, W)
init| torch.nn.utils.parametrize.register_parametrization(self.para_K, "weight", Half_K())
h = self.para_K(h)
"""
"""Statements of ``forward`` about parameters."""
