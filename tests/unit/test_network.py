"""The network: positions, masks, memory, initialisation, recomputation and training."""

from __future__ import annotations

import functools
import itertools
import subprocess
import sys
import textwrap
from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    create_selective_checkpoint_contexts,
)

from hdlm.network import DDiT, DDiTConfig, has_compiler, recomputation
from hdlm.network.attention import _flex, attend, prepare_mask
from hdlm.network.pieces import Pieces, cut
from hdlm.network.rotary import Rotary

SMALL = {"vocab_size": 13, "hidden_size": 32, "num_blocks": 2, "num_heads": 4, "cond_dim": 8}
SWITCHES = ("timestep_embedding", "condition_blocks", "condition_output")
EXACT = {"atol": 1e-12, "rtol": 0}


def random_network(**options) -> DDiT:
    """A float64 network in which every parameter matters."""
    torch.manual_seed(0)
    network = DDiT(DDiTConfig(**SMALL | options)).double().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def random_tokens(*shape: int) -> Tensor:
    return torch.randint(SMALL["vocab_size"], shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("told", [False, True])
def test_head_of_features_equals_forward_on_any_selection(told):
    network, tokens = random_network(**dict.fromkeys(SWITCHES, told)), random_tokens(2, 7)
    arguments = {"condition": torch.rand(2, 7), "blend": torch.rand(2, 7)} if told else {}
    logits = network(tokens, **arguments)
    hidden = network.features(tokens, **arguments)
    chosen = torch.rand(2, 7) < 0.5
    assert logits.shape == (2, 7, SMALL["vocab_size"])
    torch.testing.assert_close(network.head(hidden[chosen]), logits[chosen], **EXACT)
    torch.testing.assert_close(network.head(hidden[0, 3]), logits[0, 3], **EXACT)


def test_network_uses_relative_positions_of_each_row():
    network, tokens = random_network(), random_tokens(3, 6)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5], [9, 2, 700, 4, 4, -3], [5, 4, 3, 2, 1, 0]])
    together = network(tokens, positions=positions)
    for row in range(3):
        alone = network(tokens[row : row + 1], positions=positions[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, **EXACT)
    torch.testing.assert_close(network(tokens, positions=positions + 40), together, atol=1e-3, rtol=0)
    torch.testing.assert_close(network(tokens), network(tokens, positions=torch.arange(6)[None]), **EXACT)
    assert not torch.allclose(network(tokens), together, atol=1e-2)


def test_network_is_equivariant_to_permutation_of_positions():
    network, tokens = random_network(), random_tokens(2, 8)
    order = torch.randperm(8)
    permuted = network(tokens[:, order], positions=order[None])
    torch.testing.assert_close(permuted, network(tokens)[:, order], **EXACT)


def test_rotary_frequencies_keep_float32_precision():
    network = DDiT(DDiTConfig(**SMALL))
    exact = network.rotary_emb.inv_freq.clone()
    for convert in (lambda n: n.bfloat16(), lambda n: n.half(), lambda n: n.double()):
        assert torch.equal(convert(network).rotary_emb.inv_freq, exact)
    on_meta = DDiT(DDiTConfig(**SMALL)).to("meta").to_empty(device="cpu")
    on_meta.load_state_dict(network.state_dict())
    assert torch.equal(on_meta.rotary_emb.inv_freq, exact)


def test_split_attention_mask_equals_separate_passes():
    """A mask that splits the sequence gives the logits of two separate passes."""
    network, tokens = random_network(), random_tokens(2, 9)
    group = torch.tensor([0, 1, 0, 0, 1, 1, 0, 1, 0])
    logits = network(tokens, attention=(group[:, None] == group)[None])
    for members in (torch.where(group == g)[0] for g in (0, 1)):
        alone = network(tokens[:, members], positions=members[None])
        torch.testing.assert_close(alone, logits[:, members], **EXACT)


def naive_attention(query: Tensor, key: Tensor, value: Tensor, attention: Tensor) -> Tensor:
    """As in the published code, zeros replace the scores of a row that may attend to no key."""
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    blind = ~attention.any(-1, keepdim=True)
    scores = scores.masked_fill(~attention[:, None], -torch.inf).masked_fill(blind[:, None], 0.0)
    return scores.softmax(-1) @ value


@pytest.mark.parametrize("rows", [1, 3])
def test_attend_equals_naive_attention_for_fully_masked_queries(rows):
    torch.manual_seed(2)
    pair = torch.randn(3, 5, 2, 2, 4, dtype=torch.float64, requires_grad=True)
    value = torch.randn(3, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    attention = torch.rand(rows, 5, 5) < 0.5
    attention[0, 2] = False
    plain = Rotary(4)(torch.arange(5)[None])
    mask, silenced = prepare_mask(attention, plain, 5, 5)
    outputs, gradients = [], []
    for rotation, kernel, who in ((silenced, attend, mask), (plain, naive_attention, attention)):
        query, key = (part.transpose(1, 2) for part in rotation(pair).unbind(2))
        outputs.append(kernel(query, key, value, who))
        gradients.append(torch.autograd.grad(outputs[-1].pow(2).sum(), (pair, value)))
    torch.testing.assert_close(outputs[0], outputs[1], **EXACT)
    torch.testing.assert_close(gradients[0], gradients[1], **EXACT)
    everybody = value.mean(2).expand(3, 2, 4) if rows == 1 else value[:1].mean(2)
    torch.testing.assert_close(outputs[0][: 3 if rows == 1 else 1, :, 2], everybody, **EXACT)


def two_streams(length: int, width: int) -> Tensor:
    """Clean blocks attend to themselves and earlier clean blocks, noisy ones to themselves and earlier clean ones."""
    block = torch.arange(length) // width
    earlier, same = block[:, None] > block, block[:, None] == block
    return torch.cat(
        [
            torch.cat([earlier | same, torch.zeros_like(same)], 1),
            torch.cat([earlier, same], 1),
        ]
    )[None]


@pytest.mark.parametrize("size", [3, 8])
def test_attention_of_mask_pieces_equals_naive_attention(monkeypatch, size):
    monkeypatch.setattr("hdlm.network.pieces._SIZE", size)
    torch.manual_seed(3)
    ragged = torch.zeros(2, 30, 50, dtype=torch.bool)
    ragged[:, :11, 2:6] = ragged[0, :11, 31:34] = ragged[:, 11:, 41:] = True
    ragged[1, :, 44:] &= torch.rand(30, 6) < 0.5
    ragged[1, 20:, 17] = True
    for mask, pieces in (
        (two_streams(16, 4), True),
        (ragged, True),
        (torch.rand(1, 20, 20) < 0.9, False),
    ):
        query, key, value = (
            torch.randn(2, 3, n, 4, dtype=torch.float64, requires_grad=True)
            for n in (mask.shape[1], mask.shape[2], mask.shape[2])
        )
        whole = cut(mask[:, None])
        assert isinstance(whole, Pieces) == pieces
        found = attend(query, key, value, whole)
        expected = naive_attention(query, key, value, mask)
        torch.testing.assert_close(found, expected, **EXACT)
        inputs = query, key, value
        for one, other in zip(
            torch.autograd.grad(found.pow(2).sum(), inputs),
            torch.autograd.grad(expected.pow(2).sum(), inputs),
            strict=True,
        ):
            torch.testing.assert_close(one, other, **EXACT)


def test_two_stream_mask_pieces_skip_hidden_blocks():
    pairs = 0

    def count(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None) -> Tensor:
        nonlocal pairs
        pairs += query.shape[2] * key.shape[2]
        return query

    mask, _ = prepare_mask(two_streams(1024, 16), Rotary(4)(torch.arange(2048)[None]), 2048, 2048)
    vectors = torch.zeros(1, 1, 2048, 4)
    assert isinstance(mask, Pieces)
    mask.attend(vectors, vectors, vectors, count)
    assert pairs <= 0.4 * 2048**2  # a quarter is seen


def test_block_mask_attention_equals_dense_mask():
    network, tokens = random_network(), random_tokens(2, 8)

    def causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return q >= k

    expected = network(tokens, attention=torch.ones(1, 8, 8, dtype=torch.bool).tril())
    for rows in (None, 2):
        block_mask = create_block_mask(causal, rows, None, 8, 8, device="cpu")
        torch.testing.assert_close(network(tokens, attention=block_mask), expected, **EXACT)
    with pytest.raises(ValueError, match="shared by the heads"):
        network(tokens, attention=create_block_mask(causal, None, 4, 8, 8, device="cpu"))


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numel = max(
            [self.numel, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor))]
        )
        return out


