#include "hetlora/comm/exact_sum.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

#include "hetlora/base/error.hpp"

namespace hetlora {

namespace {

__extension__ using int128 = __int128;

// Adding 1.5 * 2^52 rounds a double of size below 2^51 to an integer, which then stands in the low bits of its pattern:
// conversions to int64 without an instruction for it, so that the compiler can use vector registers of any width.
constexpr double magic = 0x1.8p52;
constexpr std::uint64_t magic_bits = std::bit_cast<std::uint64_t>(magic);
constexpr double coarse_scale = 0x1.0p24;
constexpr int fine_bits = 51;
constexpr double fine_scale = 0x1.0p51;
constexpr std::uint64_t coarse_limit = std::uint64_t{1} << 46;
// |fine| grows by at most 2^50 per add and by 2^51 from what a carry leaves.
constexpr int adds_before_carry = 4096;

struct Problems {
    std::uint64_t term = 0;  ///< not 0: a term was not finite or too large
    std::uint64_t sum = 0;   ///< sign bit set: a coarse sum came within a factor 2 of overflow
};

// Powers of two scale exactly, and the differences below are exact, so the result is the same with and without fused
// multiply-add and at every vector width.
template <bool add>
Problems accumulate(double weight, const double* __restrict values, std::uint64_t* __restrict coarse,
                    std::uint64_t* __restrict fine, std::size_t n) {
    std::uint64_t bad_term = 0;
    std::uint64_t bad_sum = 0;
    for (std::size_t i = 0; i < n; ++i) {
        const double term = weight * values[i];
        const double scaled = term * coarse_scale;
        const double shifted = scaled + magic;
        const double rest = scaled - (shifted - magic);
        const std::uint64_t h = std::bit_cast<std::uint64_t>(shifted) - magic_bits;
        const std::uint64_t l = std::bit_cast<std::uint64_t>(rest * fine_scale + magic) - magic_bits;
        bad_term |= (h + coarse_limit) >> 47;
        const std::uint64_t sum = add ? coarse[i] + h : coarse[i] - h;
        bad_sum |= sum ^ (sum << 1);
        coarse[i] = sum;
        fine[i] = add ? fine[i] + l : fine[i] - l;
    }
    return {bad_term, bad_sum};
}

int128 total(std::uint64_t coarse, std::uint64_t fine) {
    return static_cast<int128>(static_cast<std::int64_t>(coarse)) * (int128{1} << fine_bits) +
           static_cast<std::int64_t>(fine);
}

// The conversion of a 128-bit integer to double rounds to nearest, ties to even; the scaling is exact.
double to_double(int128 quanta) { return static_cast<double>(quanta) * ExactSum::quantum; }

}  // namespace

ExactSum::ExactSum(std::size_t n_values) : coarse_(n_values), fine_(n_values) {}

void ExactSum::add(double weight, std::span<const double> values, std::size_t first) {
    if (first > size() || values.size() > size() - first) {
        throw bug_error("ExactSum: {} values from {} do not fit into {}", values.size(), first, size());
    }
    if (adds_since_carry_ >= adds_before_carry) carry();
    ++adds_since_carry_;
    const Problems problems =
        accumulate<true>(weight, values.data(), coarse_.data() + first, fine_.data() + first, values.size());
    if (problems.term == 0 && (problems.sum >> 63) == 0) return;

    accumulate<false>(weight, values.data(), coarse_.data() + first, fine_.data() + first, values.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
        if (!(std::abs(weight * values[i]) < largest_term - 1.0)) {  // minus what rounding to 2^-24 may add
            throw training_error(
                "an upload cannot be summed: value {} (of {}) is {} and its weight {}, but weight times value must be "
                "finite and below {} - training diverged: lower local.learning_rate or set local.clip_norm",
                i, values.size(), values[i], weight, largest_term);
        }
    }
    throw training_error(
        "the sum of the uploads leaves the range of the exact sum (about 2.7e11) - training diverged: lower "
        "local.learning_rate or set local.clip_norm");
}

void ExactSum::add_sums(const ExactSum& other, std::size_t first, std::size_t n) {
    if (other.size() != size() || first > size() || n > size() - first) {
        throw bug_error("ExactSum: sums {} to {} of {} and {}", first, first + n, other.size(), size());
    }
    for (std::size_t i = first; i < first + n; ++i) {
        const int128 sum = total(coarse_[i], fine_[i]) + total(other.coarse_[i], other.fine_[i]);
        constexpr int128 limit = int128{1} << (62 + fine_bits);
        if (sum >= limit || sum < -limit) {
            throw training_error(
                "the sum of the uploads leaves the range of the exact sum - training diverged: lower "
                "local.learning_rate or set local.clip_norm");
        }
        coarse_[i] = static_cast<std::uint64_t>(static_cast<std::int64_t>(sum >> fine_bits));
        fine_[i] = static_cast<std::uint64_t>(sum) & ((std::uint64_t{1} << fine_bits) - 1);
    }
}

void ExactSum::clear() {
    std::ranges::fill(coarse_, 0);
    std::ranges::fill(fine_, 0);
    adds_since_carry_ = 0;
}

void ExactSum::carry() {
    for (std::size_t i = 0; i < fine_.size(); ++i) {
        const auto fine = static_cast<std::int64_t>(fine_[i]);
        coarse_[i] += static_cast<std::uint64_t>(fine >> fine_bits);  // rounds down, so that what stays is not negative
        fine_[i] &= (std::uint64_t{1} << fine_bits) - 1;
    }
    adds_since_carry_ = 0;
}

void ExactSum::to_limbs(std::size_t first, std::span<std::int64_t> limbs) const {
    const std::size_t n = limbs.size() / limbs_per_value;
    if (limbs.size() != limbs_per_value * n || first > size() || n > size() - first) {
        throw bug_error("ExactSum: {} limbs from value {} of {}", limbs.size(), first, size());
    }
    constexpr std::int64_t mask = (std::int64_t{1} << 48) - 1;
    for (std::size_t i = 0; i < n; ++i) {
        const int128 quanta = total(coarse_[first + i], fine_[first + i]);
        limbs[3 * i] = static_cast<std::int64_t>(quanta) & mask;
        limbs[3 * i + 1] = static_cast<std::int64_t>(quanta >> 48) & mask;
        limbs[3 * i + 2] = static_cast<std::int64_t>(quanta >> 96);
    }
}

double ExactSum::from_limbs(std::int64_t low, std::int64_t middle, std::int64_t high) {
    return to_double(static_cast<int128>(high) * (int128{1} << 96) + static_cast<int128>(middle) * (int128{1} << 48) +
                     low);
}

void ExactSum::from_limbs(std::span<const std::int64_t> limbs, std::span<double> values) {
    if (limbs.size() != limbs_per_value * values.size()) {
        throw bug_error("ExactSum: {} limbs for {} values", limbs.size(), values.size());
    }
    for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = from_limbs(limbs[3 * i], limbs[3 * i + 1], limbs[3 * i + 2]);
    }
}

double ExactSum::value(std::size_t index) const { return to_double(total(coarse_.at(index), fine_.at(index))); }

}  // namespace hetlora
