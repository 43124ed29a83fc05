"""Grammar of computations: arithmetic, sums, axes, indices, changes in place.

See `weightloom.testing.grammar`.
"""

NUMBERS = """
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
h = <<h @ self.one.weight.t()|h @ self.one.weight|torch.matmul(h, self.one.weight.mT)|\
h.matmul(self.one.weight)>>

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
h = h * <<self.one.weight.norm()|self.one.weight.mean()|self.one.weight.var()|\
self.one.weight.square().sum()>>

# derived from a weight row
h = h + <<self.one.weight.sum(0)|self.one.weight.mean(1)|F.softplus(self.one.bias)|\
self.one.weight.diagonal()>>

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
h = h - <<h.topk(1, dim=0)[0]|h.kthvalue(1, dim=0)[0]|h.median(0)[0]|h.logsumexp(0)|\
torch.var_mean(h, -1)[1].mean()>>

# axes moved
h = h.transpose(0, -1).<<reshape(h.shape)|contiguous().view(h.shape)|flatten().view_as(h)>>

# axes there and back
h = torch.<<tanh|sin>>(h.<<transpose(0, 1)|movedim(0, 1)|swapaxes(0, 1)>>).transpose(0, 1)

# layer on moved axes three
h = self.one(h.<<transpose(0, 1)|permute(1, 0, 2)>>).transpose(0, 1)

# softmax on moved axes
h = F.softmax(h.mT, <<-1|0|1>>).mT

# flat
h = <<h.reshape(-1).view(h.shape)|h.flatten().unflatten(0, h.shape)|h.view(-1, W).view(h.shape)|\
h.ravel().view_as(h)>>

# flat and moved
h = torch.roll(h.flatten(), <<1|W>>).view(<<h.shape|h.size()|*h.shape>>)

# another first axis
h = <<h[None].mean(0)|h.unsqueeze(0).squeeze(0)|h.expand(2, *h.shape).mean(0)|\
h.unsqueeze(0).sum(1).expand_as(h)>>

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
h = torch.cat([<<torch.tanh(p)|self.one(p)|p - p.mean(0)>> for p in h.<<split(1)|split(2)|\
chunk(2)|tensor_split(2)>>])

# picked rows
h = h[<<torch.arange(len(h)).flip(0)|[0] * len(h)|[-1, *range(len(h) - 1)]|torch.zeros(len(h), \
dtype=torch.long)>>]

# picked columns
h = h[..., <<torch.arange(W - 1, -1, -1)|[0] * W|torch.arange(W)>>]

# slices
h = <<h[:, :1] + h|h[:1] + h|h[-1] + h|h[0] * h|h[..., :1] * h|h[1:].sum(0) + h|h[:, 0].sum() + h|\
h[..., 0, None] + h>>

# gathered
h = <<h.gather(0, h.argsort(0))|h.gather(-1, h.argsort(-1))|torch.take_along_dim(h, h.argsort(0), \
0)>>

# selected
h = h.index_select(<<0|-1>>, torch.zeros(<<1|1>>, dtype=torch.long)) + h

# taken two
h = h + torch.take_along_dim(h, h.argmax(<<0|1>>, keepdim=True), <<0|1>>)

# picked by own numbers two
h = h + self.one.weight[h.detach().argmax(-1)]

# masked
keep_K = <<h > 0.1234|h.mean(0) > 0.1234|self.one.bias > 0.1234>>
h = <<torch.where(keep_K, h, 0.5 * h)|h.masked_fill(keep_K, 0.5)|h * keep_K>>

# masked and counted
h = h + h[h > 0.1234].sum()

# triangle
h = <<torch.tril(h)|h.triu()|h * torch.ones(h.shape[-2], W).tril()>>

# in place
h = <<h.clone()|h * 1|h + 0>>
<<h[0] = 0|h[..., 0] += 1|h.add_(1)|h[1:].mul_(2)|h.mul_(self.one.bias)|h += self.one.bias|\
h.tanh_()|h[0] += h[-1]>>

# in place twice
h = torch.zeros_like(h).copy_(h)
h[..., 0].<<mul_(2)|add_(1)|copy_(self.one.bias[0].expand_as(h[..., 0]))>>
h.<<masked_fill_(h > 0.1234, 1.0)|clamp_(-2, 2)|sub_(h.mean(0))>>

# rows written
out_K = torch.<<empty_like(h)|zeros(h.shape)|zeros_like(h)>>
for i in range(len(h)):
    out_K[i] = self.one(h[i])
h = out_K

# scattered
h = torch.zeros_like(h).<<index_add(0, torch.arange(len(h)).flip(0), h)|scatter_add(0, \
h.argsort(0), h)>>
"""
"""Statements of ``forward`` about computations."""

EXPRESSIONS = [
    *(
        "torch.tanh(EXPR)",
        "torch.sin(EXPR)",
        "F.gelu(EXPR)",
        "F.silu(EXPR)",
        "F.softplus(EXPR)",
        "F.elu(EXPR)",
    ),
    *(
        "torch.sigmoid(EXPR)",
        "(-EXPR)",
        "(0.5 * EXPR)",
        "(EXPR + EXPR)",
        "(EXPR * EXPR)",
        "(EXPR - 1)",
        "(1 / (2 + EXPR ** 2))",
    ),
    *(
        "EXPR.abs().add(1).log()",
        "EXPR.clone()",
        "torch.maximum(EXPR, -EXPR)",
        "EXPR.clamp(-1, 1)",
        "EXPR.exp().log1p()",
    ),
    *(
        "torch.lerp(EXPR, EXPR, 0.3)",
        "torch.addcmul(EXPR, EXPR, EXPR)",
        "EXPR.square()",
        "EXPR.cos().mul(0.5)",
    ),
    *("F.layer_norm(EXPR, (W,))", "F.softmax(EXPR, -1)", "torch.where(EXPR > 0.1234, EXPR, EXPR)"),
    *(
        "(EXPR * self.one.bias)",
        "(EXPR + self.one.bias.tanh())",
        "F.dropout(EXPR, 0.5, training=False)",
    ),
    *(
        "torch.atan2(EXPR, 2 + EXPR ** 2)",
        "F.leaky_relu(EXPR, 0.1)",
        "F.mish(EXPR)",
        "torch.erf(EXPR)",
    ),
]
"""Elementwise arithmetic on ``h``."""
