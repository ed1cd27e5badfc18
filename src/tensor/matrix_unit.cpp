// The door to LibTorch's small products; see tensor/matrix_unit.hpp.
#include "hetlora/tensor/matrix_unit.hpp"

#include <ATen/native/CPUBlas.h>

#include <array>

#include "hetlora/tensor/kernels.hpp"

namespace hetlora {

bool has_matrix_unit() {
    static const bool available = [] {
        constexpr std::int64_t size = 32;
        std::array<Bfloat16, size * size> ones{};
        ones.fill({.bits = 0x3F80});
        std::array<float, size * size> product{};
        try {
            matrix_unit_product(size, size, size, ones.data(), size, ones.data(), size, product.data(), size, false);
            at::native::cpublas::brgemm_release(true);
        } catch (const c10::Error&) {  // a LibTorch without these products, or one that does not use them here
            return false;
        }
        return product.front() == static_cast<float>(size) && product.back() == static_cast<float>(size);
    }();
    return available;
}

void matrix_unit_product(std::int64_t M, std::int64_t N, std::int64_t K, const Bfloat16* a, std::int64_t lda,
                         const Bfloat16* b, std::int64_t ldb, float* c, std::int64_t ldc, bool add) {
    at::native::cpublas::brgemm(M, N, K, lda, ldb, ldc, add, reinterpret_cast<const at::BFloat16*>(a),
                                reinterpret_cast<const at::BFloat16*>(b), c, true);
}

void release_matrix_unit() {
    if (has_matrix_unit()) at::native::cpublas::brgemm_release(true);
}

}  // namespace hetlora
