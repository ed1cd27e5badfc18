// A d_out x d_in matrix that is only known as a sum of rank-one terms, and its singular value decomposition.
//
//     P = B A = sum_j b_j a_j^T         b_j, a_j: rows j of Bt [R, d_out] and A [R, d_in], as in the canonical form
//
// P is never formed unless R >= d_out and R >= d_in, where it is the smallest thing there is:
//     B = Q_b R_b,  A^T = Q_a R_a       Householder QR (no Q where R >= d: then the stack itself is the small side)
//     R_b R_a^T = u S v^T               core of at most min(R, d_out) x min(R, d_in)
//     P = (Q_b u) S (Q_a v)^T
// All in fp64. Sign: the first of the largest |entries| of every left vector is positive.
//
// Null directions: singular values at or below max(1e-12 sigma_0, 1e-14 sum_j |b_j| |a_j|) count as 0 and have no
// vectors. The second bound is what is left of a sum that cancels: its directions are rounding noise.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "hetlora/config/settings.hpp"

namespace hetlora {

/// P = sum_j b_j a_j^T of one adapted matrix; lora_rank = R terms (0: P = 0).
struct LowRankMatrix {
    std::string name;
    std::int64_t d_out = 0;
    std::int64_t d_in = 0;
    std::int64_t lora_rank = 0;
    std::vector<double> a;   ///< [R, d_in] row-major
    std::vector<double> bt;  ///< [R, d_out] row-major
};

/// An update of the frozen base: W0_m += B_m A_m for every matrix, in layout order. The ranks may differ by matrix.
struct LowRankDelta {
    std::vector<LowRankMatrix> matrices;

    /// Numbers in it: sum_m lora_rank_m (d_in_m + d_out_m).
    [[nodiscard]] std::int64_t parameters() const;
    /// parameters() times the bytes of one number (4 in fp32, 8 in fp64).
    [[nodiscard]] std::int64_t bytes(std::int64_t bytes_per_number) const;
};

/// How the core is decomposed.
enum class SvdDriver {
    automatic,   ///< LAPACK's gesdd; if it does not converge, `transposed`, then `symmetric`
    transposed,  ///< gesdd of the core's transpose, then `symmetric`
    /// Eigenvectors of [[0, C], [C^T, 0]]: singular values to eps sigma_0, vector i to about eps sigma_0 / sigma_i.
    symmetric,
};

struct ProductSvd {
    /// All min(R, d_out, d_in) of them, descending; those that count as 0 are exactly 0.
    std::vector<double> singular_values;
    std::int64_t n_vectors = 0;  ///< at most what was asked for and at most the number of non-zero singular values
    std::vector<double> left;    ///< [n_vectors, d_out] row-major: row i is u_i
    std::vector<double> right;   ///< [n_vectors, d_in] row-major: row i is v_i
};

/// The leading singular triplets of P.
/// @throws Error (training) naming the matrix if P is not finite, (bug) if sizes do not fit
[[nodiscard]] ProductSvd product_svd(const LowRankMatrix& product, std::int64_t n_vectors,
                                     SvdDriver driver = SvdDriver::automatic);

/// sum_{i < n} sigma_i^2 / sum_i sigma_i^2; 1 if all are 0.
[[nodiscard]] double energy_share(const std::vector<double>& singular_values, std::int64_t n);

/// The smallest p with sum_{i < p} sigma_i^2 >= tau sum_i sigma_i^2 (0 if all are 0).
/// @throws Error (usage) unless 0 < tau <= 1
[[nodiscard]] std::int64_t rank_for_energy(const std::vector<double>& singular_values, double tau);

/// A shorter delta and what it was made from.
struct TruncatedDelta {
    LowRankDelta delta;                                ///< split `left`
    std::vector<std::vector<double>> singular_values;  ///< of every matrix before the cut
    std::vector<double> energy_kept;                   ///< of every matrix
};

/// Every matrix cut to its rank_for_energy(tau) (FLoRIST).
[[nodiscard]] TruncatedDelta truncate_by_energy(const LowRankDelta& delta, double tau);
/// Every matrix cut to at most n_slots (its best approximation of that rank); null directions are always left out.
[[nodiscard]] TruncatedDelta truncate_to_rank(const LowRankDelta& delta, std::int64_t n_slots);

}  // namespace hetlora
