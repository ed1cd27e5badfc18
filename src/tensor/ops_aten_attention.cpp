// Attention from ATen's own ops, causal or full, all sequences of a batch at once: every device, every floating dtype.
//
// The rows are laid out as a grid [S sequences, M longest]. Where sequences differ in length the places behind a short
// one hold zeros: the causal mask hides them from its rows (with full attention a mask of their own does), and their
// own gradients are zero, so they add nothing. Queries of one key/value head stand below each other, so that grouped
// queries need no repeated keys:
//     scores [S*K, G*M, M] = scale q k^T,   p = exp(scores - lse),   out = p v
//     ds = p o (d_out v^T - rowsum(out o d_out)) scale,   dq = ds k,   dk = ds^T q,   dv = p^T d_out
// Products take operands of the activations' dtype and give float32 beside bfloat16, as fused attention kernels do.
// Shape letters: K key/value heads, G query heads of each, E head size.
#include <algorithm>
#include <cmath>
#include <limits>

#include "hetlora/base/error.hpp"
#include "hetlora/tensor/ops.hpp"

namespace hetlora::aten {
namespace {

/// Largest block of scores that exists at a time; a batch with more goes through in several parts.
constexpr std::int64_t scores_bytes = std::int64_t{1} << 28;

/// Geometry of a batch, and the way from token rows to the grid and back.
struct Grid {
    std::int64_t row0 = 0;
    std::int64_t rows = 0;
    std::int64_t sequences = 0;
    std::int64_t longest = 0;
    std::int64_t kv_heads = 0;
    std::int64_t group = 0;  ///< query heads per key/value head
    at::Tensor place_N;      ///< undefined: the rows are the grid

    /// [S*K, heads_per_kv*M, E] of x [N, K*heads_per_kv*E], zeros where a sequence has no row.
    [[nodiscard]] at::Tensor spread(const at::Tensor& x, std::int64_t heads_per_kv) const {
        at::Tensor grid = x.narrow(0, row0, rows);
        if (place_N.defined()) {
            grid = at::zeros({sequences * longest, x.size(1)}, x.options()).index_copy_(0, place_N, grid);
        }
        const std::int64_t columns = x.size(1) / (kv_heads * heads_per_kv);
        return grid.reshape({sequences, longest, kv_heads, heads_per_kv, columns})
            .permute({0, 2, 3, 1, 4})
            .reshape({sequences * kv_heads, heads_per_kv * longest, columns});
    }

    /// The way back: writes y [S*K, heads_per_kv*M, E] to the rows of target, in its dtype.
    void collect(const at::Tensor& y, std::int64_t heads_per_kv, at::Tensor target) const {
        const at::Tensor grid = y.reshape({sequences, kv_heads, heads_per_kv, longest, y.size(2)})
                                    .permute({0, 3, 1, 2, 4})
                                    .reshape({sequences * longest, -1});
        target.narrow(0, row0, rows).copy_(place_N.defined() ? grid.index_select(0, place_N) : grid);
    }

