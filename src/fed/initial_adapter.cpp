#include "hetlora/fed/initial_adapter.hpp"

#include <algorithm>
#include <cmath>

#include "hetlora/base/random.hpp"

namespace hetlora {

namespace {

double draw(const AdapterInitLaw& law, std::uint64_t bits, std::size_t d_in) {
    const double value = law.init == AdapterInit::gaussian
                             ? standard_normal(bits) / static_cast<double>(law.rank_max)
                             : (2.0 * uniform01(bits) - 1.0) / std::sqrt(static_cast<double>(d_in));
    return law.round_to_fp32 ? static_cast<double>(static_cast<float>(value)) : value;
}

}  // namespace

AdapterInitLaw adapter_init_law(const Settings& settings) {
    return {.init = settings.lora.init,
            .seed_init = settings.experiment.seed_init,
            .rank_max = settings.lora.rank_max,
            .round_to_fp32 = settings.model.precision != Precision::fp64};
}

std::vector<double> initial_adapter(const AdapterLayout& layout, const AdapterInitLaw& law) {
    std::vector<double> adapter(static_cast<std::size_t>(layout.parameters(law.rank_max)));
    for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
        const auto d_in = static_cast<std::size_t>(layout.matrices[m].d_in);
        double* a = adapter.data() + layout.offset_a(m, law.rank_max);
        for (std::int64_t slot = 0; slot < law.rank_max; ++slot) {
            for (std::size_t column = 0; column < d_in; ++column) {
                *a++ = draw(law, hash_seed(law.seed_init, Purpose::adapter_init, m, slot, column), d_in);
            }
        }
    }
    return adapter;
}

void fresh_adapter(const AdapterLayout& layout, const AdapterInitLaw& law, const FreshAdapter& whose,
                   std::int64_t lora_rank, std::span<double> adapter) {
    std::ranges::fill(adapter, 0.0);
    for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
        const auto d_in = static_cast<std::size_t>(layout.matrices[m].d_in);
        double* a = adapter.data() + layout.offset_a(m, lora_rank);
        for (std::int64_t slot = 0; slot < lora_rank; ++slot) {
            const std::uint64_t row_seed =
                hash_seed(law.seed_init, Purpose::fresh_adapter, whose.round, whose.client, m, slot);
            for (std::size_t column = 0; column < d_in; ++column) {
                *a++ = draw(law, hash_seed(row_seed, Purpose::fresh_adapter, column), d_in);
            }
        }
    }
}

void refill_row(const AdapterInitLaw& law, std::int64_t round, std::size_t matrix, std::int64_t slot,
                std::span<double> row) {
    for (std::size_t column = 0; column < row.size(); ++column) {
        row[column] = draw(law, hash_seed(law.seed_init, Purpose::refill, round, matrix, slot, column), row.size());
    }
}

}  // namespace hetlora
