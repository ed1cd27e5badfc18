// The bfloat16 kernels of vector level `avx512` for processors that round to bfloat16 themselves; flags in
// src/tensor/CMakeLists.txt.
#define HETLORA_LEVEL level_avx512_bf16
#define HETLORA_ONLY_BF16
#include "kernels.inc"
