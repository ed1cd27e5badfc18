"""Merges of products, stacks and residuals against dense NumPy in float64, written from the equations alone.

The C++ side (tests/fed/product_merge_tool.cpp) gets all cases in one file and answers in another. Cases are random:
mixed ranks, slots that only some clients have, one client, zero factors, rank-deficient and cancelling stacks, more
slots than rows or columns. Tolerance 1e-10 of the size of the target; 1e-5 where the result is rounded to fp32.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = Path(os.environ.get("HETLORA_BUILD_DIR", ROOT / "build")) / "tests" / "product_merge_tool"
SHAPES = ([(5, 7), (13, 11)], [(3, 7), (1, 6), (6, 1)], [(24, 40)], [(9, 9), (40, 12)])
LEVELS = [2, 4, 8]
SPECIAL = ("random", "zero factors", "zero weights", "same client twice", "low rank", "cancelling", "ill-conditioned")
N_CASES = 84

pytestmark = pytest.mark.skipif(not TOOL.exists(), reason=f"{TOOL} is not built")


def parameters(shapes, lora_rank):
    return lora_rank * sum(d_out + d_in for d_out, d_in in shapes)


def unpack(shapes, flat, lora_rank):
    """[(B [d_out, r], A [r, d_in])] of every matrix from the canonical form."""
    flat, pairs, at = np.asarray(flat), [], 0
    for d_out, d_in in shapes:
        a = flat[at : at + lora_rank * d_in].reshape(lora_rank, d_in)
        at += lora_rank * d_in
        pairs.append((flat[at : at + lora_rank * d_out].reshape(lora_rank, d_out).T, a))
        at += lora_rank * d_out
    assert at == len(flat)
    return pairs


def pack(pairs):
    return np.concatenate([part.ravel() for b, a in pairs for part in (a, b.T)])


def random_client(rng, case, shapes, special):
    choice = LEVELS if case["weighting"] == "levels" else np.arange(1, 9)
    lora_rank = int(rng.choice(choice)) if not case["equal_ranks"] else case["rank_max"]
    pairs = []
    for d_out, d_in in shapes:
        b, a = rng.normal(size=(d_out, lora_rank)), rng.normal(size=(lora_rank, d_in))
        if special == "zero factors" and rng.random() < 0.6:
            b = 0 * b
        if special == "low rank":  # every client in the same two directions
            b = case["basis_b"][d_out] @ rng.normal(size=(2, lora_rank))
        if special == "ill-conditioned":
            b = b * 10.0 ** rng.uniform(-7, 3, size=lora_rank)
            a = a * 10.0 ** rng.uniform(-3, 7, size=lora_rank)[:, None]
        pairs.append((b, a))
    weights = rng.uniform(0.1, 50, size=len(shapes))
    if special == "zero weights":
        weights[rng.random(len(shapes)) < 0.7] = 0.0
    scale = case["scale"] if case["equal_ranks"] else float(rng.choice([0.5, 2.0, 16.0 / lora_rank]))
    return {"lora_rank": lora_rank, "scale": scale, "weights": weights.tolist(), "factors": pack(pairs).tolist()}


def make_case(seed):
    rng = np.random.default_rng(seed)
    shapes = SHAPES[seed % len(SHAPES)]
    special = SPECIAL[seed % len(SPECIAL)]
    case = {
        "seed": seed,
        "special": special,
        "shapes": shapes,
        "weighting": ("all", "contributors", "levels")[seed % 3],
        "split": ("left", "sqrt", "right")[seed // 3 % 3],
        "null_slots": ("literal", "learnable")[seed // 9 % 2],
        "driver": "symmetric" if seed % 5 == 0 else "automatic",
        "levels": LEVELS,
        "rank_max": int(rng.choice([2, 4, 8, 12])),
        "scale": float(rng.choice([0.25, 1.0, 2.0, 16.0])),
        "tau": float(rng.choice([0.5, 0.8, 0.9, 0.99, 1.0])),
        "equal_ranks": seed % 4 == 1,
        "round_to_fp32": seed % 11 == 3,
        "residual_rank": int(rng.integers(1, 9)),
        "basis_b": {d_out: rng.normal(size=(d_out, 2)) for d_out, _ in shapes},
    }
    if case["equal_ranks"] and case["weighting"] == "levels":
        case["rank_max"] = 4
    n_clients = int(rng.choice([1, 2, 3, 10]))
    case["clients"] = [random_client(rng, case, shapes, special) for _ in range(n_clients)]
    if special == "same client twice":
        case["clients"] += [dict(case["clients"][0])]
    if special == "cancelling":
        case["clients"] = case["clients"][:1] * 2
        opposite = [(-b, a) for b, a in unpack(shapes, case["clients"][0]["factors"], case["clients"][0]["lora_rank"])]
        case["clients"][1] = {**case["clients"][0], "factors": pack(opposite).tolist()}
    if max(client["lora_rank"] for client in case["clients"]) <= case["rank_max"]:
        case["mean"] = pack(mean_factors(case)).tolist()
    return case


def weight(case, k, m, j):
    """w[k][m][j], from the definitions in methods: all; clients with r_k > j; (l, h] with r_k >= h."""
    clients = case["clients"]
    counted = clients
    if case["weighting"] == "contributors":
        counted = [client for client in clients if client["lora_rank"] > j]
    if case["weighting"] == "levels":
        upper = min(level for level in LEVELS if level > j)
        counted = [client for client in clients if client["lora_rank"] >= upper]
    total = sum(client["weights"][m] for client in counted)
    return clients[k]["weights"][m] / total if total > 0 else 1.0 / len(counted)


def terms(case):
    """(k, m, j, w, s_k, b_kj, a_kj) of everything that was uploaded."""
    for k, client in enumerate(case["clients"]):
        for m, (b, a) in enumerate(unpack(case["shapes"], client["factors"], client["lora_rank"])):
            for j in range(client["lora_rank"]):
                yield k, m, j, weight(case, k, m, j), client["scale"], b[:, j], a[j]


def targets(case):
    """P_m dense, and the sum of the sizes of its terms."""
    dense = [np.zeros(shape) for shape in case["shapes"]]
    size = np.zeros(len(case["shapes"]))
    for _, m, _, w, s, b, a in terms(case):
        dense[m] += w * s * np.outer(b, a)
        size[m] += w * s * np.linalg.norm(b) * np.linalg.norm(a)
    return dense, size


def mean_factors(case):
    """(B_bar, A_bar) of every matrix at rank_max, slot by slot with the same weights."""
    r = case["rank_max"]
    pairs = [(np.zeros((d_out, r)), np.zeros((r, d_in))) for d_out, d_in in case["shapes"]]
    for _, m, j, w, _, b, a in terms(case):
        pairs[m][0][:, j] += w * b
        pairs[m][1][j] += w * a
    return pairs


def dense_of(shape, matrix):
    r = matrix["lora_rank"]
    return np.reshape(matrix["bt"], (r, shape[0])).T @ np.reshape(matrix["a"], (r, shape[1]))


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    cases = [make_case(seed) for seed in range(N_CASES)]
    folder = tmp_path_factory.mktemp("merge")
    plain = [{key: value for key, value in case.items() if key != "basis_b"} for case in cases]
    (folder / "cases.json").write_text(json.dumps(plain))
    run = subprocess.run([TOOL, folder / "cases.json", folder / "out.json"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return list(zip(cases, json.loads((folder / "out.json").read_text()), strict=True))


@pytest.fixture(params=range(N_CASES))
def pair(answered, request):
    return answered[request.param]


def test_cases_cover_what_the_docstring_says(answered):
    cases = [case for case, _ in answered]
    assert {case["special"] for case in cases} == set(SPECIAL)
    assert any(len(case["clients"]) == 1 for case in cases)
    slots = [(sum(c["lora_rank"] for c in case["clients"]), shape) for case in cases for shape in case["shapes"]]
    assert any(r > max(shape) for r, shape in slots) and any(r < min(shape) for r, shape in slots)
    assert any(min(shape) < r < max(shape) for r, shape in slots)
    assert any(case["rank_max"] > max(c["lora_rank"] for c in case["clients"]) for case in cases)
    assert sum("mean" in case for case in cases) > 20
    seen = {(case["weighting"], case["split"]) for case in cases}
    assert len(seen) == 9


def test_merge_is_the_best_approximation_of_the_target(pair):
    case, answer = pair
    dense, size = targets(case)
    r = case["rank_max"]
    tolerance = 1e-5 if case["round_to_fp32"] else 1e-10
    for m, (b, a) in enumerate(unpack(case["shapes"], answer["global"], r)):
        u, sigma, vt = np.linalg.svd(dense[m], full_matrices=False)
        n = len(answer["singular_values"][m])
        assert n == min(sum(c["lora_rank"] for c in case["clients"]), *case["shapes"][m])
        np.testing.assert_allclose(answer["singular_values"][m], sigma[:n], rtol=0, atol=1e-12 * size[m])
        assert np.all(sigma[n:] <= 1e-13 * size[m])
        merged = case["scale"] * b @ a
        # Eckart-Young: the error is the tail, whatever the gap.
        tail = np.sqrt(np.sum(sigma[r:] ** 2))
        assert np.linalg.norm(dense[m] - merged) == pytest.approx(tail, rel=0, abs=tolerance * size[m])
        best = (u[:, :r] * sigma[:r]) @ vt[:r]
        gap = (sigma[r - 1] - sigma[r]) / sigma[0] if r < len(sigma) and sigma[0] > 1e-13 * size[m] else 1.0
        if gap > 1e-3:
            assert np.linalg.norm(merged - best) <= tolerance * size[m]
        total = np.sum(sigma**2)
        if total > (1e-13 * size[m]) ** 2 and total > 0:
            assert answer["energy_kept"][m] == pytest.approx(np.sum(sigma[:r] ** 2) / total, abs=1e-12)


def test_factors_are_split_as_the_method_says(pair):
    case, answer = pair
    _, size = targets(case)
    tolerance = 1e-6 if case["round_to_fp32"] else 1e-11
    for m, (b, a) in enumerate(unpack(case["shapes"], answer["global"], case["rank_max"])):
        n = answer["n_filled"][m]
        sigma = np.array(answer["singular_values"][m])[:n] / case["scale"]
        assert n == min(case["rank_max"], np.count_nonzero(answer["singular_values"][m]))
        b_size = {"left": sigma, "sqrt": np.sqrt(sigma), "right": np.ones(n)}[case["split"]]
        a_size = {"left": np.ones(n), "sqrt": np.sqrt(sigma), "right": sigma}[case["split"]]
        np.testing.assert_allclose(np.linalg.norm(b[:, :n], axis=0), b_size, rtol=tolerance)
        np.testing.assert_allclose(np.linalg.norm(a[:n], axis=1), a_size, rtol=tolerance)
        draws_a = case["split"] == "left" or (case["split"] == "sqrt" and case["null_slots"] == "learnable")
        drawn = {
            "a": a[n : a.shape[1]] if draws_a else a[:0],
            "b": b.T[n : len(b)] if case["split"] == "right" else b.T[:0],
        }
        for name, rows in drawn.items():
            np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, rtol=tolerance, err_msg=name)
        if not draws_a:
            assert not a[n:].any()
        if case["split"] != "right":
            assert not b[:, n:].any()


def test_weights_are_those_of_the_definition(pair):
    case, answer = pair
    for k, m, j, w, *_ in terms(case):
        assert answer["weights"][k][m * case["clients"][k]["lora_rank"] + j] == pytest.approx(w, rel=1e-14)


def test_stack_is_exact_and_its_cut_keeps_the_energy(pair):
    case, answer = pair
    dense, size = targets(case)
    n_bytes = 0
    for m, shape in enumerate(case["shapes"]):
        whole, cut = answer["stack"]["matrices"][m], answer["by_energy"]["matrices"][m]
        assert whole["lora_rank"] == sum(client["lora_rank"] for client in case["clients"])
        assert np.linalg.norm(dense_of(shape, whole) - dense[m]) <= 1e-14 * size[m]
        sigma = np.linalg.svd(dense[m], compute_uv=False)
        sigma[sigma <= max(1e-12 * sigma[0], 1e-14 * size[m])] = 0
        kept = np.cumsum(sigma**2)
        p = cut["lora_rank"]
        if case["tau"] < 1:  # at 1 the last bits decide
            assert p == (np.argmax(kept >= case["tau"] * kept[-1]) + 1 if kept[-1] > 0 else 0)
        tail = np.sqrt(np.sum(sigma[p:] ** 2))
        error = np.linalg.norm(dense_of(shape, cut) - dense[m])
        assert error == pytest.approx(tail, rel=0, abs=1e-10 * size[m])
        n_bytes += 8 * whole["lora_rank"] * sum(shape)
    assert answer["stack"]["bytes"] == n_bytes


def test_residual_makes_the_mean_exact(pair):
    case, answer = pair
    if "mean" not in case:  # a client has a lora_rank above rank_max: there is no such mean
        assert "residual" not in answer
        return
    dense, size = targets(case)
    for m, (shape, (b_bar, a_bar)) in enumerate(zip(case["shapes"], mean_factors(case), strict=True)):
        residual = dense[m] - case["scale"] * b_bar @ a_bar
        scale_of_all = size[m] + case["scale"] * np.linalg.norm(b_bar) * np.linalg.norm(a_bar)
        given = answer["residual"]["matrices"][m]
        assert given["lora_rank"] == sum(client["lora_rank"] for client in case["clients"])
        assert np.linalg.norm(dense_of(shape, given) - residual) <= 1e-13 * scale_of_all
        cut = answer["residual_cut"]["matrices"][m]
        sigma = np.linalg.svd(residual, compute_uv=False)
        assert cut["lora_rank"] <= case["residual_rank"]
        tail = np.sqrt(np.sum(sigma[case["residual_rank"] :] ** 2))
        error = np.linalg.norm(dense_of(shape, cut) - residual)
        assert error == pytest.approx(tail, rel=0, abs=1e-10 * scale_of_all)


def test_one_client_gets_its_own_product_back(answered):
    seen = 0
    for case, answer in answered:
        if len(case["clients"]) > 1 or case["clients"][0]["lora_rank"] > case["rank_max"]:
            continue
        seen += 1
        client = case["clients"][0]
        own = unpack(case["shapes"], client["factors"], client["lora_rank"])
        for (b, a), (b0, a0) in zip(unpack(case["shapes"], answer["global"], case["rank_max"]), own, strict=True):
            size = np.linalg.norm(b0, axis=0) @ np.linalg.norm(a0, axis=1) * client["scale"]
            tolerance = 1e-5 if case["round_to_fp32"] else 1e-10
            assert np.linalg.norm(case["scale"] * b @ a - client["scale"] * b0 @ a0) <= tolerance * size
    assert seen >= 3
