// Small products of bfloat16 matrices by the processor's matrix unit (AMX) or its bfloat16 vectors, through the
// micro-kernels of oneDNN that LibTorch brings.
#pragma once

#include <cstdint>

namespace hetlora {

struct Bfloat16;

/// Whether this processor and this LibTorch have such micro-kernels, and they are allowed.
[[nodiscard]] bool has_matrix_unit();

/// For the whole process (default: yes). MPI ranks on unlike processors must all do without: the products round the
/// probabilities of attention to bfloat16, the vector kernels do not.
void allow_matrix_unit(bool allow);

/// C [M, N] = A [M, K] B [K, N], or C += with `add`; sums in fp32. B is given by pairs of rows: element (k, n) lies at
/// b[(k / 2 * ldb + n) * 2 + k % 2]. K is even; leading dimensions count elements of A and C, and pairs of B.
/// The first call of a shape makes its code (0.1 ms); a change of shape between calls costs 0.2 us, so loop inside one.
/// Throws what LibTorch or oneDNN throw where there is no kernel for the shape. @pre a MatrixUnitUse of this thread
void matrix_unit_product(std::int64_t M, std::int64_t N, std::int64_t K, const Bfloat16* a, std::int64_t lda,
                         const Bfloat16* b, std::int64_t ldb, float* c, std::int64_t ldc, bool add);

/// Lives around a stretch of products in one thread, in which nothing else of LibTorch runs: its end gives the thread's
/// matrix unit back to the libraries.
class MatrixUnitUse {
public:
    MatrixUnitUse() = default;
    MatrixUnitUse(const MatrixUnitUse&) = delete;
    MatrixUnitUse& operator=(const MatrixUnitUse&) = delete;
    ~MatrixUnitUse();
};

}  // namespace hetlora
