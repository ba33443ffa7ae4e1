"""Multi-head attention as PyTorch's, with its parameter names, written so that every exporter sees plain operators.

Source: Vaswani et al., Attention Is All You Need, NeurIPS 2017, sec. 3.2.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parameter import Parameter


class MultiHeadAttention(nn.Module):
    """Attention of queries to keys; the state dict is that of `torch.nn.MultiheadAttention`.

    Args:
        width: of queries, keys and values.
        num_heads: that the width is divided among.
        dropout: of the attention weights, in training.
    """

    def __init__(self, width: int, num_heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        assert width % num_heads == 0, (width, num_heads)
        self.num_heads = num_heads
        self.dropout = dropout
        projection = nn.Linear(width, 3 * width)
        nn.init.xavier_uniform_(projection.weight)
        self.in_proj_weight = Parameter(projection.weight.detach())
        self.in_proj_bias = Parameter(projection.bias.detach().zero_())
        self.out_proj = nn.Linear(width, width)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, may_see: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            query: (B, Q, W).
            key: (B, K, W).
            value: (B, K, W).
            may_see: (Q, K) bool, which keys each query attends to; all where None.

        Returns:
            (B, Q, W).
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        queries, keys, values = [
            self._split(functional.linear(given, weight, bias))
            for given, weight, bias in zip((query, key, value), weights, biases, strict=True)
        ]
        dropout = self.dropout if self.training else 0.0
        attended = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=may_see, dropout_p=dropout
        )  # (B, H, Q, W / H)
        batch, _, length, _ = attended.shape
        merged: Tensor = self.out_proj(attended.transpose(1, 2).reshape(batch, length, -1))  # (B, Q, W)
        return merged

    def _split(self, values: Tensor) -> Tensor:
        """(B, L, W) to (B, H, L, W / H)."""
        batch, length, width = values.shape
        return values.view(batch, length, self.num_heads, width // self.num_heads).transpose(1, 2)
