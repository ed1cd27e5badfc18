#include "hetlora/fed/spectra.hpp"

#include <algorithm>
#include <cmath>
#include <functional>

#include "hetlora/base/error.hpp"
#include "hetlora/fed/weights.hpp"

namespace hetlora {

namespace {

/// R [n, n] of the QR decomposition of rows^T (Householder); rows beyond the width of `rows` are 0.
/// @param rows [n, width] row-major; its rows are the columns to decompose
std::vector<double> triangular_factor(std::vector<double> rows, std::size_t n) {
    const std::size_t width = n == 0 ? 0 : rows.size() / n;
    std::vector<double> r(n * n, 0.0);
    std::vector<double> reflector;
    for (std::size_t k = 0; k < std::min(n, width); ++k) {
        const auto below = [&](std::size_t row) { return std::span(rows).subspan(row * width + k, width - k); };
        const auto column = below(k);
        const double norm = std::sqrt(sum_of_squares(column));
        if (norm > 0.0) {
            const double diagonal = column[0] > 0.0 ? -norm : norm;
            reflector.assign(column.begin(), column.end());
            reflector[0] -= diagonal;
            const double square = sum_of_squares(reflector);
            column[0] = diagonal;
            for (std::size_t j = k + 1; j < n; ++j) {
                const auto other = below(j);
                const double factor = 2.0 * dot_product(reflector, other) / square;
                for (std::size_t i = 0; i < other.size(); ++i) other[i] -= factor * reflector[i];
            }
        }
        for (std::size_t j = k; j < n; ++j) r[k * n + j] = rows[j * width + k];
    }
    return r;
}

/// Singular values of a square matrix, largest first: its rows are rotated until they are orthogonal.
std::vector<double> singular_values(std::vector<double> matrix, std::size_t n) {
    constexpr int most_sweeps = 60;
    constexpr double tolerance = 1e-15;
    const auto row = [&](std::size_t i) { return std::span(matrix).subspan(i * n, n); };
    bool rotated = true;
    for (int sweep = 0; rotated && sweep < most_sweeps; ++sweep) {
        rotated = false;
        for (std::size_t p = 0; p < n; ++p) {
            for (std::size_t q = p + 1; q < n; ++q) {
                const auto x = row(p);
                const auto y = row(q);
                const double xx = sum_of_squares(x);
                const double yy = sum_of_squares(y);
                const double xy = dot_product(x, y);
                if (xy == 0.0 || std::abs(xy) <= tolerance * std::sqrt(xx) * std::sqrt(yy)) continue;
                rotated = true;
                const double zeta = (yy - xx) / (2.0 * xy);
                const double t = std::copysign(1.0, zeta) / (std::abs(zeta) + std::hypot(1.0, zeta));
                const double c = 1.0 / std::sqrt(1.0 + t * t);
                const double s = c * t;
                for (std::size_t i = 0; i < n; ++i) {
                    const double old = x[i];
                    x[i] = c * old - s * y[i];
                    y[i] = s * old + c * y[i];
                }
            }
        }
    }
    std::vector<double> values(n);
    for (std::size_t i = 0; i < n; ++i) values[i] = std::sqrt(sum_of_squares(row(i)));
    std::ranges::sort(values, std::greater<>{});
    return values;
}

std::vector<double> minus(std::span<const double> a, std::span<const double> b) {
    std::vector<double> difference(a.size());
    std::ranges::transform(a, b, difference.begin(), std::minus<>{});
    return difference;
}

std::vector<double> stacked(std::span<const double> above, std::span<const double> below) {
    std::vector<double> rows(above.begin(), above.end());
    rows.insert(rows.end(), below.begin(), below.end());
    return rows;
}

/// ||B1 A1 - B0 A0||_F of one matrix.
double change_norm(std::span<const double> a1, std::span<const double> b1, std::span<const double> a0,
                   std::span<const double> b0, std::int64_t n_rows) {
    const auto gram_b = gram(stacked(b1, minus(b1, b0)), 2 * n_rows);
    const auto gram_a = gram(stacked(minus(a1, a0), a0), 2 * n_rows);
    return std::sqrt(std::max(0.0, dot_product(gram_a, gram_b)));
}

}  // namespace

std::vector<double> product_singular_values(std::span<const double> rows_a, std::span<const double> rows_b,
                                            std::int64_t n_rows) {
    const auto n = static_cast<std::size_t>(n_rows);
    const auto r_a = triangular_factor({rows_a.begin(), rows_a.end()}, n);
    const auto r_b = triangular_factor({rows_b.begin(), rows_b.end()}, n);
    std::vector<double> core(n * n);
    for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t j = 0; j < n; ++j) {
            core[i * n + j] = dot_product(std::span(r_b).subspan(i * n, n), std::span(r_a).subspan(j * n, n));
        }
    }
    return singular_values(std::move(core), n);
}

std::vector<MatrixSpectrum> matrix_spectra(const SpectraInput& input) {
    const auto n_values = input.layout.parameters(input.rank_max);
    if (std::ssize(input.global) != n_values || std::ssize(input.previous) != n_values) {
        throw bug_error("spectra: {} and {} values instead of {}", input.global.size(), input.previous.size(),
                        n_values);
    }
    std::vector<MatrixSpectrum> spectra;
    for (std::size_t m = 0; m < input.layout.matrices.size(); ++m) {
        const auto& shape = input.layout.matrices[m];
        const auto at_a = static_cast<std::size_t>(input.layout.offset_a(m, input.rank_max));
        const auto at_b = static_cast<std::size_t>(input.layout.offset_b(m, input.rank_max));
        const auto size_a = static_cast<std::size_t>(input.rank_max * shape.d_in);
        const auto size_b = static_cast<std::size_t>(input.rank_max * shape.d_out);
        const auto a = input.global.subspan(at_a, size_a);
        const auto b = input.global.subspan(at_b, size_b);
        const double scale = std::abs(input.scale);
        MatrixSpectrum& one = spectra.emplace_back();
        one.update_norm = scale * change_norm(a, b, input.previous.subspan(at_a, size_a),
                                              input.previous.subspan(at_b, size_b), input.rank_max);
        one.singular_values = product_singular_values(a, b, input.rank_max);
        for (double& value : one.singular_values) value *= scale;
        const double total = sum_of_squares(one.singular_values);
        one.product_norm = std::sqrt(total);
        const double largest = one.singular_values.front();
        if (!(largest > 0.0)) continue;
        std::vector<double> squares;  // relative to the largest one: no underflow of tiny products
        for (const double value : one.singular_values) squares.push_back(value / largest * (value / largest));
        double sum = 0.0;
        double leading = 0.0;
        double fourth_powers = 0.0;
        for (std::size_t i = 0; i < squares.size(); ++i) {
            sum += squares[i];
            fourth_powers += squares[i] * squares[i];
            if (static_cast<std::int64_t>(i) < input.rank_min) leading += squares[i];
        }
        one.effective_rank = sum * sum / fourth_powers;
        one.leading_energy = leading / sum;
    }
    return spectra;
}

}  // namespace hetlora
