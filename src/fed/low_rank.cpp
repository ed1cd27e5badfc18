#include "hetlora/fed/low_rank.hpp"

#include <algorithm>
#include <cmath>
#include <optional>
#include <span>

#include "each_matrix.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/tensor/torch.hpp"

namespace hetlora {

namespace {

/// sigma_i / sigma_0 at or below this is a null direction.
constexpr double null_ratio = 1e-12;
/// And sigma_i / sum_j |b_j| |a_j| at or below this.
constexpr double noise_ratio = 1e-14;

at::Tensor view(const std::vector<double>& values, std::int64_t rows, std::int64_t columns) {
    // from_blob wants a mutable pointer; nothing here writes through it.
    return at::from_blob(const_cast<double*>(values.data()), {rows, columns}, at::kDouble);
}

std::vector<double> to_vector(const at::Tensor& tensor) {
    const at::Tensor values = tensor.contiguous();
    return {values.const_data_ptr<double>(), values.const_data_ptr<double>() + values.numel()};
}

/// One stack of R columns of length d as Q core; Q is left out where R >= d.
struct Stack {
    at::Tensor core;        ///< [min(d, R), R]
    at::Tensor reflectors;  ///< [d, R], undefined without Q
    at::Tensor tau;
};

Stack reduce(const at::Tensor& columns) {
    const std::int64_t n_columns = columns.size(1);
    if (n_columns >= columns.size(0)) return {.core = columns, .reflectors = {}, .tau = {}};
    auto [reflectors, tau] = at::geqrf(columns);
    return {.core = reflectors.narrow(0, 0, n_columns).triu(), .reflectors = reflectors, .tau = tau};
}

/// Q times the columns of `inner` [min(d, R), n].
at::Tensor expand(const Stack& stack, const at::Tensor& inner) {
    if (!stack.reflectors.defined()) return inner;
    at::Tensor padded = at::zeros({stack.reflectors.size(0), inner.size(1)}, at::kDouble);
    padded.narrow(0, 0, inner.size(0)).copy_(inner);
    return at::ormqr(stack.reflectors, stack.tau, padded);
}

struct CoreSvd {
    at::Tensor u;  ///< [p, n]
    at::Tensor s;  ///< [n], descending
    at::Tensor v;  ///< [q, n]
};

std::optional<CoreSvd> try_svd(const at::Tensor& core) {
    try {
        auto [u, s, vh] = at::linalg_svd(core, false);
        if (!at::isfinite(s).all().item<bool>()) return std::nullopt;
        return CoreSvd{.u = u, .s = s, .v = vh.t()};
    } catch (const c10::Error&) {  // "failed to converge"
        return std::nullopt;
    }
}

/// [[0, C], [C^T, 0]] has the eigenvectors (u, v) / sqrt 2 with eigenvalue sigma, and (u, -v) / sqrt 2 with -sigma.
CoreSvd symmetric_svd(const at::Tensor& core, const std::string& name) {
    const std::int64_t p = core.size(0);
    const std::int64_t q = core.size(1);
    const std::int64_t n = std::min(p, q);
    at::Tensor whole = at::zeros({p + q, p + q}, at::kDouble);
    whole.narrow(0, 0, p).narrow(1, p, q).copy_(core);
    whole.narrow(0, p, q).narrow(1, 0, p).copy_(core.t());
    try {
        auto [values, vectors] = at::linalg_eigh(whole, "L");  // ascending
        const at::Tensor leading = vectors.narrow(1, p + q - n, n).flip(1);
        const auto unit = [](const at::Tensor& columns) {
            return columns / columns.norm(2, 0, true).clamp_min(1e-300);
        };
        return {.u = unit(leading.narrow(0, 0, p)),
                .s = values.narrow(0, p + q - n, n).flip(0).clamp_min(0.0),
                .v = unit(leading.narrow(0, p, q))};
    } catch (const c10::Error&) {
        throw training_error(
            "no singular value decomposition of the merged product of {} ({} x {} core) converged - look at the "
            "clients' factors (train.learning_rate too high?)",
            name, p, q);
    }
}

CoreSvd core_svd(const at::Tensor& core, SvdDriver driver, const std::string& name) {
    if (driver == SvdDriver::automatic) {
        if (auto svd = try_svd(core)) return *svd;
    }
    if (driver != SvdDriver::symmetric) {
        if (auto svd = try_svd(core.t().contiguous())) return {.u = svd->v, .s = svd->s, .v = svd->u};
    }
    return symmetric_svd(core, name);
}

void check(const LowRankMatrix& product) {
    if (product.lora_rank < 0 || std::ssize(product.a) != product.lora_rank * product.d_in ||
        std::ssize(product.bt) != product.lora_rank * product.d_out) {
        throw bug_error("product of {}: {} and {} values do not make {} slots of {} x {}", product.name,
                        product.a.size(), product.bt.size(), product.lora_rank, product.d_out, product.d_in);
    }
}

/// Turns every column pair so that the first of the largest |u| is positive.
void fix_signs(std::vector<double>& left, std::vector<double>& right, std::int64_t n) {
    const auto row = [n](std::vector<double>& values, std::int64_t i) {
        const std::size_t width = values.size() / static_cast<std::size_t>(n);
        return std::span(values).subspan(static_cast<std::size_t>(i) * width, width);
    };
    for (std::int64_t i = 0; i < n; ++i) {
        const auto u = row(left, i);
        const auto largest = std::ranges::max_element(u, {}, [](double value) { return std::abs(value); });
        if (*largest >= 0.0) continue;
        for (double& value : u) value = -value;
        for (double& value : row(right, i)) value = -value;
    }
}

/// Matrix after matrix cut to the number of slots that `choose` makes of its singular values.
template <typename Choose>
TruncatedDelta truncate(const LowRankDelta& delta, const Choose& choose) {
    TruncatedDelta result;
    result.delta.matrices.resize(delta.matrices.size());
    result.singular_values.resize(delta.matrices.size());
    result.energy_kept.resize(delta.matrices.size());
    for_each_matrix(delta.matrices.size(), [&](std::size_t m) {
        const LowRankMatrix& from = delta.matrices[m];
        const std::int64_t n_all = std::min({from.lora_rank, from.d_out, from.d_in});
        ProductSvd svd = product_svd(from, n_all);
        const std::int64_t n = std::min(choose(svd.singular_values), svd.n_vectors);
        svd.right.resize(static_cast<std::size_t>(n * from.d_in));
        svd.left.resize(static_cast<std::size_t>(n * from.d_out));
        for (std::size_t i = 0; i < svd.left.size(); ++i) {
            svd.left[i] *= svd.singular_values[i / static_cast<std::size_t>(from.d_out)];
        }
        result.energy_kept[m] = energy_share(svd.singular_values, n);
        result.singular_values[m] = std::move(svd.singular_values);
        result.delta.matrices[m] = {.name = from.name,
                                    .d_out = from.d_out,
                                    .d_in = from.d_in,
                                    .lora_rank = n,
                                    .a = std::move(svd.right),
                                    .bt = std::move(svd.left)};
    });
    return result;
}

}  // namespace

std::int64_t LowRankDelta::parameters() const {
    std::int64_t total = 0;
    for (const auto& matrix : matrices) total += matrix.lora_rank * (matrix.d_in + matrix.d_out);
    return total;
}

std::int64_t LowRankDelta::bytes(std::int64_t bytes_per_number) const { return parameters() * bytes_per_number; }

ProductSvd product_svd(const LowRankMatrix& product, std::int64_t n_vectors, SvdDriver driver) {
    check(product);
    const at::NoGradGuard no_grad;
    const std::int64_t n = std::min({product.lora_rank, product.d_out, product.d_in});
    ProductSvd result;
    result.singular_values.resize(static_cast<std::size_t>(n));
    if (n == 0) return result;
    const at::Tensor a = view(product.a, product.lora_rank, product.d_in);
    const at::Tensor bt = view(product.bt, product.lora_rank, product.d_out);
    const double terms = (a.norm(2, 1) * bt.norm(2, 1)).sum().item<double>();
    if (!std::isfinite(terms)) {
        throw training_error(
            "the merged product of {} is not finite - a client sent NaN, infinite or far too large factors: lower "
            "train.learning_rate",
            product.name);
    }
    if (terms == 0.0) return result;

    const Stack left = reduce(bt.t());
    const Stack right = reduce(a.t());
    const at::Tensor core = at::matmul(left.core, right.core.t());
    const CoreSvd svd = core_svd(core, driver, product.name);
    result.singular_values = to_vector(svd.s);
    const double floor = std::max(null_ratio * result.singular_values[0], noise_ratio * terms);
    for (double& value : result.singular_values) {
        if (value <= floor) {
            value = 0.0;
        } else {
            result.n_vectors += 1;
        }
    }
    result.n_vectors = std::min(result.n_vectors, std::max<std::int64_t>(n_vectors, 0));
    if (result.n_vectors == 0) return result;
    result.left = to_vector(expand(left, svd.u.narrow(1, 0, result.n_vectors)).t());
    result.right = to_vector(expand(right, svd.v.narrow(1, 0, result.n_vectors)).t());
    fix_signs(result.left, result.right, result.n_vectors);
    return result;
}

double energy_share(const std::vector<double>& singular_values, std::int64_t n) {
    double kept = 0.0;
    double total = 0.0;
    for (std::size_t i = 0; i < singular_values.size(); ++i) {
        total += singular_values[i] * singular_values[i];
        if (static_cast<std::int64_t>(i) < n) kept = total;
    }
    return total > 0.0 ? kept / total : 1.0;
}

std::int64_t rank_for_energy(const std::vector<double>& singular_values, double tau) {
    if (!(tau > 0.0) || tau > 1.0) {
        throw usage_error("energy share {} is not in (0, 1] - say how much of the update's energy to keep", tau);
    }
    double total = 0.0;
    for (const double value : singular_values) total += value * value;
    double kept = 0.0;
    std::int64_t p = 0;
    while (kept < tau * total && p < std::ssize(singular_values)) {
        const double value = singular_values[static_cast<std::size_t>(p)];
        kept += value * value;
        ++p;
    }
    return p;
}

TruncatedDelta truncate_by_energy(const LowRankDelta& delta, double tau) {
    (void)rank_for_energy({}, tau);  // refuses a bad tau before any work
    return truncate(delta, [tau](const std::vector<double>& values) { return rank_for_energy(values, tau); });
}

TruncatedDelta truncate_to_rank(const LowRankDelta& delta, std::int64_t n_slots) {
    return truncate(delta, [n_slots](const std::vector<double>&) { return std::max<std::int64_t>(n_slots, 0); });
}

}  // namespace hetlora