    /// True at keys that a query must not see: later ones [M, M], or, with full attention, places without a row
    /// [S*K, 1, 1, M] (undefined where every place has one).
    [[nodiscard]] at::Tensor hidden_keys(const at::Tensor& like, bool causal) const {
        const at::TensorOptions options = like.options().dtype(at::kBool);
        if (causal) return at::ones({longest, longest}, options).triu_(1);
        if (!place_N.defined()) return {};
        return at::ones({sequences * longest}, options)
            .index_fill_(0, place_N, 0)
            .view({sequences, 1, 1, longest})
            .repeat_interleave(kv_heads, 0);
    }
    /// Those of problems first, first + 1, ..., first + count - 1.
    [[nodiscard]] static at::Tensor part_of(const at::Tensor& hidden, std::int64_t first, std::int64_t count) {
        return hidden.defined() && hidden.dim() == 4 ? hidden.narrow(0, first, count) : hidden;
    }
};

std::int64_t longest_of(const std::vector<AttentionSpan>& spans) {
    return std::ranges::max(spans, {}, &AttentionSpan::length).length;
}

Grid make_grid(const std::vector<AttentionSpan>& spans, std::int64_t heads, std::int64_t kv_heads,
               const at::Tensor& place_N, at::Device device) {
    const AttentionSpan last = spans.back();
    return {.row0 = spans.front().row0,
            .rows = last.row0 + last.length - spans.front().row0,
            .sequences = std::ssize(spans),
            .longest = longest_of(spans),
            .kv_heads = kv_heads,
            .group = heads / kv_heads,
            .place_N = place_N.defined() ? place_N : span_places(spans, device)};
}

/// a b for batches of matrices, float32 where the operands are bfloat16.
at::Tensor product(const at::Tensor& a, const at::Tensor& b) {
    if (a.scalar_type() != at::kBFloat16) return at::bmm(a, b);
    return a.is_cuda() ? at::bmm(a, b, at::kFloat) : at::bmm(a.to(at::kFloat), b.to(at::kFloat));
}

/// Calls body(first, count) for parts of the S*K problems whose scores fit.
template <typename Body>
void in_parts(const Grid& grid, const at::Tensor& q, Body body) {
    const std::int64_t each = grid.group * grid.longest * grid.longest * (q.scalar_type() == at::kDouble ? 8 : 4);
    const std::int64_t problems = grid.sequences * grid.kv_heads;
    const std::int64_t part = std::clamp<std::int64_t>(scores_bytes / each, 1, problems);
    for (std::int64_t first = 0; first < problems; first += part) body(first, std::min(part, problems - first));
}

/// scale q k^T, minus infinity at hidden keys.
at::Tensor masked_scores(const Grid& grid, const at::Tensor& q, const at::Tensor& k, double scale,
                         const at::Tensor& hidden) {
    at::Tensor scores = product(q, k.transpose(1, 2)).mul_(scale);
    if (!hidden.defined()) return scores;
    scores.unflatten(1, {grid.group, grid.longest}).masked_fill_(hidden, -std::numeric_limits<double>::infinity());
    return scores;
}

}  // namespace

at::Tensor span_places(const std::vector<AttentionSpan>& spans, at::Device device) {
    if (spans.empty()) return {};
    const std::int64_t longest = longest_of(spans);
    bool equal = true;
    std::int64_t next = spans.front().row0;
    for (const auto& span : spans) {
        if (span.row0 != next) throw bug_error("span_places: a span starts at row {}, not {}", span.row0, next);
        next += span.length;
        equal = equal && span.length == longest;
    }
    if (equal) return {};
    at::Tensor place =
        at::empty({next - spans.front().row0}, at::TensorOptions().dtype(at::kLong).pinned_memory(device.is_cuda()));
    std::int64_t* to = place.data_ptr<std::int64_t>();
    for (std::size_t s = 0; s < spans.size(); ++s) {
        for (std::int64_t i = 0; i < spans[s].length; ++i) *to++ = static_cast<std::int64_t>(s) * longest + i;
    }
    return place.to(device, /*non_blocking=*/true);
}

void attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, std::int64_t heads, std::int64_t kv_heads,
               const std::vector<AttentionSpan>& spans, at::Tensor out, at::Tensor lse, const at::Tensor& place,
               bool causal) {
    if (spans.empty()) return;
    const double scale = 1.0 / std::sqrt(static_cast<double>(q.size(1) / heads));
    const Grid grid = make_grid(spans, heads, kv_heads, place, q.device());
    const at::Tensor q_grid = grid.spread(q, grid.group);
    const at::Tensor k_grid = grid.spread(k, 1);
    const at::Tensor v_grid = grid.spread(v, 1);
    const at::Tensor hidden = grid.hidden_keys(q, causal);
    std::vector<at::Tensor> outs;
    std::vector<at::Tensor> norms;
    in_parts(grid, q, [&](std::int64_t first, std::int64_t count) {
        at::Tensor p = masked_scores(grid, q_grid.narrow(0, first, count), k_grid.narrow(0, first, count), scale,
                                     Grid::part_of(hidden, first, count));
        norms.push_back(at::logsumexp(p, {2}, /*keepdim=*/true));
        p.sub_(norms.back()).exp_();
        outs.push_back(product(p.to(v.scalar_type()), v_grid.narrow(0, first, count)));
    });
    grid.collect(outs.size() == 1 ? outs.front() : at::cat(outs), grid.group, out);
    if (lse.defined()) grid.collect(norms.size() == 1 ? norms.front() : at::cat(norms), grid.group, lse);
}

void attention_backward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, std::int64_t heads,
                        std::int64_t kv_heads, const std::vector<AttentionSpan>& spans, const at::Tensor& out,
                        const at::Tensor& lse, const at::Tensor& d_out, ops::AttentionGradient gradient,
                        const at::Tensor& place, bool causal) {
    if (spans.empty()) return;
    const double scale = 1.0 / std::sqrt(static_cast<double>(q.size(1) / heads));
    const Grid grid = make_grid(spans, heads, kv_heads, place, q.device());
    const at::Tensor q_grid = grid.spread(q, grid.group);
    const at::Tensor k_grid = grid.spread(k, 1);
    const at::Tensor v_grid = grid.spread(v, 1);
    const at::Tensor d_grid = grid.spread(d_out, grid.group);
    const at::Tensor lse_grid = grid.spread(lse, grid.group);
    const at::Tensor delta =
        (grid.spread(out, grid.group).to(lse.scalar_type()) * d_grid.to(lse.scalar_type())).sum({2}, /*keepdim=*/true);
    const at::Tensor hidden = grid.hidden_keys(q, causal);
    std::vector<at::Tensor> dq;
    std::vector<at::Tensor> dk;
    std::vector<at::Tensor> dv;
    in_parts(grid, q, [&](std::int64_t first, std::int64_t count) {
        const auto part = [&](const at::Tensor& x) { return x.narrow(0, first, count); };
        const at::Tensor p = masked_scores(grid, part(q_grid), part(k_grid), scale, Grid::part_of(hidden, first, count))
                                 .sub_(part(lse_grid))
                                 .exp_();
        const at::Tensor ds = product(part(d_grid), part(v_grid).transpose(1, 2))
                                  .sub_(part(delta))
                                  .mul_(p)
                                  .mul_(scale)
                                  .to(q.scalar_type());
        dq.push_back(product(ds, part(k_grid)));
        dk.push_back(product(ds.transpose(1, 2), part(q_grid)));
        dv.push_back(product(p.to(v.scalar_type()).transpose(1, 2), part(d_grid)));
    });
    const auto whole = [](const std::vector<at::Tensor>& parts) {
        return parts.size() == 1 ? parts.front() : at::cat(parts);
    };
    grid.collect(whole(dq), grid.group, gradient.q);
    grid.collect(whole(dk), 1, gradient.k);
    grid.collect(whole(dv), 1, gradient.v);
}

}  // namespace hetlora::aten
