# Compiled from avx512.c, which says what each takes; avx512.py is what calls them.

SOURCE: str

def level() -> int: ...
def norm_rows(
    x: int, update: int, gate: int, gain: int, row_of: int, total: int, normed: int,
    tokens: int, channels: int, gate_stride: int, gain_stride: int, half: bool, eps: float, /,
) -> None: ...  # fmt: skip
def swiglu(gate_up: int, out: int, tokens: int, hidden: int, half: bool, /) -> None: ...
def turn_heads(
    qkv: int, q_gain: int, k_gain: int, rotation: int,
    tokens: int, stride: int, queries: int, turned: int, width: int, half: bool, eps: float, /,
) -> None: ...  # fmt: skip
def attend(
    q: int, k: int, v: int, out: int,
    q_token: int, q_head: int, k_token: int, k_head: int, v_token: int, v_head: int, out_token: int,
    runs: int, tokens: int, heads: int, width: int, half: bool, scale: float, /,
) -> None: ...  # fmt: skip
def norm_pictures(
    x: int, residual: int, weight: int, bias: int, out: int,
    batch: int, pixels: int, channels: int, groups: int, silu: bool, half: bool, eps: float, /,
) -> None: ...  # fmt: skip
