"""Kinds of statements that random bases are made of: a grammar, as text.

A kind is a block: its name behind ``#`` with tags, then lines. Lines of ``forward`` stand as they are and carry ``h``,
of shape (batch, W) or (batch, L, W), to a tensor of the same shape. Others say where they belong: ``top|`` the module,
``init|`` the constructor, ``change|`` what is done to a base between two calls, ``turn|`` to the module's globals.

``<<a|b>>`` is one of several, ``_K`` the number of the statement, ``EXPR`` arithmetic on ``h``, ``BODY`` one or two
statements more, ``ROW`` statements that suit a single row too, of shape (W,). ``self.one`` is a layer that is there in
every base, so that it can be shared.

Tags: ``two`` and ``three`` for the axes that ``h`` must have, ``row`` for what suits a single row, ``state`` for what
must not stand inside a body, ``often`` and ``rare``.
"""

STATEMENTS = """
# linear row often
init| self.lin_K = nn.Linear(W, W<<|, bias=False>>)
h = self.lin_K(h)

# one row often
h = self.one(h)

# twice row
h = self.one(torch.tanh(self.one(h)))

# expression row often
h = EXPR

# wide row
init| self.up_K, self.down_K = nn.Linear(W, V), nn.Linear(V, W)
h = self.down_K(<<torch.tanh|F.gelu|F.silu|F.softplus>>(self.up_K(h)))

# functional row
h = F.linear(h, self.one.weight<<|, self.one.bias|, self.one.bias * 2|, bias=self.one.bias>>)

# product row
h = <<h @ self.one.weight.t()|h @ self.one.weight|torch.matmul(h, self.one.weight.mT)|h.matmul(self.one.weight)>>

# einsum row
h = torch.einsum("...i,oi->...o", h, self.one.weight)

# bmm two
h = torch.bmm(h[:, None], self.one.weight.expand(<<len(h)|h.shape[0]>>, W, W))[:, 0]

# addmm two
h = torch.addmm(self.one.bias, h, self.one.weight<<|.t()>>)

# own parameter row often
init| self.scale_K = nn.Parameter(torch.randn(<<W|W|1|()>>))
h = h <<*|+|->> <<self.scale_K|F.softplus(self.scale_K)|self.scale_K.exp()>>

# parameter with an axis of one
init| self.first_K = nn.Parameter(torch.randn(1, W))
h = h <<*|+>> self.first_K

# parameter of the rows two
init| self.rows_K = nn.Parameter(torch.randn(B, <<W|1>>))
h = h <<*|+>> self.rows_K

# a token in front two
init| self.token_K = nn.Parameter(torch.randn(1, W))
h = torch.cat([self.token_K, h])[<<1:|:len(h)>>]

# a token in front of each three
init| self.token_K = nn.Parameter(torch.randn(1, 1, W))
h = torch.cat([self.token_K.expand(len(h), -1, -1), h], 1)[:, <<1:|:-1>>]

# statistic of a weight row
h = h * <<self.one.weight.norm()|self.one.weight.mean()|self.one.weight.var()|self.one.weight.square().sum()>>

# derived from a weight row
h = h + <<self.one.weight.sum(0)|self.one.weight.mean(1)|F.softplus(self.one.bias)|self.one.weight.diagonal()>>

# normalised weight row
h = F.linear(h, F.normalize(self.one.weight, dim=<<0|1>>))

# softmax of a weight row
h = F.linear(h, torch.softmax(self.one.weight, <<0|-1>>), self.one.bias)

# size often
h = h / <<len(h)|h.shape[0]|h.size(0)|h.size(-1)|h.numel()|sum(h.shape)|(h.ndim + len(h))>>

# centred often
h = h - h.<<mean|sum|amax|amin>>(<<0|0, keepdim=True|-1, keepdim=True|dim=0|(0, -1), keepdim=True>>)

# centred by hand
m_K, v_K = h.mean(0), h.var(0, unbiased=False)
h = (h - m_K) / (v_K + 1).sqrt()

# one number
h = h * torch.sigmoid(h.<<mean|sum|max|norm>>())

# softmax
h = <<F.softmax|torch.log_softmax|F.softmin>>(h, <<0|-1|1>>)

# cumulated
h = <<torch.cumsum|torch.logcumsumexp>>(h, <<0|-1|1>>)

# extremes
h = torch.<<cummax|cummin|sort>>(h, dim=<<0|-1>>)[0]

# turned
h = <<h.flip(0)|h.flip(-1)|h.roll(1, 0)|h.roll(1, -1)|h.roll(1)|torch.flip(h, (0, -1))>>

# normalised
h = F.normalize(h + 2, dim=<<0|-1|1>>)

# best
h = h - <<h.topk(1, dim=0)[0]|h.kthvalue(1, dim=0)[0]|h.median(0)[0]|torch.logsumexp(h, 0)|torch.var_mean(h + 1, -1)[1].mean()>>

# axes moved
h = h.transpose(0, -1).<<reshape(h.shape)|contiguous().view(h.shape)|flatten().view_as(h)>>

# axes there and back
h = torch.<<tanh|sin>>(h.<<transpose(0, 1)|movedim(0, 1)|swapaxes(0, 1)>>).transpose(0, 1)

# layer on moved axes three
h = self.one(h.<<transpose(0, 1)|permute(1, 0, 2)>>).transpose(0, 1)

# softmax on moved axes
h = F.softmax(h.mT, <<-1|0|1>>).mT

# flat
h = <<h.reshape(-1).view(h.shape)|h.flatten().unflatten(0, h.shape)|h.view(-1, W).view(h.shape)|h.ravel().reshape_as(h)>>

# flat and moved
h = torch.roll(h.flatten(), <<1|W>>).view(<<h.shape|h.size()|*h.shape>>)

# another first axis
h = <<h[None].mean(0)|h.unsqueeze(0).squeeze(0)|h.expand(2, *h.shape).mean(0)|h.unsqueeze(0).sum(1).expand_as(h)>>

# doubled
h = torch.cat([h, <<h|h * 2|torch.zeros_like(h)>>])[<<: len(h)|len(h) :|::2>>]

# doubled in width
h = torch.cat([h, h.<<tanh|sin>>()], -1)[..., <<:W|W:|::2>>]

# repeated two
h = <<h.repeat(2, 1)[1 : len(h) + 1]|h.tile(2, 1)[::2]|h.repeat_interleave(2, 0)[: len(h)]>>

# rows in a loop
h = torch.stack([self.one(<<row|row.tanh()>>) for row in <<h|h.unbind()|h.unbind(0)|list(h)>>])

# rows by number
rows_K = []
for i in range(<<len(h)|h.shape[0]|h.size(0)>>):
    rows_K.append(self.one(h[i]) * <<1|(i + 1)|len(rows_K)>>)
h = torch.stack(rows_K)

# rows that follow each other
s_K = torch.zeros_like(h[0])
rows_K = []
for row in h:
    s_K = torch.tanh(self.one(row) + s_K)
    rows_K.append(s_K)
h = torch.stack(rows_K)

# steps three
s_K = h[:, 0]
for step in range(h.shape[1]):
    s_K = torch.tanh(self.one(h[:, step]) + s_K)
h = h + s_K[:, None]

# pieces
h = torch.cat([<<torch.tanh(p)|self.one(p)|p - p.mean(0)>> for p in h.<<split(1)|split(2)|chunk(2)|tensor_split(2)>>])

# picked rows
h = h[<<torch.arange(len(h)).flip(0)|[0] * len(h)|[-1, *range(len(h) - 1)]|torch.zeros(len(h), dtype=torch.long)>>]

# picked columns
h = h[..., <<torch.arange(W - 1, -1, -1)|[0] * W|torch.arange(W)>>]

# slices
h = <<h[:, :1] + h|h[:1] + h|h[-1] + h|h[0] * h|h[..., :1] * h|h[1:].sum(0) + h|h[:, 0].sum() + h|h[..., 0, None] + h>>

# gathered
h = h.gather(<<0|-1>>, h.argsort(<<0|-1>>))

# selected
h = h.index_select(<<0|-1>>, torch.zeros(<<1|1>>, dtype=torch.long)) + h

# taken two
h = h + torch.take_along_dim(h, h.argmax(<<0|1>>, keepdim=True), <<0|1>>)

# picked by own numbers two
h = h + self.one.weight[h.detach().argmax(-1)]

# masked
h = <<torch.where(h > 0.1234, h, 0.5 * h)|h.masked_fill(h > 0.1234, 0.5)|h * (h > 0.1234)|torch.where(h.mean(0) > 0.1234, h, -h)>>

# masked and counted
h = h + h[h > 0.1234].sum()

# triangle
h = <<torch.tril(h)|h.triu()|h * torch.ones(h.shape[-2], W).tril()>>

# in place
h = <<h.clone()|h * 1|h + 0>>
<<h[0] = 0|h[..., 0] += 1|h.add_(1)|h[1:].mul_(2)|h.mul_(self.one.bias)|h += self.one.bias|h.tanh_()|h[0] += h[-1]>>

# in place twice
h = torch.zeros_like(h).copy_(h)
h[..., 0].<<mul_(2)|add_(1)|copy_(self.one.bias[0].expand_as(h[..., 0]))>>
h.<<masked_fill_(h > 0.1234, 1.0)|clamp_(-2, 2)|sub_(h.mean(0))>>

# written row by row
out_K = torch.<<empty_like(h)|zeros(h.shape)|zeros_like(h)>>
for i in range(len(h)):
    out_K[i] = self.one(h[i])
h = out_K

# scattered
h = torch.zeros_like(h).<<index_add(0, torch.arange(len(h)).flip(0), h)|scatter_add(0, h.argsort(0), h)>>

# without gradients row
with torch.no_grad():
    c_K = self.one(h)
h = h + c_K

# detached row
h = <<h + self.one(h).detach()|h.detach() * self.one(h)|F.linear(h, self.one.weight.detach())>>

# weight changed in place rare
with torch.no_grad():
    self.one.weight.<<div_(self.one.weight.norm() + 1)|mul_(0.9)|clamp_(-0.5, 0.5)|copy_(self.one.weight * 0.5)>>
h = self.one(h)

# data of a weight
h = <<h @ self.one.weight.data|F.linear(h, self.one.weight.data, self.one.bias)|h + self.one.bias.data.sum()>>

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
    (g_K,) = torch.autograd.grad(e_K, <<self.one.weight|[self.one.weight]>>, create_graph=<<True|True|False>>)
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
h = torch.<<func.vmap|vmap>>(<<self.one|lambda row: self.one(row).tanh()|lambda row: row * self.one.bias>>)(h)

# vmap of statements
def each_K(h):
    ROW
    return h
h = torch.vmap(each_K)(h)

# experts
init| self.experts_K = nn.Parameter(torch.randn(<<T|W|2>>, W, W))
h = torch.vmap(lambda w: torch.tanh(h @ w))(self.experts_K).mean(0)

# vmap over a parameter
h = torch.vmap(lambda row, b: row * b<<, in_dims=(-1, 0), out_dims=-1|, (-1, 0), -1>>)(h, self.one.<<bias|weight[0]>>)

# functional call
h = torch.func.functional_call(self.one, {"weight": self.one.weight * <<2|self.one.bias>>}, <<(h,)|h>>)

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
init| self.kept_K = functools.partial(torch.utils.checkpoint.checkpoint, self.one, use_reentrant=False)
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
    self.buf_K.<<mul_(0.9).add_(h.detach().mean())|add_(1)|copy_(h.detach().flatten()[: len(self.buf_K)])>>
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
init| self.hooked_K.register_forward_hook(lambda m, i, o: <<o * 2|o - o.mean(0)|o + m.weight.sum()|i[0] + o|o / len(o)>>)
h = self.hooked_K(h)

# pre-hook that changes
init| self.hooked_K = nn.Linear(W, W)
init| self.hooked_K.register_forward_pre_hook(lambda m, i: <<i[0] * 2|(i[0] + m.bias,)|(i[0] - i[0].mean(0),)>>)
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
init| self.lin_K.forward = <<lambda h: F.linear(h, self.one.weight) * 2|functools.partial(F.linear, weight=self.one.weight)>>
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
top|         <<self.parent = [parent]|object.__setattr__(self, "parent", [parent])|self.parent = (lambda: parent,)>>
top|     def forward(self, h):
top|         return self.inner(h) + (self.parent[0]() if callable(self.parent[0]) and not isinstance(
top|             self.parent[0], nn.Module) else self.parent[0]).one.bias
init| self.child_K = Child_K(self)
h = self.child_K(h)

# low precision
init| self.low_K = nn.Linear(W, W).float()
h = self.low_K(h.float()).<<double()|to(h.dtype)|type_as(h)>>

# other dtype for a moment
h = <<h.float().tanh().double()|F.linear(h.float(), self.one.weight.float()).double()|h.to(torch.float32).to(h)>>

# complex
h = <<(h + 1j * self.one(h)).abs().add(1)|torch.fft.rfft(h, dim=0).abs().sum(0) + h|torch.view_as_real(h * 1j)[..., 1]>>

# branch on sizes
if <<len(h) > 2|h.shape[-1] == len(h)|h.shape[0] % 2|h.ndim == 2|h.numel() > 6|len(h) == 1>>:
    BODY
else:
    BODY

# branch on the mode
if <<self.training|not self.training|torch.is_grad_enabled()|h.requires_grad|h.is_floating_point()>>:
    BODY

# branch on values rare
if <<h.sum() > 0.1234|(h > 0.1234).any()|self.one.weight.sum() > 0.1234|float(self.one.bias[0]) > 0.1234>>:
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
h = h * <<h.sum().item()|float(self.one.bias[0])|self.one.weight.detach().tolist()[0][0]|int((h > 0.1234).sum())>>

# made anew
h = h <<+|*>> <<torch.arange(1.0, W + 1)|torch.ones(len(h), *[1] * (h.ndim - 1)).cumsum(0)|h.new_ones(W)|torch.full_like(h, 2.0)>>

# identity two
h = h + torch.eye(<<len(h)|h.shape[0]>>) @ h

# rows against rows
h = <<(h @ h.mT).softmax(-1) @ h|F.scaled_dot_product_attention(h, h, h)|torch.tanh(h @ h.mT) @ h>>

# rows against rows by einsum two
h = torch.einsum("bi,ci,cj->bj", h, h, h).tanh()

# attention three
init| self.mha_K = nn.MultiheadAttention(W, 1, batch_first=<<True|False>>)
h = self.mha_K(h, h, h<<|, need_weights=False>>)[0]

# attention over rows two
init| self.mha_K = nn.MultiheadAttention(W, 1<<|, batch_first=True>>)
h = self.mha_K(h, h, h)[0]

# encoder layer three
init| self.enc_K = nn.TransformerEncoderLayer(W, 1, 4, dropout=0.0, batch_first=<<True|False>>)
h = self.enc_K(h)

# attention with heads three
q_K = self.one(h).<<unsqueeze(1)|view(len(h), 1, -1, W)>>
h = h + F.scaled_dot_product_attention(q_K, q_K, q_K<<|, is_causal=True>>).squeeze(1)

# cell two rare
init| self.cell_K = nn.<<GRUCell|RNNCell>>(W, W)
h = self.cell_K(h, <<h|torch.zeros_like(h)>>)

# recurrent three rare
init| self.rnn_K = nn.<<GRU|LSTM|RNN>>(W, W, batch_first=<<True|False>>)
h = self.rnn_K(h)[0]

# convolution over columns two
init| self.kernel_K = nn.Parameter(torch.randn(1, 1, 3))
h = F.conv1d(h[:, None], self.kernel_K, padding=1)[:, 0]

# convolution over rows two
init| self.kernel_K = nn.Parameter(torch.randn(W, W, 3))
h = F.conv1d(h.t()[None], self.kernel_K, padding=1)[0].t()

# convolution of the whole
init| self.conv_K = nn.Conv1d(W, W, <<1|3, padding=1|3, padding="same", bias=False>>)
h = <<self.conv_K(h.mT).mT|h + self.conv_K(h.mT).mT.mean(0)>>

# convolution in the plane two
init| self.conv_K = nn.Conv2d(1, 2, <<(1, 3), padding=(0, 1)|3, padding=1>>)
h = self.conv_K(<<h[:, None, None]|h[None, None]>>).mean(1).reshape(h.shape)

# grouped convolution three
init| self.conv_K = nn.Conv1d(W, W, 3, padding=1, groups=W)
h = self.conv_K(h.mT).mT

# transposed convolution three
init| self.conv_K = nn.ConvTranspose1d(W, W, <<1|3, padding=1>>)
h = self.conv_K(h.mT).mT

# pooled
h = <<F.avg_pool1d(h, 3, 1, 1)|F.max_pool1d(h + 2, 3, 1, 1)|F.adaptive_avg_pool1d(h, 1) + h>>

# layer norm row often
init| self.norm_K = nn.<<LayerNorm(W)|RMSNorm(W)|LayerNorm(W, elementwise_affine=False)>>
h = self.norm_K(h)

# norm over everything two
h = F.layer_norm(h, <<h.shape|(W,)|h.shape[-1:]>>)

# group norm two
init| self.norm_K = nn.GroupNorm(1, W)
h = self.norm_K(h)

# instance norm three
init| self.norm_K = nn.InstanceNorm1d(W, affine=<<True|False>>)
h = self.norm_K(h.mT).mT

# batch norm two rare
init| self.norm_K = nn.BatchNorm1d(W<<|, track_running_stats=False|, affine=False>>)
h = self.norm_K(torch.cat([h, h + 1]))[: len(h)]

# batch norm by function two
h = F.batch_norm(torch.cat([h, h * 2]), None, None, self.one.bias, None, training=True)[: len(h)]

# embedding row
init| self.emb_K = nn.Embedding(3, W<<|, padding_idx=0>>)
h = h + self.emb_K(h.detach().mul(7).long().remainder(3)).<<mean(-2)|sum(-2)>>

# one of a table
h = h + self.one.weight[<<0|-1|len(h) % W>>]

# own function
top| class Twice_K(torch.autograd.Function):
top|     @staticmethod
top|     def forward(ctx, h, w):
top|         ctx.save_for_backward(w)
top|         return 2 * h * w
top|     @staticmethod
top|     def backward(ctx, g):
top|         (w,) = ctx.saved_tensors
top|         return 2 * g * w, None
h = Twice_K.apply(h, self.one.bias.detach())

# all parameters
h = h * torch.tanh(<<sum(p.square().mean() for p in self.parameters())|next(self.parameters()).sum()>>)

# parameters by name
h = h + <<dict(self.named_parameters())["one.bias"]|self.get_parameter("one.bias")|getattr(self.one, "bias")>>

# a state dict
h = F.linear(h, self.state_dict()["one.weight"])

# parameters as a vector
h = h + torch.nn.utils.parameters_to_vector(self.one.parameters()).mean()

# mode for a moment rare
was_K = self.training
self.eval()
h = self.one(h)
self.train(was_K)

# submodule by name
h = <<self.get_submodule("one")|dict(self.named_modules())["one"]|list(self.children())[0]>>(h)
"""
"""Statements of ``forward``."""

