// Run-time choice among the compiled vector levels.
#include "hetlora/tensor/kernels.hpp"

#include "hetlora/base/error.hpp"

namespace hetlora {

#define HETLORA_DECLARE_LEVEL(level)                 \
    namespace level_##level {                        \
        extern const Kernels<float> float_kernels;   \
        extern const Kernels<double> double_kernels; \
        extern const Kernels<Bfloat16> bf16_kernels; \
    }
HETLORA_DECLARE_LEVEL(baseline)
#ifdef HETLORA_X86
HETLORA_DECLARE_LEVEL(avx2)
HETLORA_DECLARE_LEVEL(avx512)
namespace level_avx512_bf16 {
extern const Kernels<Bfloat16> bf16_kernels;
}
#endif
#undef HETLORA_DECLARE_LEVEL

namespace {

VectorLevel current = best_vector_level();

}  // namespace

std::int64_t attention_scratch_size(std::int64_t length, std::int64_t head_size) {
    constexpr std::int64_t query_block = 32;                                           // as in kernels_attention.inc
    const std::int64_t keys = (length + query_block - 1) / query_block * query_block;  // as the matrix unit reads them
    return (4 * keys + 5 * query_block) * head_size + (4 * keys + 2) * query_block;
}

std::int64_t lora_scratch_size(const LoraShape& shape) {
    constexpr std::int64_t row_block = 64;  // as in kernels_lora.inc
    const std::int64_t transposed = shape.width * (shape.inputs > shape.outputs ? shape.inputs : shape.outputs);
    return transposed + row_block * (2 * shape.width + 2 * shape.inputs + shape.outputs);
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

namespace {

template <typename S>
const Kernels<S>& choose(const Kernels<S>& baseline, const Kernels<S>& avx2, const Kernels<S>& avx512) {
    return current == VectorLevel::avx512 ? avx512 : current == VectorLevel::avx2 ? avx2 : baseline;
}

}  // namespace

#ifdef HETLORA_X86
#define HETLORA_CHOOSE(table) choose(level_baseline::table, level_avx2::table, level_avx512::table)
#else
#define HETLORA_CHOOSE(table) choose(level_baseline::table, level_baseline::table, level_baseline::table)
#endif

template <>
const Kernels<float>& kernels<float>() {
    return HETLORA_CHOOSE(float_kernels);
}
template <>
const Kernels<double>& kernels<double>() {
    return HETLORA_CHOOSE(double_kernels);
}
template <>
const Kernels<Bfloat16>& kernels<Bfloat16>() {
#ifdef HETLORA_X86
    static const bool processor_rounds = __builtin_cpu_supports("avx512bf16");
    if (current == VectorLevel::avx512 && processor_rounds) return level_avx512_bf16::bf16_kernels;
#endif
    return HETLORA_CHOOSE(bf16_kernels);
}

}  // namespace hetlora
