#include "hetlora/fed/dense_sum.hpp"

#include <algorithm>
#include <cmath>

namespace hetlora {

bool DenseSum::fits(std::span<const double> values, double weight) {
    return std::ranges::all_of(values, [&](double value) { return std::abs(weight * value) < ExactSum::largest_term; });
}

}  // namespace hetlora
