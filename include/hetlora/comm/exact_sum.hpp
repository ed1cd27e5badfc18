// Sums whose bits do not depend on the order, the grouping, or the number of processes.
//
// Floating-point addition is not associative, so a sum of client uploads would change with the number of mpi_ranks.
// Here every term p = weight * value (one fp64 product) is rounded once to a multiple of a fixed quantum and added as
// an integer, which is associative:
//
//     q = 2^-75,   p is rounded to  h * 2^-24 + l * q   with integers |h| < 2^46 (so |p| < 2^22), |l| <= 2^50.
//
// h and l are accumulated in 64-bit integers. For the trip through an integer reduction, the sum (a 128-bit integer
// number of quanta) is cut into three limbs of 48, 48 and 32 bits, each in an int64, so that 2^15 processes can be
// added without a carry. A term of size 1e-7 or more keeps all 53 bits; a smaller one keeps an absolute error of at
// most q / 2 = 1.3e-23. The total is exact in these quanta for up to 2^30 terms of the largest size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace hetlora {

class ExactSum {
public:
    static constexpr std::size_t limbs_per_value = 3;
    /// |weight * value| of every term must be smaller than this.
    static constexpr double largest_term = 4194304.0;  // 2^22
    /// The quantum 2^-75.
    static constexpr double quantum = 0x1.0p-75;

    explicit ExactSum(std::size_t n_values);
    [[nodiscard]] std::size_t size() const { return coarse_.size(); }

    /// sum[first + i] += weight * values[i].
    /// @throws Error (training) if a term is not finite or not below largest_term, or if a sum leaves its range; the
    ///         sums are then as before the call
    void add(double weight, std::span<const double> values, std::size_t first = 0);
    /// sum[i] += other.sum[i] for n sums from `first`, exactly. @throws Error as add()
    void add_sums(const ExactSum& other, std::size_t first, std::size_t n);
    /// Sets every sum to 0 and keeps the memory.
    void clear();

    /// Writes the limbs of n consecutive sums from `first`: limbs[3 * i + j] is limb j of sum first + i.
    /// @pre limbs.size() == 3 * n
    void to_limbs(std::size_t first, std::span<std::int64_t> limbs) const;
    /// The fp64 value nearest to the sum of the limbs (each limb may be a sum over up to 2^15 processes).
    [[nodiscard]] static double from_limbs(std::int64_t low, std::int64_t middle, std::int64_t high);
    /// from_limbs of every value. @pre limbs.size() == 3 * values.size()
    static void from_limbs(std::span<const std::int64_t> limbs, std::span<double> values);
    /// The fp64 value nearest to one local sum.
    [[nodiscard]] double value(std::size_t index) const;

private:
    void carry();

    std::vector<std::uint64_t> coarse_;  ///< sums of h, two's complement
    std::vector<std::uint64_t> fine_;    ///< sums of l, two's complement
    int adds_since_carry_ = 0;
};

}  // namespace hetlora