@pytest.mark.parametrize("masked", [False, True])
def test_attention_makes_no_tensor_of_batch_heads_queries_keys(masked):
    batch, length = 2, 256
    network = random_network(num_blocks=1).float()
    attention = torch.ones(1, length, length, dtype=torch.bool).tril() if masked else None
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), LargestTensor() as largest:
        network(random_tokens(batch, length), attention=attention).sum().backward()
    inner = batch * length * 4 * SMALL["hidden_size"]
    assert largest.numel == max(inner, length * length)  # the feed-forward layer, or the mask itself, once
    assert largest.numel < batch * SMALL["num_heads"] * length * length


def test_initial_network_predicts_uniform_and_blocks_are_identity():
    network = DDiT(DDiTConfig(**SMALL, **dict.fromkeys(SWITCHES, True)))
    tokens, sigma = random_tokens(2, 6), torch.rand(2, 6)
    assert torch.equal(network(tokens, condition=sigma), torch.zeros(2, 6, SMALL["vocab_size"]))
    embedded = network.vocab_embed(tokens)
    assert torch.equal(network.features(tokens, condition=sigma), network.output_layer.norm_final(embedded))


def test_reset_parameters_draws_all_weights():
    network = DDiT(DDiTConfig(**SMALL, **dict.fromkeys(SWITCHES, True)))
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, 7.0)
    network.reset_parameters()
    for name, parameter in network.named_parameters():
        if name.startswith("output_layer.linear") or "adaLN" in name:
            assert not parameter.any(), name
        elif "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:  # uniform, with a bound set by the number of inputs
            weight = network.get_parameter(name.replace("bias", "weight"))
            bound = weight.shape[-1] ** -0.5
            assert bound / 3 < parameter.abs().max() <= bound, name


