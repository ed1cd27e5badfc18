// Run-time choice among the compiled vector levels.
#include "hetlora/tensor/kernels.hpp"

#include "hetlora/base/error.hpp"

namespace hetlora {

#define HETLORA_DECLARE_LEVEL(level)                 \
    namespace level_##level {                        \
        extern const Kernels<float> float_kernels;   \
        extern const Kernels<double> double_kernels; \
    }
HETLORA_DECLARE_LEVEL(baseline)
#ifdef HETLORA_X86
HETLORA_DECLARE_LEVEL(avx2)
HETLORA_DECLARE_LEVEL(avx512)
#endif
#undef HETLORA_DECLARE_LEVEL

namespace {

VectorLevel current = best_vector_level();

}  // namespace

std::int64_t attention_scratch_size(std::int64_t length, std::int64_t head_size) {
    constexpr std::int64_t query_block = 32;  // as in kernels.inc
    return 2 * length * (head_size + query_block);
}

VectorLevel best_vector_level() {
#ifdef HETLORA_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw")) {
        return VectorLevel::avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return VectorLevel::avx2;
#endif
    return VectorLevel::baseline;
}

void set_vector_level(VectorLevel level) {
    if (level > best_vector_level()) {
        throw usage_error("compute.vector = {}: this processor has only {}; take that or `auto`", to_string(level),
                          to_string(best_vector_level()));
    }
    current = level;
}

VectorLevel vector_level() { return current; }

std::string_view to_string(VectorLevel level) {
    switch (level) {
        case VectorLevel::avx2:
            return "avx2";
        case VectorLevel::avx512:
            return "avx512";
        case VectorLevel::baseline:
            break;
    }
    return "baseline";
}

template <>
const Kernels<float>& kernels<float>() {
#ifdef HETLORA_X86
    if (current == VectorLevel::avx512) return level_avx512::float_kernels;
    if (current == VectorLevel::avx2) return level_avx2::float_kernels;
#endif
    return level_baseline::float_kernels;
}

template <>
const Kernels<double>& kernels<double>() {
#ifdef HETLORA_X86
    if (current == VectorLevel::avx512) return level_avx512::double_kernels;
    if (current == VectorLevel::avx2) return level_avx2::double_kernels;
#endif
    return level_baseline::double_kernels;
}

}  // namespace hetlora
