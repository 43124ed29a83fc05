"""Grammar of layers: attention, convolutions, norms, embeddings.

See `weightloom.testing.grammar`.
"""

LAYERS = """
# made anew
h = h <<+|*>> <<torch.arange(1.0, W + 1)|torch.ones(len(h), *[1] * (h.ndim - 1)).cumsum(0)|\
torch.full_like(h, 2.0)>>

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
h = h * torch.tanh(<<sum(p.square().mean() for p in self.parameters())|\
next(self.parameters()).sum()>>)

# parameters by name
h = h + <<dict(self.named_parameters())["one.bias"]|self.get_parameter("one.bias")|\
getattr(self.one, "bias")>>

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
"""Statements of ``forward`` that are layers."""