@pytest.mark.parametrize("switched_on", list(itertools.product([False, True], repeat=2)))
def test_condition_changes_output_only_if_switched_on(switched_on):
    switches = dict(zip(SWITCHES, (True, *switched_on), strict=True))
    network, tokens = random_network(**switches), random_tokens(2, 5)
    sigma = torch.rand(2, 5)
    quiet, loud = network(tokens, condition=sigma), network(tokens, condition=sigma + 1)
    assert torch.equal(quiet, loud) == (not any(switched_on))
    same_everywhere = network(tokens, condition=sigma[:1, :1])
    expected = network(tokens, condition=sigma[:1, :1].expand(2, 5))
    torch.testing.assert_close(same_everywhere, expected, **EXACT)


def test_blend_interpolates_embedding_to_last_row():
    network, tokens = random_network(), random_tokens(2, 5)
    last = torch.full_like(tokens, SMALL["vocab_size"] - 1)
    blend = torch.zeros(2, 5)
    torch.testing.assert_close(network(tokens, blend=blend), network(tokens), **EXACT)
    torch.testing.assert_close(network(tokens, blend=blend + 1), network(last), **EXACT)
    rows = network.vocab_embed(tokens, blend + 0.25)
    table = network.vocab_embed.embedding
    torch.testing.assert_close(rows, 0.75 * table[tokens] + 0.25 * table[-1], **EXACT)


def test_bfloat16_output_is_near_float32_with_float32_norms():
    network = random_network(**dict.fromkeys(SWITCHES, True)).float()
    arguments = {
        "condition": torch.rand(2, 6),
        "blend": torch.rand(2, 6),
        "attention": torch.ones(1, 6, 6, dtype=torch.bool).tril(),
    }
    tokens = random_tokens(2, 6)
    expected = network(tokens, **arguments)
    close = {"atol": 0.05 * expected.abs().max().item(), "rtol": 0}
    seen = set()
    for norm in (m for m in network.modules() if isinstance(m, torch.nn.LayerNorm)):
        norm.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        autocast = network(tokens, **arguments)
    assert seen == {torch.float32}
    torch.testing.assert_close(autocast.float(), expected, **close)
    cast = network.bfloat16()(tokens, **arguments)
    assert cast.dtype == torch.bfloat16
    torch.testing.assert_close(cast.float(), expected, **close)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("recomputation", ["selective", "full"])
def test_activation_recomputation_keeps_gradients(recomputation, told, dropout):
    network = random_network(dropout=dropout, **dict.fromkeys(SWITCHES, told)).train()
    tokens, condition = random_tokens(2, 6), torch.rand(2, 6).double() if told else None
    gradients = []
    for network.checkpoint_activations in ("none", recomputation):
        torch.manual_seed(4)
        network.zero_grad()
        network(tokens, condition=condition).pow(2).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], **EXACT)


class OperatorCounts(TorchDispatchMode):
    """Counts the calls of each operator."""

    def __init__(self):
        super().__init__()
        self.times = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.times[operator.overloadpacket.__name__] += 1
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("cut_up", [False, True])
@pytest.mark.parametrize("changed", ["nothing", "dropout", "gates"])
def test_selective_recomputation_repeats_no_matrix_product(changed, cut_up, monkeypatch):
    """Products and attention run once, except the narrow products of adaLN. Norms and activations run twice."""
    monkeypatch.setattr("hdlm.network.pieces._SIZE", 2)
    network = random_network(
        dropout=0.3 * (changed == "dropout"), **dict.fromkeys(SWITCHES, changed == "gates")
    ).train()
    tokens = random_tokens(2, 6)
    condition = torch.rand(2, 6).double() if changed == "gates" else None
    attention = torch.eye(6, dtype=torch.bool)[None] if cut_up else None
    counts = {}
    for network.checkpoint_activations in ("none", "selective", "full"):
        with OperatorCounts() as counted:
            network(tokens, condition=condition, attention=attention).pow(2).sum().backward()
        counts[network.checkpoint_activations] = counted.times

    def costly(times):
        return sum(n for name, n in times.items() if name in {"mm", "addmm", "bmm"} or "dot_product" in name)

    kept, selective, full = counts["none"], counts["selective"], counts["full"]
    narrow = len(network.blocks) if changed == "gates" else 0
    assert costly(selective) == costly(kept) + narrow
    assert costly(full) > costly(selective)
    assert selective["gelu"] == 2 * kept["gelu"] == full["gelu"]
    assert selective["native_layer_norm"] == full["native_layer_norm"] > kept["native_layer_norm"]


