"""oracle_logits.py writes what its header says, and its fp64 is fp64; micro.py writes a valid prepared file."""

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import micro  # noqa: E402
import oracle_logits  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from simulated_model import PlainLlama  # noqa: E402


@pytest.mark.parametrize("tied", [False, True])
def test_oracle_agrees_with_a_plain_forward_pass(tmp_path, tied):
    model = micro.build_model(tmp_path / "model", seed=1, tied=tied)
    out = tmp_path / "o.safetensors"
    options = ["--dtype", "float64", "--lora-rank", "3", "--targets", "all-linear"]
    assert oracle_logits.main([str(model), str(out), *options]) == 0
    tensors = load_file(out)
    llama = PlainLlama(model, torch.float64)
    factors = {}
    for name, d_out, d_in in llama.matrices("all-linear"):
        a, b = tensors[f"A/{name}"], tensors[f"B/{name}"]
        assert a.shape == (3, d_in) and b.shape == (d_out, 3) and a.any() and b.any()
        factors[name] = (a.clone().requires_grad_(), b.T.clone().requires_grad_())
    total, count, i = 0.0, 0, 0
    while f"tokens_{i}" in tensors:
        tokens, mask = tensors[f"tokens_{i}"].long(), tensors[f"mask_{i}"]
        logits = llama.logits(tokens[None], factors, 2.0)[0]
        assert mask[0] == 0
        assert torch.allclose(logits, tensors[f"logits_{i}"], rtol=0, atol=1e-12)
        rows = torch.nonzero(mask)[:, 0]
        total = total - torch.log_softmax(logits[rows - 1], -1)[range(len(rows)), tokens[rows]].sum()
        count, i = count + len(rows), i + 1
    assert i >= 3 and count == int(tensors["n_targets"])
    (total / count).backward()
    assert float(total.detach() / count) == pytest.approx(float(tensors["loss"]), abs=1e-13)
    for name, (a, bt) in factors.items():
        assert torch.allclose(a.grad, tensors[f"grad_A/{name}"], rtol=0, atol=1e-13)
        assert torch.allclose(bt.grad.T, tensors[f"grad_B/{name}"], rtol=0, atol=1e-13)


def test_micro_corpus_is_consistent(tmp_path):
    with h5py.File(micro.build_corpus(tmp_path / "micro.h5")) as file:
        offset, mask, ids = file["sequences/offset"][:], file["tokens/mask"][:], file["tokens/ids"][:]
        client, part, prompt = (file[f"sequences/{name}"][:] for name in ("client", "part", "prompt_length"))
        assert len(ids) == len(mask) == offset[-1] and ids.max() < micro.VOCAB_SIZE == file.attrs["vocab_size"]
        assert not mask[offset[:-1]].any(), "token 0 of a sequence is never a target"
        order = list(zip(client.tolist(), part.tolist(), strict=True))
        assert order == sorted(order)
        assert np.array_equal(file["clients/offset"][:], np.searchsorted(client, range(13)))
        held_out = file["clients/held_out"][:].astype(bool)
        assert held_out.sum() == 2 and not (part[held_out[client]] == 0).any()
        for s, p in enumerate(prompt):  # the last masked stretch starts at prompt_length
            own = mask[offset[s] : offset[s + 1]]
            assert own[p] == 1 and own[p - 1] == 0 and own[p:].sum() == own[p:].nonzero()[0].max() + 1
        assert file["vocab/offset"][-1] == len(file["vocab/bytes"])