EXPRESSIONS = [
    *("torch.tanh(EXPR)", "torch.sin(EXPR)", "F.gelu(EXPR)", "F.silu(EXPR)", "F.softplus(EXPR)", "F.elu(EXPR)"),
    *("torch.sigmoid(EXPR)", "(-EXPR)", "(0.5 * EXPR)", "(EXPR + EXPR)", "(EXPR * EXPR)", "(EXPR - 1)", "(1 / (2 + EXPR ** 2))"),
    *("EXPR.abs().add(1).log()", "EXPR.clone()", "torch.maximum(EXPR, -EXPR)", "EXPR.clamp(-1, 1)", "EXPR.exp().log1p()"),
    *("torch.lerp(EXPR, EXPR, 0.3)", "torch.addcmul(EXPR, EXPR, EXPR)", "EXPR.square()", "EXPR.cos().mul(0.5)"),
    *("F.layer_norm(EXPR, (W,))", "F.softmax(EXPR, -1)", "torch.where(EXPR > 0.1234, EXPR, EXPR)"),
    *("(EXPR * self.one.bias)", "(EXPR + self.one.bias.tanh())", "F.dropout(EXPR, 0.5, training=False)"),
    *("torch.atan2(EXPR, 2 + EXPR ** 2)", "F.leaky_relu(EXPR, 0.1)", "F.mish(EXPR)", "torch.erf(EXPR)"),
]
"""Arithmetic on ``h``, number by number."""

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
"""What ``forward`` takes besides ``x``."""

OUTPUTS = """
# tensor often
h

# tensor again often
h

# pair
(h, <<h.mean()|x|h.sum(0)|h * 2|h.argmax(-1)|self.one.weight.norm()|self.one.bias|None|"name"|3|h.shape[0]|h.shape>>)

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
<<self.one.weight.norm()|self.one.weight|{"w": self.one.weight.sum(0), "h": h}|torch.linalg.matrix_norm(self.one.weight)>>

# more rows
<<torch.cat([h, h])|h[:1]|h[::2]|h[None]|torch.stack([h, h * 2])|h.unbind()>>

# a number of python rare
<<(h, float(len(h)))|(h, h.sum().item())|(h, h.mean(0).tolist())|len(h)>>

# the input
<<x|(x, h)|(h, h)|(h.detach(), h)>>
"""
"""What ``forward`` returns."""
