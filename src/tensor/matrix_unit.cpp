// The door to LibTorch's small products; see tensor/matrix_unit.hpp.
#include "hetlora/tensor/matrix_unit.hpp"

#include <ATen/native/CPUBlas.h>

#include <array>
#include <atomic>
#include <exception>

#include "hetlora/tensor/kernels.hpp"

namespace hetlora {
namespace {

std::atomic<bool> allowed = true;

/// Whether a product comes out right. LibTorch says before the call only that it knows the instruction set.
bool product_works() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx512bf16")) return false;
    constexpr std::int64_t size = 32;
    std::array<Bfloat16, size * size> ones{};
    ones.fill({.bits = 0x3F80});
    std::array<float, size * size> product{};
    try {
        matrix_unit_product(size, size, size, ones.data(), size, ones.data(), size, product.data(), size, false);
        at::native::cpublas::brgemm_release(true);
    } catch (const std::exception&) {  // LibTorch's own refusal, or oneDNN's, whose instruction set may be limited
        return false;
    }
    return product.front() == static_cast<float>(size) && product.back() == static_cast<float>(size);
#else
    return false;  // kernels_attention_pairs.inc is for x86
#endif
}

}  // namespace

bool has_matrix_unit() {
    static const bool available = product_works();
    return available && allowed;
}

void allow_matrix_unit(bool allow) { allowed = allow; }

void matrix_unit_product(std::int64_t M, std::int64_t N, std::int64_t K, const Bfloat16* a, std::int64_t lda,
                         const Bfloat16* b, std::int64_t ldb, float* c, std::int64_t ldc, bool add) {
    at::native::cpublas::brgemm(M, N, K, lda, ldb, ldc, add, reinterpret_cast<const at::BFloat16*>(a),
                                reinterpret_cast<const at::BFloat16*>(b), c, true);
}

MatrixUnitUse::~MatrixUnitUse() {
    if (has_matrix_unit()) at::native::cpublas::brgemm_release(true);
}

}  // namespace hetlora
