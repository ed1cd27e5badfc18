// What the global adapter looks like, matrix by matrix (log.spectra): norms and singular values of W = s B A, without
// ever forming W. On root, in fp64 and in a fixed order of operations.
//
//     A^T = Q_A R_A,  B = Q_B R_B  (Householder)      W = s Q_B (R_B R_A^T) Q_A^T
//
// so the singular values of W are those of the small core s R_B R_A^T, [rank_max, rank_max] (one-sided Jacobi).
// The change against the round before is W' - W = s (B' (A' - A) + (B' - B) A): its Frobenius norm comes from the Gram
// matrices of the stacked factors [B', B' - B] and [A' - A; A], whose entries are as small as the change itself.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "hetlora/base/adapter_layout.hpp"

namespace hetlora {

struct SpectraInput {
    const AdapterLayout& layout;
    std::span<const double> global;    ///< canonical form at rank_max, after the round
    std::span<const double> previous;  ///< the same before it
    std::int64_t rank_max = 0;
    std::int64_t rank_min = 0;  ///< singular values that count as leading
    double scale = 1.0;         ///< s
};

/// One adapted matrix. NaN where W = 0 leaves nothing to divide by.
struct MatrixSpectrum {
    double update_norm = 0.0;   ///< ||W' - W||_F
    double product_norm = 0.0;  ///< ||W'||_F
    /// (sum sigma^2)^2 / sum sigma^4
    double effective_rank = std::numeric_limits<double>::quiet_NaN();
    /// Share of the rank_min largest in sum sigma^2.
    double leading_energy = std::numeric_limits<double>::quiet_NaN();
    std::vector<double> singular_values;  ///< [rank_max], largest first
};

/// @throws Error (bug) if sizes do not fit
[[nodiscard]] std::vector<MatrixSpectrum> matrix_spectra(const SpectraInput& input);

/// Singular values of rows_b^T rows_a, largest first: n_rows of them.
/// @param rows_a [n_rows, d_in] row-major
/// @param rows_b [n_rows, d_out] row-major
[[nodiscard]] std::vector<double> product_singular_values(std::span<const double> rows_a,
                                                          std::span<const double> rows_b, std::int64_t n_rows);

}  // namespace hetlora
