#include "hetlora/fed/weights.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "hetlora/base/error.hpp"

namespace hetlora {

namespace {

constexpr std::size_t lanes = 8;

double dot(const double* x, const double* y, std::size_t n) {
    std::array<double, lanes> partial{};
    std::size_t i = 0;
    for (; i + lanes <= n; i += lanes) {
        for (std::size_t lane = 0; lane < lanes; ++lane) partial[lane] += x[i + lane] * y[i + lane];
    }
    for (; i < n; ++i) partial[i % lanes] += x[i] * y[i];
    return ((partial[0] + partial[1]) + (partial[2] + partial[3])) +
           ((partial[4] + partial[5]) + (partial[6] + partial[7]));
}

/// Calls visit(matrix, A, Bt) for every matrix; A is [lora_rank, d_in], Bt is [lora_rank, d_out].
template <typename Visit>
void for_each_matrix(const AdapterLayout& layout, std::span<const double> factors, std::int64_t lora_rank,
                     Visit visit) {
    if (std::ssize(factors) != layout.parameters(lora_rank)) {
        throw bug_error("adapter of lora_rank {}: {} values instead of {}", lora_rank, factors.size(),
                        layout.parameters(lora_rank));
    }
    std::size_t offset = 0;
    for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
        const auto size_a = static_cast<std::size_t>(lora_rank * layout.matrices[m].d_in);
        const auto size_b = static_cast<std::size_t>(lora_rank * layout.matrices[m].d_out);
        visit(m, factors.subspan(offset, size_a), factors.subspan(offset + size_a, size_b));
        offset += size_a + size_b;
    }
}

double product_norm_squared(std::span<const double> gram_a, std::span<const double> gram_b) {
    // Rounding may leave a tiny negative sum where the products cancel.
    return std::max(0.0, dot(gram_a.data(), gram_b.data(), gram_a.size()));
}

}  // namespace

double sum_of_squares(std::span<const double> values) { return dot(values.data(), values.data(), values.size()); }

double dot_product(std::span<const double> x, std::span<const double> y) { return dot(x.data(), y.data(), x.size()); }

std::vector<double> gram(std::span<const double> rows, std::int64_t n_rows) {
    const auto n = static_cast<std::size_t>(n_rows);
    const std::size_t width = n == 0 ? 0 : rows.size() / n;
    std::vector<double> result(n * n);
    for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t j = 0; j <= i; ++j) {
            result[i * n + j] = result[j * n + i] = dot(rows.data() + i * width, rows.data() + j * width, width);
        }
    }
    return result;
}

std::vector<double> product_norms_squared(const AdapterLayout& layout, std::span<const double> factors,
                                          std::int64_t lora_rank) {
    std::vector<double> norms(layout.matrices.size());
    for_each_matrix(layout, factors, lora_rank,
                    [&](std::size_t m, std::span<const double> a, std::span<const double> bt) {
                        norms[m] = product_norm_squared(gram(a, lora_rank), gram(bt, lora_rank));
                    });
    return norms;
}

ProductSummary summarize_product(const AdapterLayout& layout, std::span<const double> factors, std::int64_t lora_rank) {
    ProductSummary summary;
    double squares = 0.0;
    std::int64_t n_nonzero = 0;
    const auto n = static_cast<std::size_t>(lora_rank);
    for_each_matrix(layout, factors, lora_rank,
                    [&](std::size_t, std::span<const double> a, std::span<const double> bt) {
                        const auto gram_a = gram(a, lora_rank);
                        const auto gram_b = gram(bt, lora_rank);
                        const double square = product_norm_squared(gram_a, gram_b);
                        squares += square;
                        // The squared singular values of B A are the eigenvalues of M = (B^T B)(A A^T), so sum sigma^4
                        // = trace(M^2).
                        std::vector<double> m(n * n);
                        for (std::size_t i = 0; i < n; ++i) {
                            for (std::size_t j = 0; j < n; ++j) m[i * n + j] = dot(&gram_b[i * n], &gram_a[j * n], n);
                        }
                        double fourth_powers = 0.0;
                        for (std::size_t i = 0; i < n; ++i) {
                            for (std::size_t j = 0; j < n; ++j) fourth_powers += m[i * n + j] * m[j * n + i];
                        }
                        if (square > 0.0 && fourth_powers > 0.0) {
                            summary.effective_rank += square * square / fourth_powers;
                            ++n_nonzero;
                        }
                    });
    summary.norm = std::sqrt(squares);
    if (n_nonzero > 0) summary.effective_rank /= static_cast<double>(n_nonzero);
    return summary;
}

std::vector<double> client_weights(const Strategy& strategy, const AdapterLayout& layout, const WeightBasis& basis) {
    const std::size_t n = layout.matrices.size();
    switch (strategy.client_weight) {
        case ClientWeight::uniform:
            return std::vector<double>(n, 1.0);
        case ClientWeight::samples:
            return std::vector<double>(n, basis.n_samples);
        case ClientWeight::sparsity:
            break;
    }
    auto norms = product_norms_squared(layout, basis.factors, basis.lora_rank);
    const double scale = strategy.weight_includes_scale ? std::abs(basis.lora_scale) : 1.0;
    if (strategy.weight_scope == WeightScope::matrix) {
        for (double& norm : norms) norm = scale * std::sqrt(norm);
        return norms;
    }
    double total = 0.0;
    for (const double norm : norms) total += strategy.weight_norm == WeightNorm::sum ? std::sqrt(norm) : norm;
    const double s = scale * (strategy.weight_norm == WeightNorm::sum ? total : std::sqrt(total));
    return std::vector<double>(n, s);
}

}  // namespace hetlora