@pytest.mark.filterwarnings(
    "ignore:flex_attention called without torch.compile", "ignore::DeprecationWarning:torch"
)
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_selective_recomputation_keeps_flex_attention_output(compiled):
    """The second pass returns the memory of the first pass, so no kernel runs again."""
    if compiled and not has_compiler(torch.device("cpu")):
        pytest.skip("no compiler here")
    attend = _flex() if compiled else flex_attention
    mask = create_block_mask(lambda b, h, q, k: q >= k, 1, 1, 256, 256, device="cpu")
    query = torch.randn(1, 2, 256, 16)
    policy = functools.partial(recomputation._policy, random_network().blocks[0])
    first, second = create_selective_checkpoint_contexts(policy)
    with torch.no_grad():
        with first:
            found = attend(query, query, query, block_mask=mask)
        with second:
            again = attend(query, query, query, block_mask=mask)
    assert found.data_ptr() == again.data_ptr()


@pytest.mark.parametrize(("changed", "products"), [("nothing", 3), ("dropout", 4), ("gates", 4)])
def test_selective_recomputation_saves_only_needed_products(changed, products):
    """Saved: the products for queries, keys and values, the attention output, and the feed-forward products."""
    network = random_network(
        dropout=0.3 * (changed == "dropout"), **dict.fromkeys(SWITCHES, changed == "gates")
    )
    block, kept, asked = network.blocks[0], [], SelectiveCheckpointContext(is_recompute=False)
    width = network.config.hidden_size
    for summed, made in (
        (SMALL["cond_dim"], 6 * width),
        (width, 3 * width),
        (width, width),
        (width, 4 * width),
        (4 * width, width),
    ):
        left, right = torch.empty(5, summed), torch.empty(summed, made)
        kept.append(recomputation._policy(block, asked, torch.ops.aten.mm.default, left, right))
    assert kept.count(CheckpointPolicy.MUST_SAVE) == products
    assert (
        recomputation._policy(block, asked, torch.ops.aten.gelu.default, left)
        == CheckpointPolicy.PREFER_RECOMPUTE
    )


def test_network_learns_to_copy_earlier_token():
    """In 150 steps the network learns to predict the token two positions to the left."""
    torch.manual_seed(5)
    network = DDiT(DDiTConfig(**SMALL))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    first, last = torch.inf, torch.inf
    for step in range(150):
        tokens = torch.randint(SMALL["vocab_size"], (16, 12))
        logits = network(tokens)[:, 2:]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, :-2].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = (loss.item() if step == 0 else first), loss.item()
    assert last < 0.1 * first


@pytest.mark.slow
def test_network_compiles_to_one_graph():
    """Runs in a subprocess without the shape checks of the tests, because Dynamo would trace them."""
    script = """
        import torch
        from hdlm.network import DDiT, DDiTConfig
        torch.manual_seed(0)
        network = DDiT(DDiTConfig(13, 32, 2, 4, cond_dim=8, timestep_embedding=True, condition_blocks=True))
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        tokens, attention = torch.randint(13, (2, 6)), torch.ones(1, 6, 6, dtype=torch.bool).tril()
        results = []
        for run in (network, compiled):
            network.zero_grad()
            logits = run(tokens, condition=torch.ones(2, 6), blend=torch.ones(2, 6) / 2, attention=attention)
            logits.pow(2).mean().backward()
            results.append([logits, *(p.grad.clone() for p in network.parameters())])
        torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"condition": torch.ones(2, 5)}, "leave `condition` out"),
        ({"store": torch.arange(3)}, "there is no `cache`"),
        ({"attention": torch.ones(1, 5, 6, dtype=torch.bool)}, r"5 keys .* got shape \(1, 5, 6\)"),
    ],
)
def test_network_rejects_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        random_network()(random_tokens(2, 5), **arguments)


def test_conditioned_network_requires_condition():
    with pytest.raises(ValueError, match="pass `condition`"):
        random_network(timestep_embedding=True)(random_tokens(2, 5))
